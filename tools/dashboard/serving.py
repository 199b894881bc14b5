"""Where the time of a request goes: latency, engine, load."""

from __future__ import annotations

from .grafana import Panel, Query, Row
from .promql import gauge, mean, quantile, rate, share, total


def _seconds(title: str, histogram: str, description: str, *, by: str = "model", width: int = 8) -> Panel:
    """Median and tail of a duration."""
    name = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    queries = [Query(quantile(q, histogram, by=by), f"{name} p{100 * q:g}") for q in (0.5, 0.95, 0.99)]
    return Panel(title, description, "s", queries, width=width)


LATENCY = Row(
    "Latency",
    [
        _seconds(
            "Queue wait",
            "jrm_queue_wait_seconds",
            "Per candidate, from being ready until its batch went to a device; the autoscaler follows it. Longer than "
            "inference, for longer than a step: the devices are the bottleneck, add replicas.",
        ),
        _seconds(
            "Preprocessing",
            "jrm_preprocess_seconds",
            "Per request, from admission until its last image was decoded and resized. Near the duration of requests "
            "while devices are idle: more CPUs and preprocess_threads.",
        ),
        _seconds(
            "Inference",
            "jrm_inference_seconds",
            "Per batch, the time on its device. The tail is what hang_timeout_s must exceed by far.",
        ),
        _seconds(
            "Group completion",
            "jrm_group_completion_seconds",
            "Per group, from its first candidate in the queue to its last outcome: when a trainer has its advantage.",
        ),
        _seconds(
            "Requests",
            "jrm_http_request_duration_seconds",
            "Per request, from its head to the end of its reply, its upload included: what callers feel. Much longer "
            "than group completion: the network, or images that are dear to send.",
            by="route",
        ),
        Panel(
            "Where the time goes",
            "Means side by side. The largest is what to work on: CPUs, devices, or a smaller max_batch_tokens.",
            "s",
            [
                Query(mean("jrm_preprocess_seconds"), "{{model}} preprocessing, a request"),
                Query(mean("jrm_queue_wait_seconds"), "{{model}} queue, a candidate"),
                Query(mean("jrm_inference_seconds"), "{{model}} inference, a batch"),
            ],
        ),
    ],
)

ENGINE = Row(
    "Engine",
    [
        Panel(
            "Device busy",
            "Share of the time in which each device worked. Near 100% with a short queue is a device well used; low "
            "while the queue is deep means that preprocessing holds it up.",
            "percentunit",
            [Query(rate("jrm_device_busy_seconds_total"), "{{instance}} {{device}} ({{worker}})")],
            highest=1,
        ),
        Panel(
            "Batch fill",
            "Tokens of the mean batch over its budget, max_batch_tokens. Low while candidates wait: their images come "
            "too slowly. Low without a queue: there is room.",
            "percentunit",
            [
                Query(
                    share(f"({mean('jrm_batch_tokens')})", f"avg by (model) ({gauge('jrm_batch_tokens_limit')})"),
                    "{{model}}",
                )
            ],
            highest=1,
        ),
        Panel(
            "Candidates per batch",
            "Mean and largest tenth. Near 1 under load: callers send candidates one by one. Let them send groups.",
            "none",
            [
                Query(mean("jrm_batch_candidates"), "{{model}} mean"),
                Query(quantile(0.9, "jrm_batch_candidates"), "{{model}} p90"),
            ],
        ),
        Panel(
            "Tokens shared",
            "Share of the tokens that need not be computed, because candidates or passes begin alike: what the trie "
            "saves. 0 with groups of 12: the edits of a source come at different times.",
            "percentunit",
            [Query(share(total("jrm_tokens_total", 'kind="shared"'), total("jrm_tokens_total")), "{{model}}")],
            highest=1,
        ),
        Panel(
            "Tokens computed",
            "Language-model tokens that went through the devices, per second.",
            "cps",
            [Query(total("jrm_tokens_total", 'kind="computed"'), "{{model}}")],
        ),
        Panel(
            "Images reused",
            "Share of the images of batches whose features were still on the device. Near 0 although sources repeat: "
            "more sources are in use than the cache holds.",
            "percentunit",
            [Query(share(total("jrm_images_total", 'kind="reused"'), total("jrm_images_total")), "{{model}}")],
            highest=1,
        ),
        Panel(
            "Feature cache",
            "Bytes of image features that each device keeps, up to 1 GiB.",
            "bytes",
            [Query(gauge("jrm_feature_cache_bytes"), "{{instance}} {{device}} ({{worker}})")],
        ),
        Panel(
            "Batches that failed",
            "Batches, halves included, in which the backend raised, per second. If the log says OutOfMemory: lower "
            "max_batch_tokens.",
            "cps",
            [Query(total("jrm_batch_failures_total", by="instance"), "{{instance}}")],
        ),
        Panel(
            "Workers given up",
            "Workers that hung or were lost, per second. Each is started again.",
            "cps",
            [
                Query(
                    total("jrm_worker_failures_total", by="instance, device, reason"),
                    "{{instance}} {{device}} {{reason}}",
                )
            ],
        ),
    ],
)

LOAD = Row(
    "Load",
    [
        Panel(
            "Queue depth",
            "Candidates admitted and not finished, and the limit above which requests are refused with 429.",
            "none",
            [
                Query(gauge("jrm_queue_depth"), "{{instance}}"),
                Query(f"min by (model) ({gauge('jrm_queue_limit')})", "{{model}} limit of a replica"),
            ],
        ),
        Panel(
            "Refused",
            "Requests that were refused as a whole, by reason. overloaded: add replicas. rate_limited: a key at its "
            "own limit. unauthorized: somebody has no key.",
            "reqps",
            [Query(total("jrm_rejections_total", by="reason"), "{{reason}}")],
            stacked=True,
        ),
        Panel(
            "Replies by status",
            "Requests for scores and critiques. 429 and 504: load. Other 4xx: a caller's bug. 500: ours.",
            "reqps",
            [Query(total("jrm_http_requests_total", 'method="POST"', by="status"), "{{status}}")],
            stacked=True,
        ),
        Panel(
            "Other trainers' requests",
            "Requests in another trainer's words, by how they ended. What is neither ok nor partial stopped a run, or "
            "made its client send again.",
            "reqps",
            [Query(total("jrm_wire_requests_total", by="wire, outcome"), "{{wire}} {{outcome}}")],
            stacked=True,
        ),
        Panel(
            "Images decoded",
            "Distinct images of requests, per second: the work of the preprocessing threads.",
            "cps",
            [Query(total("jrm_images_decoded_total"), "{{model}}")],
        ),
        Panel(
            "API keys",
            "Keys in force on each replica; 0 where none is asked for. They should agree wherever there is traffic.",
            "none",
            [Query(gauge("jrm_keys"), "{{instance}}")],
        ),
        Panel(
            "Quotas counted alone",
            "Times that a replica counted a key's candidates without Redis. While it climbs, N replicas grant up to N "
            "times candidates_per_minute.",
            "cps",
            [Query(total("jrm_quota_fallback_total", by="instance"), "{{instance}}")],
        ),
    ],
)
