"""What every object must be, whatever the values."""

import re

import kubernetes_validate
import pytest

from helm.chart import all_of, every_case, matches, pods, render

# Objects of custom resources; their tests look at them field by field.
CUSTOM = {"HTTPRoute", "PrometheusRule", "ScaledObject", "ServiceMonitor"}
NEWEST = kubernetes_validate.latest_version()
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@pytest.mark.parametrize("version", ["1.31", NEWEST])
@every_case
def test_kubernetes_takes_every_object_and_knows_every_field(case, version):
    checked = [one for one in render(case) if one["kind"] not in CUSTOM]
    assert checked
    for one in checked:
        kubernetes_validate.validate(one, version, strict=True)


@every_case
def test_every_object_says_where_it_belongs(case):
    for one in render(case):
        labels = one["metadata"]["labels"]
        assert one["metadata"]["namespace"] == "rewards"
        assert labels["app.kubernetes.io/instance"] == "rl"
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert labels["app.kubernetes.io/name"] == "jrm"


@every_case
def test_no_object_has_the_name_of_another(case):
    names = [(one["kind"], one["metadata"]["name"]) for one in render(case)]
    assert len(set(names)) == len(names)
    assert all(LABEL.fullmatch(name) for _, name in names)


@every_case
def test_a_selector_finds_the_pods_of_its_deployment_and_no_others(case):
    objects = render(case)
    templates = dict(pods(objects))
    for one in all_of(objects, "Deployment"):
        selector = one["spec"]["selector"]["matchLabels"]
        found = [name for name, pod in templates.items() if matches(selector, pod["metadata"]["labels"])]
        assert found == [one["metadata"]["name"]]


@every_case
def test_a_selector_can_stay_when_the_chart_changes(case):
    for one in all_of(render(case), "Deployment"):
        assert set(one["spec"]["selector"]["matchLabels"]) == {
            "app.kubernetes.io/name",
            "app.kubernetes.io/instance",
            "app.kubernetes.io/component",
        }


@every_case
def test_nothing_secret_is_written_down(case):
    """Passwords come from secrets that exist: the chart makes none, and no ConfigMap has a URL with one."""
    objects = render(case)
    assert all_of(objects, "Secret") == []
    for one in all_of(objects, "ConfigMap"):
        assert not any(re.search(r"://[^/\s\"]*@", str(value)) for value in one.get("data", {}).values())
