"""The queries of docs/operations.md and docs/metrics.md against the metrics: what they name exists, with its labels."""

import re

from prometheus_client import CollectorRegistry

from docs import pages
from jrm_service.metrics import Metrics
from support.cases import each

PAGE = pages.DOCS / "operations.md"
IN_TABLE = re.compile(r"^\|[^|]+\| `([^`]*jrm_[^`]*)` \|$", re.MULTILINE)
SELECTED = re.compile(r"(jrm_[a-z_]+)(?:\{([^}]*)\})?")
SUFFIXES = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}


def queries() -> list[str]:
    drift = [block for block in pages.blocks(pages.DOCS / "metrics.md", "") if "rate(" in block]
    return [*IN_TABLE.findall(PAGE.read_text(encoding="utf-8")), *pages.blocks(PAGE, "promql"), *drift]


def labels_of_samples() -> dict[str, set[str]]:
    """Every name that Prometheus would store, with its labels."""
    collectors = [one for one in vars(Metrics(CollectorRegistry())).values() if hasattr(one, "describe")]
    return {
        one.describe()[0].name + suffix: {*one._labelnames} | ({"le"} if suffix == "_bucket" else set())
        for one in collectors
        for suffix in SUFFIXES[one.describe()[0].type]
    }


def test_there_are_queries_for_a_dozen_questions():
    assert len(queries()) >= 13


@each("query", queries())
def test_every_metric_and_label_of_a_query_exists(query):
    known = labels_of_samples()
    selected = SELECTED.findall(query)
    assert selected
    for name, matchers in selected:
        assert name in known, f"{name} is no sample"
        assert set(re.findall(r"(\w+)\s*[=!]", matchers)) <= known[name]
    grouped = {
        label for group in re.findall(r"\b(?:by|without) \(([^)]*)\)", query) for label in re.split(r",\s*", group)
    }
    assert all(any(label in known[name] for name, _ in selected) for label in grouped), grouped


@each("query", queries())
def test_a_counter_is_only_read_as_a_rate_and_brackets_are_closed(query):
    assert [query.count(mark) for mark in "([{"] == [query.count(mark) for mark in ")]}"]
    for found in re.finditer(r"jrm_[a-z_]+_(?:total|bucket|count|sum)\b", query):
        assert query[: found.start()].endswith("rate("), f"{found[0]} grows for ever"
