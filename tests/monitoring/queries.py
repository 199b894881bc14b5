"""Every query that the project ships, and what each asks for, as a real parser of PromQL reads it."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import promql_parser as promql
import yaml

from helm import chart

ROOT = Path(__file__).parents[2]
RULES = ROOT / "helm/jrm/files/rules.yaml"
DASHBOARD = ROOT / "helm/jrm/files/dashboard.json"
ADAPTER = ROOT / "helm/jrm/files/prometheus-adapter.yaml"

JOB, NAMESPACE = "jrm-serve", "rewards"  # of the fleet that the tests run

# What Grafana puts in their place when everything is chosen; of rates, a range that holds all that a test does.
CHOICES = {
    "$namespace": ".*",
    "$job": ".+",
    "$instance": ".+",
    "$model": ".+",
    "$__rate_interval": "5m",
}
SERIES = re.compile(r"label_values\((?P<series>.+), (?P<label>\w+)\)")


@dataclass(frozen=True)
class Shipped:
    """A query and where it is from."""

    where: str
    expr: str

    def __str__(self) -> str:
        return self.where


@dataclass(frozen=True)
class Selected:
    """A selector: the name of its series, and (label, operator, value) of its matchers."""

    name: str
    matchers: tuple[tuple[str, str, str], ...]


def nodes(expr: str) -> list[Any]:
    """Every node of an expression."""
    found: list[Any] = []
    promql.walk(promql.parse(expr), found.append)
    return found


def selected(expr: str) -> list[Selected]:
    operators = {"MatchOp.Equal": "=", "MatchOp.NotEqual": "!=", "MatchOp.Re": "=~", "MatchOp.NotRe": "!~"}
    return [
        Selected(
            node.name,
            tuple((one.name, operators[str(one.op)], one.value) for one in node.matchers.matchers),
        )
        for node in nodes(expr)
        if isinstance(node, promql.VectorSelector)
    ]


def grouped(expr: str) -> set[str]:
    """Labels by which something is summed up or joined."""
    found: set[str] = set()
    for node in nodes(expr):
        if isinstance(node, promql.AggregateExpr) and node.modifier:
            found.update(node.modifier.labels)
        if isinstance(node, promql.BinaryExpr) and node.modifier:
            found.update(node.modifier.group_labels or ())
            found.update(node.modifier.matching.labels if node.modifier.matching else ())
    return found


# --- rules ---


@cache
def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def records() -> dict[str, str]:
    """Recorded name -> expression."""
    return {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}


def of_rules() -> list[Shipped]:
    return [Shipped(rule.get("alert") or rule["record"], rule["expr"]) for rule in rules()]


# --- dashboard ---


@cache
def dashboard() -> dict[str, Any]:
    return json.loads(DASHBOARD.read_text(encoding="utf-8"))


def panels() -> list[dict[str, Any]]:
    """Every panel that is no row, those of folded rows included."""
    found = []
    for panel in dashboard()["panels"]:
        found += panel["panels"] if panel["type"] == "row" else [panel]
    return found


def of_dashboard() -> list[Shipped]:
    return [
        Shipped(f"{panel['title']} {target['refId']}", _chosen(target["expr"]))
        for panel in panels()
        for target in panel["targets"]
    ]


def of_variables() -> list[tuple[Shipped, str]]:
    """What each variable lists: the series, and the label whose values they are."""
    found = []
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            match = SERIES.fullmatch(variable["query"]["query"])
            assert match is not None, variable["query"]
            found.append((Shipped(f"variable {variable['name']}", _chosen(match["series"])), match["label"]))
    return found


def _chosen(expr: str) -> str:
    for variable, value in CHOICES.items():
        expr = expr.replace(variable, value)
    assert "$" not in expr, f"a variable that is not known here: {expr}"
    return expr


# --- autoscaling ---


def of_autoscaling() -> list[Shipped]:
    """What KEDA asks, and what prometheus-adapter asks for a HorizontalPodAutoscaler, of one release."""
    return [*_of_keda(), *_of_adapter()]


def _of_keda() -> Iterator[Shipped]:
    scaling = {"kind": "keda", "keda": {"serverAddress": "http://prometheus:9090"}}
    objects = chart.render({"score": {"autoscaling": scaling}, "fullnameOverride": JOB}, namespace=NAMESPACE)
    for trigger in chart.one_of(objects, "ScaledObject")["spec"]["triggers"]:
        yield Shipped(f"KEDA {trigger['name']}", trigger["metadata"]["query"])


def _of_adapter() -> Iterator[Shipped]:
    chosen = f'namespace="{NAMESPACE}",job="{JOB}"'
    for rule in yaml.safe_load(ADAPTER.read_text(encoding="utf-8"))["rules"]["external"]:
        name = rule["name"]["as"]
        yield Shipped(f"adapter {name}", rule["metricsQuery"].replace("<<.LabelMatchers>>", chosen))
        yield Shipped(f"adapter finds {name}", rule["seriesQuery"])


def everything() -> list[Shipped]:
    return [*of_rules(), *of_dashboard(), *(one for one, _ in of_variables()), *of_autoscaling()]
