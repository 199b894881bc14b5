"""All Prometheus metrics of the service. Times are in seconds, ratios from 0 to 1."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric

# Callers may send any method; those that are not listed count as OTHER, so that labels stay few.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# From an instant fake backend (sub-millisecond) to a deadline of minutes.
_SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
)
_CANDIDATES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024)
_TOKENS = tuple(2**power for power in range(7, 19))  # 128 to 262,144
# Fixed, so that servers and checkpoints can be compared: 1, 2, 5 per decade and both signs, for heads of any scale.
_MAGNITUDES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
_REWARDS = (*(-value for value in reversed(_MAGNITUDES)), 0.0, *_MAGNITUDES)
_SPREADS = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_POOLED = ""  # the label of the reward itself; no dimension can have this name


class Work(Protocol):
    """The numbers of a finished batch that are counted."""

    @property
    def tokens_computed(self) -> int: ...  # noqa: D102 - see scoring.backend.Scored
    @property
    def images_encoded(self) -> int: ...  # noqa: D102
    @property
    def images_reused(self) -> int: ...  # noqa: D102
    @property
    def feature_bytes(self) -> int: ...  # noqa: D102


class _Distribution:
    """The collectors of one dimension, looked up once, because every candidate uses them."""

    def __init__(self, metrics: Metrics, dimension: str) -> None:
        self._histogram = metrics.rewards.labels(dimension)
        self._positive = metrics.reward_magnitudes.labels(dimension, "positive")
        self._negative = metrics.reward_magnitudes.labels(dimension, "negative")
        self._squares = metrics.reward_squares.labels(dimension)

    def observe(self, value: float) -> None:
        self._histogram.observe(value)
        (self._positive if value > 0.0 else self._negative).inc(abs(value))
        self._squares.inc(value * value)


def known_method(method: str) -> str:
    """The method, or OTHER if it is not HTTP's."""
    return method if method in _METHODS else "OTHER"


def begin(counter: Counter, *labels: str) -> None:
    """Create a series at 0: a rate or increase misses what a series counted before its first scrape."""
    counter.labels(*labels)


class _Gauge(Gauge):
    """A gauge without labels that has no sample before its first value.

    The client library begins at 0. But a server without a queue must not report a depth of 0: such zeros would distort
    every mean and every minimum over replicas.
    """

    _known = False

    def inc(self, amount: float = 1) -> None:
        super().inc(amount)
        self._known = True

    def dec(self, amount: float = 1) -> None:
        super().dec(amount)
        self._known = True

    def set(self, value: float) -> None:
        super().set(value)
        self._known = True

    def set_function(self, f: Callable[[], float]) -> None:
        super().set_function(f)
        self._known = True

    def collect(self) -> Iterable[Metric]:
        return super().collect() if self._known else self.describe()


class Metrics:
    """The collectors of one server, registered with ``registry`` and never with the global one.

    So several servers can run in one process, and a test reads only what it caused.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            kind = Gauge if labels else _Gauge
            return kind(name, text, labels, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def histogram(name: str, text: str, *labels: str, buckets: Iterable[float] = _SECONDS) -> Histogram:
            return Histogram(name, text, labels, registry=registry, buckets=tuple(buckets))

        self.http_requests = counter(
            "jrm_http_requests_total", "HTTP requests that were answered.", "method", "route", "status"
        )
        self.http_request_seconds = histogram(
            "jrm_http_request_duration_seconds", "From the request's head to the end of its reply.", "method", "route"
        )
        self.wire_requests = counter(
            "jrm_wire_requests_total",
            "Requests in another wire format, by outcome: ok, partial or an error code.",
            "wire",
            "outcome",
        )
        self.ready = gauge(
            "jrm_ready", "1 while a part of the server, score or explain, accepts requests, else 0.", "part"
        )
        self.rejections = counter(
            "jrm_rejections_total", "Requests that were refused as a whole, by error code.", "reason"
        )
        self.sleeping = gauge("jrm_sleeping", "1 while the server has released its devices, until /v1/wake.")
        self.keys = gauge("jrm_keys", "API keys in force.")
        self.keys.set(0)  # also without a keys file, so that a replica without one stands out among others
        self.key_reloads = counter(
            "jrm_key_reloads_total", "Changes of the keys file: ok, or failed (the keys in force stay).", "result"
        )
        self.images_decoded = counter("jrm_images_decoded_total", "Images decoded from untrusted bytes.")
        self.preprocess_seconds = histogram(
            "jrm_preprocess_seconds", "From admission of a request until its last candidate was preprocessed."
        )
        self.queue_depth = gauge("jrm_queue_depth", "Candidates admitted and not finished, those on a device included.")
        self.queue_limit = gauge("jrm_queue_limit", "Candidates that may be admitted and not finished at once.")
        self.queue_wait_seconds = histogram(
            "jrm_queue_wait_seconds", "Per candidate, from being put into the queue until its batch went to a device."
        )
        self.candidates = counter(
            "jrm_candidates_total", "Candidates that were admitted, by outcome: ok or an error code.", "outcome"
        )
        self.group_completion_seconds = histogram(
            "jrm_group_completion_seconds", "Per group, from its first candidate in the queue to its last score."
        )
        self.batch_candidates = histogram(
            "jrm_batch_candidates", "Candidates in each batch that went to a device.", buckets=_CANDIDATES
        )
        self.batch_tokens = histogram(
            "jrm_batch_tokens", "Tokens that each batch counts against the budget.", buckets=_TOKENS
        )
        self.batch_tokens_limit = gauge(
            "jrm_batch_tokens_limit", "Budget of a batch, in the tokens of jrm_batch_tokens."
        )
        self.tokens = counter(
            "jrm_tokens_total",
            "Language-model tokens of scored candidates: computed, or shared with another candidate or pass.",
            "kind",
        )
        self.images = counter(
            "jrm_images_total",
            "Images of batches: encoded by the vision tower, or reused from the feature cache.",
            "kind",
        )
        self.feature_cache_bytes = gauge(
            "jrm_feature_cache_bytes", "Bytes of image features that are held on the device.", "worker", "device"
        )
        self.inference_seconds = histogram("jrm_inference_seconds", "Per batch, the time on its device.")
        self.device_busy_seconds = counter(
            "jrm_device_busy_seconds_total",
            "Time that a worker's device spent on batches.",
            "worker",
            "device",
        )
        self.device_busy_ratio = gauge(
            "jrm_device_busy_ratio", "Share of about the last minute in which the device worked.", "worker", "device"
        )
        self.workers = gauge("jrm_workers", "Configured workers.")
        self.workers_alive = gauge("jrm_workers_alive", "Workers that accept work: neither hung nor dead.")
        self.worker_failures = counter(
            "jrm_worker_failures_total",
            "Workers that hung or died.",
            "worker",
            "device",
            "reason",
        )
        self.batch_failures = counter(
            "jrm_batch_failures_total", "Batches, including parts of split ones, in which the backend raised."
        )
        self.cache_hits = counter("jrm_cache_hits_total", "Scores found in the cache, in memory or in redis.", "tier")
        self.cache_misses = counter(
            "jrm_cache_misses_total", "Scores that were not found in the cache, for whatever reason.", "tier"
        )
        self.cache_errors = counter(
            "jrm_cache_errors_total",
            "Cached scores that could not be used: read, write (failed), invalid (not a score), dropped (not written).",
            "tier",
            "reason",
        )
        self.cache_shared = counter(
            "jrm_cache_shared_total", "Candidates that got the score of an identical one that was already in progress."
        )
        self.cache_entries = gauge("jrm_cache_entries", "Scores that are kept in memory.")
        self.redis_calls = counter(
            "jrm_redis_calls_total",
            "Redis commands, by outcome: ok, timeout, connection, reply (an error), or skipped (circuit open).",
            "operation",
            "outcome",
        )
        self.redis_breaker_state = gauge(
            "jrm_redis_breaker_state", "The circuit to Redis: 0 closed (calls go through), 1 half open, 2 open."
        )
        self.explanations = counter(
            "jrm_explanations_total", "Critiques, by outcome: ok, truncated, or an error code.", "outcome"
        )
        self.explain_seconds = histogram(
            "jrm_explain_duration_seconds", "Per critique, from its prompt until it was written."
        )
        self.explain_tokens = counter("jrm_explain_tokens_total", "Tokens of the language head.", "kind")
        self.explain_running = gauge("jrm_explain_running", "Critiques that the engine is writing or has queued.")
        self.explain_engine_up = gauge("jrm_explain_engine_up", "1 while the engine that writes critiques answers.")
        self.explain_engine_restarts = counter(
            "jrm_explain_engine_restarts_total", "Restarts of the engine after it died or hung."
        )

        self.quota_fallbacks = counter(
            "jrm_quota_fallback_total", "Times that this server counted a key's candidates locally, without Redis."
        )
        self.rewards = histogram(
            "jrm_reward",
            'Mean of each dimension of each candidate that got a score, cached or not; dimension "" is the reward.',
            "dimension",
            buckets=_REWARDS,
        )
        # A sum of numbers with both signs goes up and down, and rate() takes every decrease for a restart: hence two.
        self.reward_magnitudes = counter(
            "jrm_reward_magnitude_total",
            "Sum of the absolute values behind jrm_reward, separately for positive and negative ones.",
            "dimension",
            "sign",
        )
        self.reward_squares = counter(
            "jrm_reward_squares_total", "Sum of the squares of the values behind jrm_reward.", "dimension"
        )
        self._distributions: dict[str, _Distribution] = {}
        self.groups = counter(
            "jrm_groups_total",
            "Groups with two scores or more: zero if all rewards are equal, which teaches GRPO nothing, else some.",
            "spread",
        )
        self.group_reward_std = histogram(
            "jrm_group_reward_std",
            "Per group with two scores or more, the standard deviation of its rewards.",
            buckets=_SPREADS,
        )
        self.watch_groups = counter(
            "jrm_watch_groups_total",
            "Scored groups for /v1/watch: kept, kept without_pictures, or failed. Only with keep_recent.",
            "outcome",
        )
        self.trace_spans = counter(
            "jrm_trace_spans_total",
            "Spans of traces: sent to the collector, or failed (not accepted, and lost).",
            "outcome",
        )
        self.build_info = gauge(
            "jrm_build_info", "1, with the versions of this server.", "version", "python", "torch", "transformers"
        )
        self.model_info = gauge(
            "jrm_model_info",
            "1 for the checkpoint that is served, once it is loaded.",
            "model",
            "fingerprint",
            "device",
            "dtype",
            "engine",
        )
        self.kernel_info = gauge(
            "jrm_kernel_info",
            "1 for the kernel of each part of the model: plain layers, or kernels that were verified at start-up.",
            "part",
            "kernel",
        )

    def observe_batch(self, *, candidates: int, tokens: int, waited: Iterable[float]) -> None:
        """Count a batch that goes to a device, and the seconds that each of its candidates has waited."""
        self.batch_candidates.observe(candidates)
        self.batch_tokens.observe(tokens)
        for seconds in waited:
            self.queue_wait_seconds.observe(seconds)

    def observe_run(self, worker: int, device: str, seconds: float) -> None:
        """Count the time that a batch took on a worker's device."""
        self.inference_seconds.observe(seconds)
        self.device_busy_seconds.labels(str(worker), device).inc(seconds)

    def observe_work(self, worker: int, device: str, tokens: int, work: Work) -> None:
        """Count the actual work for a batch of ``tokens`` in total."""
        self.tokens.labels("computed").inc(work.tokens_computed)
        self.tokens.labels("shared").inc(max(0, tokens - work.tokens_computed))
        self.images.labels("encoded").inc(work.images_encoded)
        self.images.labels("reused").inc(work.images_reused)
        self.feature_cache_bytes.labels(str(worker), device).set(work.feature_bytes)

    def observe_groups(self, seconds: Iterable[float]) -> None:
        """Count completed groups, each with its completion time in seconds."""
        for value in seconds:
            self.group_completion_seconds.observe(value)

    def observe_score(self, reward: float, dimensions: Mapping[str, float]) -> None:
        """Count a score that a candidate got: its reward, and the mean of each dimension. All are finite."""
        for dimension, value in ((_POOLED, reward), *dimensions.items()):
            self._distribution(dimension).observe(value)

    def show_build(self, version: str, torch: str | None, transformers: str | None) -> None:
        """Show the versions that affect scores; None for a package that is not installed."""
        self.build_info.labels(version, platform.python_version(), torch or "none", transformers or "none").set(1)

    def show_model(self, *, model: str, fingerprint: str, facts: Mapping[str, object]) -> None:
        """Show the served model; of the facts, ``device``, ``dtype``, ``engine`` and ``kernels`` are shown."""
        self.model_info.clear()  # of the model that was served before
        self.kernel_info.clear()
        shown = (str(facts.get(name) or "none") for name in ("device", "dtype", "engine"))
        self.model_info.labels(model, fingerprint, *shown).set(1)
        kernels = facts.get("kernels")
        for part, kernel in kernels.items() if isinstance(kernels, Mapping) else ():
            self.kernel_info.labels(part, kernel).set(1)

    def expect_rewards(self, dimensions: Iterable[str]) -> None:
        """Create the series of each dimension, and of the reward itself."""
        for dimension in (_POOLED, *dimensions):
            self._distribution(dimension)
        for spread in ("zero", "some"):
            begin(self.groups, spread)

    def _distribution(self, dimension: str) -> _Distribution:
        if dimension not in self._distributions:
            self._distributions[dimension] = _Distribution(self, dimension)
        return self._distributions[dimension]

    def observe_spread(self, rewards: Sequence[float]) -> None:
        """Count a group by the spread of its rewards; groups with fewer than two rewards do not count."""
        if len(rewards) < 2:
            return
        equal = min(rewards) == max(rewards)
        self.groups.labels("zero" if equal else "some").inc()
        mean = sum(rewards) / len(rewards)
        std = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / len(rewards))
        self.group_reward_std.observe(0.0 if equal else std)  # the mean, rounded, may differ from equal rewards

    def observe_http(self, method: str, route: str, status: int, seconds: float | None) -> None:
        """Count one answered HTTP request, and its ``seconds`` unless they are None.

        ``route`` is the path template, never the raw path: labels must be few.
        """
        method = known_method(method)
        self.http_requests.labels(method, route, str(status)).inc()
        if seconds is not None:
            self.http_request_seconds.labels(method, route).observe(seconds)

    def watch_line(self, *, depth: Callable[[], float], limit: int) -> None:
        """Have every scrape read how many candidates have a place in the queue."""
        self.queue_depth.set_function(depth)
        self.queue_limit.set(limit)

    def watch_workers(self, *, batch_tokens: int, alive: Callable[[], float], workers: int) -> None:
        """Have every scrape read how many workers are alive."""
        self.batch_tokens_limit.set(batch_tokens)
        self.workers.set(workers)
        self.workers_alive.set_function(alive)
