"""Replicas by queue wait: an HPA or a ScaledObject, with the same signals."""

import json
import re
import subprocess

import yaml
from prometheus_client import CollectorRegistry
from tools.fetch_prometheus import find

from helm.chart import CHART, all_of, chart_values, of_role, one_of, render
from jrm_service.metrics import Metrics
from support.cases import each

ADAPTER = yaml.safe_load((CHART / "files" / "prometheus-adapter.yaml").read_text(encoding="utf-8"))["rules"]["external"]
SERIES = 'namespace="rewards",job="rl-jrm"'


def hpa(values=None):
    return one_of(render(values or chart_values("hpa")), "HorizontalPodAutoscaler")["spec"]


def scaled(values=None):
    return one_of(render(values or chart_values("keda")), "ScaledObject")["spec"]


def query_of(metric):
    (rule,) = [one for one in ADAPTER if one["name"]["as"] == metric]
    return rule["metricsQuery"].replace("<<.LabelMatchers>>", SERIES)


@each(
    ("kind", "kinds"),
    [("none", set()), ("hpa", {"HorizontalPodAutoscaler"}), ("keda", {"ScaledObject"})],
)
def test_there_is_one_autoscaler_or_none(kind, kinds):
    keda = {"serverAddress": "http://prometheus:9090"} if kind == "keda" else {}
    objects = render({"score": {"autoscaling": {"kind": kind, "keda": keda}}})
    assert {one["kind"] for one in objects} & {"HorizontalPodAutoscaler", "ScaledObject"} == kinds


@each("name", ["hpa", "keda"])
def test_it_scales_the_deployment_of_score(name):
    objects = render(chart_values(name))
    target = (all_of(objects, "HorizontalPodAutoscaler") or all_of(objects, "ScaledObject"))[0]["spec"][
        "scaleTargetRef"
    ]
    deployment = of_role(objects, "Deployment", "score")
    assert target == {"apiVersion": "apps/v1", "kind": "Deployment", "name": deployment["metadata"]["name"]}
    assert "replicas" not in deployment["spec"]


def test_the_hpa_wants_pods_by_wait_and_keeps_those_that_work():
    wait, busy = (metric["external"] for metric in hpa()["metrics"])
    assert (wait["metric"]["name"], wait["target"]) == (
        "jrm_queue_wait_seconds_p95",
        {"type": "Value", "value": "750m"},
    )
    assert (busy["metric"]["name"], busy["target"]) == (
        "jrm_devices_busy",
        {"type": "AverageValue", "averageValue": "4"},
    )


def test_the_hpa_reads_what_the_adapter_offers_and_only_of_its_release():
    for metric in hpa()["metrics"]:
        assert metric["external"]["metric"]["name"] in {rule["name"]["as"] for rule in ADAPTER}
        assert metric["external"]["metric"]["selector"] == {"matchLabels": {"job": "rl-jrm"}}


def test_keda_asks_the_same_of_prometheus():
    wait, busy = scaled()["triggers"]
    assert wait["metadata"]["query"] == query_of("jrm_queue_wait_seconds_p95")
    assert (wait["metricType"], wait["metadata"]["threshold"]) == ("Value", "2.5")
    assert busy["metadata"]["query"] == query_of("jrm_devices_busy")
    assert (busy["metricType"], busy["metadata"]["threshold"]) == ("AverageValue", "1")


def test_keda_takes_no_pod_away_when_it_is_told_nothing():
    for trigger in scaled()["triggers"]:
        assert trigger["type"] == "prometheus"
        assert trigger["metadata"]["ignoreNullValues"] == "false"


def test_keda_shows_prometheus_what_the_secret_has():
    for trigger in scaled()["triggers"]:
        assert trigger["authenticationRef"] == {"name": "prometheus"}
        assert trigger["metadata"]["authModes"] == "tls,basic"


@each("keda", [{}, {"authentication": "cloud", "authModes": ""}])
def test_keda_shows_nothing_by_itself_or_when_its_own_identity_counts(keda):
    keda |= {"serverAddress": "http://prometheus:9090"}
    for trigger in scaled({"score": {"autoscaling": {"kind": "keda", "keda": keda}}})["triggers"]:
        assert "authModes" not in trigger["metadata"]
        assert ("authenticationRef" in trigger) == ("authentication" in keda)


def test_the_wait_that_is_aimed_at_needs_no_guess_between_buckets():
    metrics = Metrics(CollectorRegistry())
    metrics.queue_wait_seconds.observe(1)
    edges = {sample.labels.get("le") for sample in metrics.queue_wait_seconds.collect()[0].samples}
    default = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))["score"]["autoscaling"]
    assert str(default["queueWaitSeconds"]) in edges


def test_without_a_pod_nobody_waits():
    assert scaled()["minReplicaCount"] == 1
    assert scaled()["maxReplicaCount"] == 16


def test_pods_come_at_once_but_at_most_double_while_they_load_and_go_slowly():
    for behavior in (hpa()["behavior"], scaled()["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]):
        assert behavior["scaleUp"]["stabilizationWindowSeconds"] == 0
        assert behavior["scaleUp"]["policies"] == [{"type": "Percent", "value": 100, "periodSeconds": 300}]
        assert behavior["scaleDown"]["stabilizationWindowSeconds"] == 600
        assert behavior["scaleDown"]["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 120}]


def test_critiques_have_a_fixed_number_of_pods():
    values = chart_values("hpa") | {"explain": {"enabled": True, "replicas": 3}}
    assert of_role(render(values), "Deployment", "explain")["spec"]["replicas"] == 3


def test_the_queries_are_of_metrics_that_a_server_has():
    collectors = [one for one in vars(Metrics(CollectorRegistry())).values() if hasattr(one, "describe")]
    suffixes = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_count", "_sum"]}
    known = {one.describe()[0].name + end for one in collectors for end in suffixes[one.describe()[0].type]}
    named = {name for rule in ADAPTER for name in re.findall(r"jrm_\w+", rule["metricsQuery"] + rule["seriesQuery"])}
    assert len(named) == 3
    assert named <= known


def test_the_adapter_finds_its_series_before_the_first_batch():
    """A metric with labels has no sample until something happened."""
    registry = CollectorRegistry()
    Metrics(registry).workers.set(2)  # as each server that scores does when it has loaded
    present = {sample.name for family in registry.collect() for sample in family.samples}
    for rule in ADAPTER:
        assert re.match(r"\w+", rule["seriesQuery"])[0] in present
        assert re.fullmatch(rule["name"]["matches"], re.match(r"\w+", rule["seriesQuery"])[0])


IDLE = {
    'jrm_queue_wait_seconds_bucket{M,le="1"}': "0x20",
    'jrm_queue_wait_seconds_bucket{M,le="+Inf"}': "0x20",
    "jrm_workers{M}": "2x20",
}
EXPLAINING = {name: values for name, values in IDLE.items() if "workers" not in name}
WAITING = {  # all candidates wait for 4 to 8 s, one device works all the time and one half of it
    'jrm_queue_wait_seconds_bucket{M,le="4"}': "0x20",
    'jrm_queue_wait_seconds_bucket{M,le="8"}': "0+30x20",
    'jrm_queue_wait_seconds_bucket{M,le="+Inf"}': "0+30x20",
    "jrm_workers{M}": "2x20",
    'jrm_device_busy_seconds_total{M,worker="0"}': "0+15x20",
    'jrm_device_busy_seconds_total{M,worker="1"}': "0+7.5x20",
}


@each(
    ("series", "wait", "busy"),
    [(WAITING, 7.8, 1.5), (IDLE, 0, 0), (EXPLAINING, None, None), ({}, None, None)],
    ids=["waiting", "idle", "only critiques", "not scraped"],
)
def test_prometheus_says_how_long_and_how_many_and_nothing_of_pods_that_it_does_not_see(series, wait, busy, tmp_path):
    def expected(metric, value):
        rounded = f"round({query_of(metric)}, 0.1)"
        samples = [] if value is None else [{"labels": "{}", "value": value}]
        return {"expr": rounded, "eval_time": "4m", "exp_samples": samples}

    test = {
        "interval": "15s",
        "input_series": [{"series": name.replace("M", SERIES), "values": values} for name, values in series.items()],
        "promql_expr_test": [expected("jrm_queue_wait_seconds_p95", wait), expected("jrm_devices_busy", busy)],
    }
    (tmp_path / "test.yaml").write_text(json.dumps({"evaluation_interval": "15s", "tests": [test]}))
    done = subprocess.run(
        [find("promtool"), "test", "rules", "test.yaml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
