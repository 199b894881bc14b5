"""ServiceMonitor, PrometheusRule and dashboard: of one release, and as the files say."""

import json
import re

import yaml

from helm.chart import CHART, all_of, matches, of_role, one_of, render
from support.cases import each

ON = {
    "monitoring": {
        "labels": {"release": "prometheus"},
        "serviceMonitor": {"enabled": True},
        "rules": {"enabled": True},
        "dashboard": {"enabled": True},
    },
    "explain": {"enabled": True},
}
RULES = (CHART / "files" / "rules.yaml").read_text(encoding="utf-8")
SERIES = 'namespace="rewards",job="rl-jrm"'


def test_runbooks_are_where_the_values_say():
    values = ON | {"monitoring": ON["monitoring"] | {"rules": {"enabled": True, "runbooks": "https://git.test/jrm"}}}
    for given, base in ((ON, ""), (values, "https://git.test/jrm/")):
        rules = one_of(render(given), "PrometheusRule")["spec"]["groups"]
        urls = [rule["annotations"]["runbook_url"] for group in rules for rule in group["rules"] if "alert" in rule]
        assert urls
        assert all(url.startswith(f"{base}docs/monitoring.md#") for url in urls)


def monitor():
    return one_of(render(ON), "ServiceMonitor")


def test_by_default_there_is_none_of_them():
    assert not [one for one in render() if one["kind"] in ("ServiceMonitor", "PrometheusRule")]


def test_every_pod_is_scraped_by_one_service():
    objects = render(ON)
    selector = monitor()["spec"]["selector"]["matchLabels"]
    found = [one for one in all_of(objects, "Service") if matches(selector, one["metadata"]["labels"])]
    assert [one["metadata"]["name"] for one in found] == ["rl-jrm-score", "rl-jrm-explain"]


def test_the_job_is_the_release():
    label = monitor()["spec"]["jobLabel"]
    for name in ("rl-jrm-score", "rl-jrm-explain"):
        assert one_of(render(ON), "Service", name)["metadata"]["labels"][label] == "rl-jrm"


def test_metrics_are_read_from_a_port_that_the_services_have():
    (endpoint,) = monitor()["spec"]["endpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("http", "/metrics")
    assert (endpoint["interval"], endpoint["scrapeTimeout"]) == ("15s", "10s")
    assert of_role(all_of(render(ON), "Service")[:1], "Service", "score")["spec"]["ports"][0]["name"] == "http"


def test_an_instance_is_a_pod_by_its_name():
    (endpoint,) = monitor()["spec"]["endpoints"]
    assert endpoint["relabelings"] == [{"sourceLabels": ["__meta_kubernetes_pod_name"], "targetLabel": "instance"}]


@each("kind", ["ServiceMonitor", "PrometheusRule"])
def test_prometheus_finds_them_by_its_own_label(kind):
    assert one_of(render(ON), kind)["metadata"]["labels"]["release"] == "prometheus"


def test_the_rules_are_those_of_the_file_for_this_release():
    spec = one_of(render(ON), "PrometheusRule")["spec"]
    assert spec == yaml.safe_load(RULES.replace('job="jrm-serve"', SERIES))
    assert spec["groups"]


def test_no_rule_looks_at_another_release():
    groups = one_of(render(ON), "PrometheusRule")["spec"]["groups"]
    expressions = [rule["expr"] for group in groups for rule in group["rules"]]
    assert expressions
    for selector in re.findall(r"\{[^}]*\}", "\n".join(expressions)):
        assert selector.startswith("{" + SERIES), selector


def test_the_dashboard_is_the_file_where_grafana_looks_for_it():
    dashboard = one_of(render(ON), "ConfigMap", "rl-jrm-dashboard")
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    original = json.loads((CHART / "files" / "dashboard.json").read_text(encoding="utf-8"))
    assert json.loads(dashboard["data"]["jrm-serve.json"]) == original
