"""A release among others: versions, names, and what NOTES say."""

import shutil
import tomllib

import pytest
import yaml

from helm.chart import CHART, all_of, chart_values, every_case, matches, notes, pods, render
from support.cases import each

ROOT = CHART.parents[1]
LONG = "a-team-with-a-name-that-is-as-long-as-helm-allows-0"
CHART_YAML = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))


def test_the_chart_installs_the_version_of_this_repository():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert CHART_YAML["appVersion"] == project["version"]


@each("names", [("blue", "green"), (f"{LONG}1", f"{LONG}2"), ("jrm", "jrm-canary")])
def test_two_releases_live_in_one_namespace(names):
    first, second = (render(chart_values("everything"), name=name) for name in names)
    taken = [(one["kind"], one["metadata"]["name"]) for one in first + second]
    assert len(set(taken)) == len(taken)
    assert all(len(name) <= 63 for _, name in taken)


def test_no_selector_of_one_release_finds_pods_of_another():
    values = {"redis": {"mode": "internal"}}
    others = [pod["metadata"]["labels"] for _, pod in pods(render(values, name="green"))]
    for service in all_of(render(values, name="blue"), "Service"):
        assert not any(matches(service["spec"]["selector"], labels) for labels in others)


@pytest.mark.parametrize("enabled", [True, False])
def test_another_chart_can_have_this_one_and_switch_it_off(tmp_path, enabled):
    shutil.copytree(CHART, tmp_path / "charts" / "jrm")
    dependency = {"name": "jrm", "version": CHART_YAML["version"], "condition": "jrm.enabled"}
    parent = {"apiVersion": "v2", "name": "platform", "version": "1.0.0", "dependencies": [dependency]}
    (tmp_path / "Chart.yaml").write_text(yaml.safe_dump(parent))
    objects = render({"jrm": {"enabled": enabled}, "global": {"team": "rl"}}, chart=tmp_path)
    assert bool(all_of(objects, "Deployment")) == enabled


def test_a_name_of_ones_own_replaces_all_of_it():
    names = {one["metadata"]["name"] for one in render({"fullnameOverride": "judge"})}
    assert names == {"judge", "judge-score", "judge-score-headless", "judge-test"}


@every_case
def test_notes_name_services_that_are_there(case):
    text = notes(case)
    services = {one["metadata"]["name"] for one in all_of(render(case), "Service")}
    role = "score" if case.get("score", {}).get("enabled", True) else "explain"
    assert {name for name in services if name in text} >= {
        name for name in services if name.endswith((f"-{role}", f"-{role}-headless"))
    }


@each(
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


@each("values", [{}, chart_values("gpu"), chart_values("hub")])
def test_notes_warn_of_nothing_without_a_reason(values):
    assert "WARNING" not in notes(values)
