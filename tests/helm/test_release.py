"""A release among others: versions, names, `helm test`, and what NOTES say."""

import base64
import tomllib
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from helm.chart import CHART, all_of, chart_values, matches, notes, one_of, pods, render
from jrm_client.cli import app

ROOT = CHART.parents[1]
LONG = "a-team-with-a-name-that-is-as-long-as-helm-allows-0"
CHART_YAML = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
SCENE = sorted((CHART / "files" / "scene").glob("*.png"))


def test_the_chart_installs_the_version_of_this_repository():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert CHART_YAML["appVersion"] == project["version"]


@pytest.mark.parametrize("names", [("blue", "green"), (f"{LONG}1", f"{LONG}2"), ("jrm", "jrm-canary")])
def test_two_releases_live_in_one_namespace(names):
    first, second = (render(chart_values("everything") | {"nameOverride": ""}, name=name) for name in names)
    taken = [(one["kind"], one["metadata"]["name"]) for one in first + second]
    assert len(set(taken)) == len(taken)
    assert all(len(name) <= 63 for _, name in taken)


def test_no_selector_of_one_release_finds_pods_of_another():
    values = {"redis": {"mode": "internal"}}
    others = [pod["metadata"]["labels"] for _, pod in pods(render(values, name="green"))]
    for service in all_of(render(values, name="blue"), "Service"):
        assert not any(matches(service["spec"]["selector"], labels) for labels in others)


def test_a_name_of_ones_own_replaces_all_of_it():
    names = {one["metadata"]["name"] for one in render({"fullnameOverride": "judge"})}
    assert names == {"judge", "judge-score", "judge-score-headless", "judge-test"}


def helm_test(values):
    pod = one_of(render(values), "Pod")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert pod["spec"]["restartPolicy"] == "Never"
    (container,) = pod["spec"]["containers"]
    return container


@pytest.mark.parametrize(("values", "role"), [({}, "score"), (chart_values("explain-only"), "explain")])
def test_helm_test_is_a_command_that_the_client_has(values, role):
    name, *arguments = helm_test(values)["args"]
    assert name == role
    command = get_command(app)
    with command.make_context("jrm", [name, *arguments]) as context:
        _, parsed, rest = command.resolve_command(context, [name, *arguments])
        options = parsed.make_context(name, list(rest)).params
    assert options["instruction"] == "make the red square blue"
    assert options["url"] == [f"http://rl-jrm-{role}:8000"]
    assert options["as_json"] is True


def test_its_images_are_those_of_the_example():
    mounted = {Path(one).name for one in helm_test({})["args"] if one.endswith(".png")}
    assert mounted == {path.name for path in SCENE}
    for name, data in one_of(render(), "ConfigMap", "rl-jrm-test")["binaryData"].items():
        assert base64.b64decode(data) == (ROOT / "examples" / "scene" / name).read_bytes()


def test_its_images_are_there_before_it_starts():
    annotations = one_of(render(), "ConfigMap", "rl-jrm-test")["metadata"]["annotations"]
    assert annotations["helm.sh/hook"] == "test"
    assert int(annotations["helm.sh/hook-weight"]) < 0


def test_with_keys_it_has_one_or_there_is_no_test():
    keys = {"apiKeys": {"existingSecret": "jrm-keys"}}
    assert not all_of(render(keys), "Pod")
    (variable,) = helm_test(keys | {"test": {"apiKeySecret": {"name": "one-key"}}})["env"]
    assert variable["name"] == "JRM_API_KEY"
    assert variable["valueFrom"] == {"secretKeyRef": {"name": "one-key", "key": "api-key"}}


def test_notes_name_services_that_are_there(case):
    text = notes(case)
    services = {one["metadata"]["name"] for one in all_of(render(case), "Service")}
    role = "score" if case.get("score", {}).get("enabled", True) else "explain"
    assert {name for name in services if name in text} >= {
        name for name in services if name.endswith((f"-{role}", f"-{role}-headless"))
    }


@pytest.mark.parametrize(
    ("values", "warning"),
    [
        ({"ingress": {"enabled": True, "hosts": ["jrm.example.com"]}}, "no API keys"),
        ({"service": {"type": "LoadBalancer"}}, "no API keys"),
        ({"score": {"autoscaling": {"kind": "hpa"}}}, "autoscaling reads metrics"),
        ({"monitoring": {"rules": {"enabled": True}}}, "there are alerts"),
        ({"score": {"gpus": 1}}, "GPUs are taken for the bundled checkpoint"),
    ],
)
def test_notes_warn(values, warning):
    assert f"WARNING: {warning}" in notes(values)


@pytest.mark.parametrize("values", [{}, chart_values("gpu"), chart_values("hub")])
def test_notes_warn_of_nothing_without_a_reason(values):
    assert "WARNING" not in notes(values)
