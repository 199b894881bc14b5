"""The rules: read and tried by promtool, complete, and each alert shown to fire and to stay silent."""

import os
import re
import subprocess
from pathlib import Path

import yaml
from tools.fetch_prometheus import find

from docs import pages
from support.cases import each

from . import queries

SCENARIOS = sorted((Path(__file__).parent / "rules").glob("*.yaml"))
COMPOSE = queries.ROOT / "docker-compose.yml"
CONFIG = queries.ROOT / "deploy/compose/prometheus.yml"
PAGE = pages.DOCS / "monitoring.md"
LABEL_IN_TEXT = re.compile(r"\$labels\.(\w+)")

every_alert = each("name", queries.alerts())


def promtool(*arguments: str | Path) -> None:
    environment = os.environ | {"GOGC": "800"}  # memory is there; collecting garbage takes a third of the time
    done = subprocess.run([find("promtool"), *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


def samples(scenario: Path) -> list[tuple[str, list[str]]]:
    """(expression, labels of what is expected) of every look at the alerts of a scenario."""
    tests = yaml.safe_load(scenario.read_text(encoding="utf-8"))["tests"]
    return [
        (look["expr"], [sample["labels"] for sample in look["exp_samples"]])
        for test in tests
        for look in test["promql_expr_test"]
        if look["expr"].startswith("ALERTS")
    ]


LOOKS = [look for scenario in SCENARIOS for look in samples(scenario)]


def test_promtool_reads_the_rules():
    promtool("check", "rules", "--lint=all", "--lint-fatal", queries.RULES)


def test_alerts_fire_when_they_should_and_no_others_do():
    promtool("test", "rules", *SCENARIOS)


def test_promtool_reads_the_configuration_of_compose(tmp_path):
    text = CONFIG.read_text(encoding="utf-8")
    for volume in yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]["prometheus"]["volumes"]:
        here, inside, *_ = volume.split(":")
        text = text.replace(inside, str(queries.ROOT / here))
    assert str(queries.RULES) in text
    (tmp_path / "prometheus.yml").write_text(text, encoding="utf-8")
    promtool("check", "config", tmp_path / "prometheus.yml")


@every_alert
def test_every_alert_is_shown_to_fire_and_to_stay_silent(name):
    assert any(f'alertname="{name}"' in labels for _, expected in LOOKS for labels in expected)
    assert (f'ALERTS{{alertname="{name}",alertstate="firing"}}', []) in LOOKS


def test_in_a_healthy_fleet_every_alert_is_looked_for():
    looks = samples(Path(__file__).parent / "rules/healthy.yaml")
    assert len(looks) > 10
    assert set(map(str, looks)) == {str(('ALERTS{alertstate="firing"}', []))}


@each("query", queries.of_rules(), ids=str)
def test_every_selector_names_the_job_as_the_chart_replaces_it(query):
    selected = queries.selected(query.expr)
    assert all(("job", "=", queries.JOB) in one.matchers for one in selected)
    assert query.expr.count(f'job="{queries.JOB}"') == len(selected)


def test_the_chart_replaces_the_job_in_selectors_alone():
    """Not in a comment, which would then say something else."""
    selectors = sum(len(queries.selected(query.expr)) for query in queries.of_rules())
    assert queries.RULES.read_text(encoding="utf-8").count(f'job="{queries.JOB}"') == selectors


@each("query", queries.of_rules(), ids=str)
def test_two_fleets_are_never_summed_up(query):
    for node in queries.nodes(query.expr):
        if type(node).__name__ == "AggregateExpr":
            assert {"namespace", "job"} <= set(node.modifier.labels), f"{node}"


@every_alert
def test_every_alert_says_what_it_means_and_where_to_read_on(name):
    alert = queries.alerts()[name]
    assert alert["labels"].keys() == {"severity"}
    assert alert["labels"]["severity"] in {"critical", "warning", "info"}
    assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert alert["annotations"]["runbook_url"] == f"docs/monitoring.md#{name.lower()}"
    assert name.lower() in pages.anchors(PAGE)


def test_the_page_has_no_section_of_an_alert_that_is_gone():
    assert {name for name in pages.anchors(PAGE) if name.startswith("jrm")} == {
        name.lower() for name in queries.alerts()
    }


@every_alert
def test_a_label_in_a_text_is_one_that_the_alert_has(name):
    texts = " ".join(queries.alerts()[name]["annotations"].values())
    fired = [labels for _, expected in LOOKS for labels in expected if f'alertname="{name}"' in labels]
    for label in LABEL_IN_TEXT.findall(texts):
        assert all(f'{label}="' in labels for labels in fired) or label == "dimension"  # the reward itself has none
