"""Names and meaning of the metrics."""

from __future__ import annotations

import re
from statistics import fmean, pstdev

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from jrm_service.metrics import Metrics


def families(metrics: Metrics) -> dict[str, str]:
    text = generate_latest(metrics.registry).decode()
    return {family.name: family.type for family in text_string_to_metric_families(text)}


def test_the_names_are_pinned() -> None:
    found = {
        name: kind for name, kind in families(Metrics(CollectorRegistry())).items() if not name.endswith("_created")
    }
    assert found == {
        "jrm_http_requests": "counter",
        "jrm_http_request_duration_seconds": "histogram",
        "jrm_wire_requests": "counter",
        "jrm_ready": "gauge",
        "jrm_sleeping": "gauge",
        "jrm_rejections": "counter",
        "jrm_keys": "gauge",
        "jrm_key_reloads": "counter",
        "jrm_images_decoded": "counter",
        "jrm_preprocess_seconds": "histogram",
        "jrm_queue_depth": "gauge",
        "jrm_queue_limit": "gauge",
        "jrm_queue_wait_seconds": "histogram",
        "jrm_candidates": "counter",
        "jrm_group_completion_seconds": "histogram",
        "jrm_batch_candidates": "histogram",
        "jrm_batch_tokens": "histogram",
        "jrm_batch_tokens_limit": "gauge",
        "jrm_inference_seconds": "histogram",
        "jrm_device_busy_seconds": "counter",
        "jrm_device_busy_ratio": "gauge",
        "jrm_workers": "gauge",
        "jrm_workers_alive": "gauge",
        "jrm_worker_failures": "counter",
        "jrm_batch_failures": "counter",
        "jrm_tokens": "counter",
        "jrm_images": "counter",
        "jrm_feature_cache_bytes": "gauge",
        "jrm_cache_hits": "counter",
        "jrm_cache_misses": "counter",
        "jrm_cache_errors": "counter",
        "jrm_cache_shared": "counter",
        "jrm_cache_entries": "gauge",
        "jrm_redis_calls": "counter",
        "jrm_redis_breaker_state": "gauge",
        "jrm_quota_fallback": "counter",
        "jrm_reward": "histogram",
        "jrm_reward_magnitude": "counter",
        "jrm_reward_squares": "counter",
        "jrm_groups": "counter",
        "jrm_group_reward_std": "histogram",
        "jrm_watch_groups": "counter",
        "jrm_trace_spans": "counter",
        "jrm_build_info": "gauge",
        "jrm_model_info": "gauge",
        "jrm_kernel_info": "gauge",
        "jrm_explanations": "counter",
        "jrm_explain_duration_seconds": "histogram",
        "jrm_explain_tokens": "counter",
        "jrm_explain_running": "gauge",
        "jrm_explain_engine_up": "gauge",
        "jrm_explain_engine_restarts": "counter",
    }


def test_every_metric_has_a_help_text_and_a_plain_name() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    for family in registry.collect():
        assert re.fullmatch(r"jrm(_[a-z]+)+", family.name)
        assert family.documentation.endswith(".")


def test_two_servers_in_one_process_do_not_share_counts() -> None:
    first, second = Metrics(CollectorRegistry()), Metrics(CollectorRegistry())
    first.images_decoded.inc()
    assert first.registry.get_sample_value("jrm_images_decoded_total") == 1
    assert second.registry.get_sample_value("jrm_images_decoded_total") == 0


def test_http_requests_are_counted_by_route_and_status() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.observe_http("POST", "/v1/score", 429, 0.5)
    metrics.observe_http("BREW", "/v1/score", 405, 0.1)
    read = metrics.registry.get_sample_value
    assert read("jrm_http_requests_total", {"method": "POST", "route": "/v1/score", "status": "429"}) == 1
    assert read("jrm_http_requests_total", {"method": "OTHER", "route": "/v1/score", "status": "405"}) == 1
    assert read("jrm_http_request_duration_seconds_sum", {"method": "POST", "route": "/v1/score"}) == 0.5


def test_batches_and_groups_are_observed() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.observe_batch(candidates=3, tokens=1200, waited=[0.1, 0.2, 0.3])
    metrics.observe_run(0, "cuda:0", 0.25)
    metrics.observe_groups([1.0, 2.0])
    read = metrics.registry.get_sample_value
    assert read("jrm_batch_candidates_sum") == 3
    assert read("jrm_batch_tokens_sum") == 1200
    assert read("jrm_queue_wait_seconds_count") == 3
    assert read("jrm_inference_seconds_sum") == 0.25
    assert read("jrm_device_busy_seconds_total", {"worker": "0", "device": "cuda:0"}) == 0.25
    assert read("jrm_group_completion_seconds_sum") == 3.0


def test_what_a_server_does_not_have_shows_no_zero() -> None:
    """A mean or a minimum over replicas would count it."""
    metrics = Metrics(CollectorRegistry())
    gauges = {family.name for family in metrics.registry.collect() if family.type == "gauge" and family.samples}
    assert gauges == {"jrm_keys"}  # none is a number of keys
    metrics.explain_running.set(0)
    assert metrics.registry.get_sample_value("jrm_explain_running") == 0


def test_the_queue_is_read_when_the_metrics_are() -> None:
    metrics = Metrics(CollectorRegistry())
    depth = 0
    metrics.watch_line(depth=lambda: depth, limit=64)
    metrics.watch_workers(batch_tokens=16_384, alive=lambda: 1, workers=2)
    depth = 7
    read = metrics.registry.get_sample_value
    assert read("jrm_queue_depth") == 7
    assert (read("jrm_queue_limit"), read("jrm_workers"), read("jrm_workers_alive")) == (64, 2, 1)
    assert read("jrm_batch_tokens_limit") == 16_384


# --- rewards ---


class Rewards:
    """What a server counted of one dimension; "" is the reward."""

    def __init__(self, metrics: Metrics, dimension: str) -> None:
        self._metrics, self._dimension = metrics, dimension

    def __call__(self, name: str, **labels: str) -> float | None:
        return self._metrics.registry.get_sample_value(name, {"dimension": self._dimension, **labels})

    def mean_and_std(self) -> tuple[float, float]:
        """As a dashboard computes them."""
        count = self("jrm_reward_count")
        positive, negative = (self("jrm_reward_magnitude_total", sign=sign) for sign in ("positive", "negative"))
        mean = (positive - negative) / count
        return mean, (self("jrm_reward_squares_total") / count - mean * mean) ** 0.5


def test_mean_and_deviation_of_rewards_of_both_signs_can_be_told() -> None:
    metrics = Metrics(CollectorRegistry())
    values = [-7.5, -0.25, 0.0, 0.125, 3.0]
    for value in values:
        metrics.observe_score(value, {"visual_quality": 2 * value})
    assert Rewards(metrics, "").mean_and_std() == pytest.approx((fmean(values), pstdev(values)))
    assert Rewards(metrics, "visual_quality").mean_and_std() == pytest.approx((2 * fmean(values), 2 * pstdev(values)))


def test_rewards_fall_into_buckets_of_both_signs() -> None:
    metrics = Metrics(CollectorRegistry())
    for value in (-300.0, -0.15, 0.0, 0.15, 300.0):
        metrics.observe_score(value, {})
    below = {bound: Rewards(metrics, "")("jrm_reward_bucket", le=bound) for bound in ("-100.0", "-0.1", "0.0", "100.0")}
    assert below == {"-100.0": 1, "-0.1": 2, "0.0": 3, "100.0": 4}
    assert Rewards(metrics, "")("jrm_reward_count") == 5


def test_what_only_grows_is_a_counter_whatever_the_sign() -> None:
    metrics = Metrics(CollectorRegistry())
    before: dict[tuple[str, str], float] = {}
    for value in (-3.0, 2.0, -1.0, 0.0):
        metrics.observe_score(value, {})
        for family in metrics.registry.collect():
            for sample in family.samples if family.type == "counter" else ():
                key = sample.name, str(sample.labels)
                assert sample.value >= before.get(key, 0.0)
                before[key] = sample.value


@pytest.mark.parametrize(
    ("rewards", "spread"), [([0.1] * 12, "zero"), ([0.1] * 11 + [0.2], "some"), ([0.1], None), ([], None)]
)
def test_a_group_whose_rewards_are_all_equal_has_no_spread(rewards, spread) -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.observe_spread(rewards)
    read = metrics.registry.get_sample_value
    counted = {name: read("jrm_groups_total", {"spread": name}) for name in ("zero", "some")}
    assert counted == {name: 1 if name == spread else None for name in counted}
    assert read("jrm_group_reward_std_bucket", {"le": "0.0"}) == (spread == "zero")
    assert read("jrm_group_reward_std_sum") == pytest.approx(pstdev(rewards) if spread else 0.0)


def test_the_served_model_is_named_and_its_counts_begin_at_zero() -> None:
    metrics = Metrics(CollectorRegistry())
    facts = {"device": "cuda:0,cuda:1", "dtype": "bfloat16", "engine": None}
    metrics.show_model(model="m", fingerprint="f", facts=facts | {"dimensions": ["visual_quality"]})
    shown = facts | {"model": "m", "fingerprint": "f", "engine": "none"}
    assert metrics.registry.get_sample_value("jrm_model_info", shown) == 1
    metrics.expect_rewards(["visual_quality"])
    for dimension in ("", "visual_quality"):
        assert Rewards(metrics, dimension)("jrm_reward_count") == 0
        assert Rewards(metrics, dimension)("jrm_reward_magnitude_total", sign="negative") == 0
    assert metrics.registry.get_sample_value("jrm_groups_total", {"spread": "zero"}) == 0
