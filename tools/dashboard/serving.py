"""The rows that show where the time of a request goes: latency, engine and load."""

from __future__ import annotations

from .grafana import Panel, Query, Row
from .promql import gauge, mean, quantile, rate, share, total


def _seconds(title: str, histogram: str, description: str, *, by: str = "model", width: int = 8) -> Panel:
    """Return a panel with the median and the tail of a duration."""
    name = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    queries = [Query(quantile(q, histogram, by=by), f"{name} p{100 * q:g}") for q in (0.5, 0.95, 0.99)]
    return Panel(title, description, "s", queries, width=width)


LATENCY = Row(
    "Latency",
    [
        _seconds(
            "Queue wait",
            "jrm_queue_wait_seconds",
            "Per candidate, from when its images are ready until its batch goes to a device; autoscaling goes by it. "
            "Longer than inference, for longer than a step: the devices are the bottleneck, so add replicas.",
        ),
        _seconds(
            "Preprocessing",
            "jrm_preprocess_seconds",
            "Per request, from admission until its last image is decoded and resized. Near the duration of requests "
            "while devices are idle: give it more CPUs and preprocess_threads.",
        ),
        _seconds(
            "Inference",
            "jrm_inference_seconds",
            "Time of a batch on its device. hang_timeout_s must be far above the tail.",
        ),
        _seconds(
            "Group completion",
            "jrm_group_completion_seconds",
            "Per group, from its first candidate in the queue to its last outcome, when the trainer can go on.",
        ),
        _seconds(
            "Requests",
            "jrm_http_request_duration_seconds",
            "Per request, from its headers to the end of the response, including the upload: what callers see. Much "
            "longer than group completion: a slow network, or images that are large to send.",
            by="route",
        ),
        Panel(
            "Where the time goes",
            "Mean times side by side. Work on the largest: more CPUs, more devices, or a smaller max_batch_tokens.",
            "s",
            [
                Query(mean("jrm_preprocess_seconds"), "{{model}} preprocessing, per request"),
                Query(mean("jrm_queue_wait_seconds"), "{{model}} queue, per candidate"),
                Query(mean("jrm_inference_seconds"), "{{model}} inference, per batch"),
            ],
        ),
    ],
)

ENGINE = Row(
    "Engine",
    [
        Panel(
            "Device busy",
            "Share of the time in which each device worked. Near 100% with a short queue: the device is used well. Low "
            "with a long queue: preprocessing holds it up.",
            "percentunit",
            [Query(rate("jrm_device_busy_seconds_total"), "{{instance}} {{device}} ({{worker}})")],
            highest=1,
        ),
        Panel(
            "Batch fill",
            "Tokens of the mean batch relative to its budget, max_batch_tokens. Low while candidates wait: their "
            "images are prepared too slowly. Low without a queue: there is spare capacity.",
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
            "Mean and 90th percentile. Near 1 under load: callers send candidates one by one. Have them send groups.",
            "none",
            [
                Query(mean("jrm_batch_candidates"), "{{model}} mean"),
                Query(quantile(0.9, "jrm_batch_candidates"), "{{model}} p90"),
            ],
        ),
        Panel(
            "Tokens shared",
            "Share of the tokens that the trie need not compute again, because candidates or passes have a common "
            "prefix. 0 with groups of 12: the edits of a source arrive at different times.",
            "percentunit",
            [Query(share(total("jrm_tokens_total", 'kind="shared"'), total("jrm_tokens_total")), "{{model}}")],
            highest=1,
        ),
        Panel(
            "Tokens computed",
            "Language-model tokens that the devices computed, per second.",
            "cps",
            [Query(total("jrm_tokens_total", 'kind="computed"'), "{{model}}")],
        ),
        Panel(
            "Images reused",
            "Share of the images in batches whose features were still on the device. Near 0 although sources repeat: "
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
            "Batches, or halves of split ones, in which the backend raised, per second. If the log says OutOfMemory: "
            "lower max_batch_tokens.",
            "cps",
            [Query(total("jrm_batch_failures_total", by="instance"), "{{instance}}")],
        ),
        Panel(
            "Workers given up",
            "Workers that hung or were lost, per second. Each is restarted.",
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
            "Candidates admitted and not yet finished, and the limit above which requests are refused with 429.",
            "none",
            [
                Query(gauge("jrm_queue_depth"), "{{instance}}"),
                Query(f"min by (model) ({gauge('jrm_queue_limit')})", "{{model}} limit per replica"),
            ],
        ),
        Panel(
            "Refused",
            "Requests that were refused as a whole, by reason. overloaded: add replicas. rate_limited: a key has "
            "reached its limit. unauthorized: a caller has no valid key.",
            "reqps",
            [Query(total("jrm_rejections_total", by="reason"), "{{reason}}")],
            stacked=True,
        ),
        Panel(
            "Replies by status",
            "Requests for scores and critiques. 429 and 504: load. Other 4xx: a bug of a caller. 500: a bug of ours.",
            "reqps",
            [Query(total("jrm_http_requests_total", 'method="POST"', by="status"), "{{status}}")],
            stacked=True,
        ),
        Panel(
            "Other trainers' requests",
            "Requests in the wire formats of other trainers, by outcome. Any outcome but ok and partial stopped a run, "
            "or made its client retry.",
            "reqps",
            [Query(total("jrm_wire_requests_total", by="wire, outcome"), "{{wire}} {{outcome}}")],
            stacked=True,
        ),
        Panel(
            "Images decoded",
            "Distinct images in requests, per second: the work of the preprocessing threads.",
            "cps",
            [Query(total("jrm_images_decoded_total"), "{{model}}")],
        ),
        Panel(
            "API keys",
            "Number of keys in force on each replica; 0 if none is required. Replicas with traffic should agree.",
            "none",
            [Query(gauge("jrm_keys"), "{{instance}}")],
        ),
        Panel(
            "Quotas counted alone",
            "Times per second that a replica counted a key's candidates without Redis. Above 0, N replicas grant up to "
            "N times candidates_per_minute.",
            "cps",
            [Query(total("jrm_quota_fallback_total", by="instance"), "{{instance}}")],
        ),
    ],
)
