"""Names and meaning of the metrics."""

from __future__ import annotations

import re

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


def test_the_queue_is_read_when_the_metrics_are() -> None:
    metrics = Metrics(CollectorRegistry())
    depth = 0
    metrics.watch_queue(depth=lambda: depth, limit=64, alive=lambda: 1, workers=2)
    depth = 7
    read = metrics.registry.get_sample_value
    assert read("jrm_queue_depth") == 7
    assert (read("jrm_queue_limit"), read("jrm_workers"), read("jrm_workers_alive")) == (64, 2, 1)
