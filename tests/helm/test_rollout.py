"""How pods start, end, roll and are drained."""

import pytest

from helm.chart import all_of, chart_with, of_role, one_of, pod, render, server
from support.cases import each


def deployment(values=None):
    return of_role(render(values), "Deployment", "score")["spec"]


def annotations(values=None):
    return deployment(values)["template"]["metadata"]["annotations"]


def budget(values=None):
    return one_of(render(values), "PodDisruptionBudget")["spec"]


def test_each_probe_has_its_own_route():
    container = server()
    for name, path in (("startup", "startup"), ("liveness", "live"), ("readiness", "ready")):
        assert container[f"{name}Probe"]["httpGet"] == {"path": f"/health/{path}", "port": "http"}


def test_a_large_checkpoint_has_half_an_hour_to_load():
    probe = server()["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 1800
    assert deployment()["progressDeadlineSeconds"] > 1800


@each(
    ("shutdown", "total"),
    [({}, 75), ({"preStopSeconds": 20, "graceSeconds": 90}, 115), ({"preStopSeconds": 0, "graceSeconds": 0.5}, 6)],
)
def test_kubernetes_waits_for_the_pause_the_drain_and_five_seconds(shutdown, total):
    assert pod({"shutdown": shutdown})["terminationGracePeriodSeconds"] == total


def test_the_pause_and_the_drain_are_those_of_the_values():
    values = {"shutdown": {"preStopSeconds": 20, "graceSeconds": 90}}
    assert server(values)["lifecycle"] == {"preStop": {"exec": {"command": ["sleep", "20"]}}}
    assert of_role(render(values), "ConfigMap", "score")["data"]["JRM_GRACE_S"] == "90"


def test_a_rollout_needs_no_spare_gpu():
    assert deployment()["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1},
    }


def test_with_a_spare_gpu_the_successor_comes_first():
    values = {"score": {"strategy": {"maxSurge": "25%", "maxUnavailable": 0}}}
    assert deployment(values)["strategy"]["rollingUpdate"] == {"maxSurge": "25%", "maxUnavailable": 0}


@each(
    "values",
    [
        {"settings": {"max_queue": 2000}},
        {"score": {"settings": {"dtype": "float32"}}},
        {"shutdown": {"graceSeconds": 61}},
        {"redis": {"mode": "internal"}},
    ],
)
def test_pods_roll_when_their_configuration_changes(values):
    assert annotations(values)["checksum/config"] != annotations()["checksum/config"]


@each("values", [{"explain": {"enabled": True, "settings": {"explain_context": 512}}}, {"score": {"replicas": 5}}])
def test_pods_stay_when_something_else_changes(values):
    assert annotations(values) == annotations()


AUTOSCALED = {"score": {"autoscaling": {"kind": "hpa", "minReplicas": 2}}}


def test_without_autoscaling_the_values_say_how_many_pods():
    assert deployment({"score": {"replicas": 3}})["replicas"] == 3


def test_with_autoscaling_the_first_install_says_no_number():
    assert "replicas" not in deployment(AUTOSCALED)


@pytest.mark.parametrize("running", [4, 1, 0])
def test_with_autoscaling_an_upgrade_says_the_number_that_runs(tmp_path, running):
    """No other: server-side apply refuses to change what the autoscaler has set. It sees to minReplicas by itself."""
    asked = 'lookup "apps/v1" "Deployment" $.Release.Namespace (printf "%s-%s" (include "jrm.fullname" $) $name)'
    found = f'dict "spec" (dict "replicas" {running})'
    chart = chart_with(tmp_path, "templates/deployment.yaml", asked, found)
    assert of_role(render(AUTOSCALED, chart=chart), "Deployment", "score")["spec"]["replicas"] == running


def test_a_drain_takes_one_pod_at_a_time_and_any_that_never_became_ready():
    assert budget()["maxUnavailable"] == 1
    assert budget()["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_a_budget_has_one_bound():
    values = {"score": {"replicas": 4, "podDisruptionBudget": {"minAvailable": "75%"}}}
    assert budget(values)["minAvailable"] == "75%"
    assert "maxUnavailable" not in budget(values)


def test_there_need_be_no_budget():
    assert not all_of(render({"score": {"podDisruptionBudget": {"enabled": False}}}), "PodDisruptionBudget")
