"""What dashboard, rules and autoscaling ask for against what real servers export: names, labels, values."""

import re

import pytest
from prometheus_client import CollectorRegistry

from jrm_service.metrics import Metrics
from support.cases import each

from . import fleet, queries

OF_THE_TARGET = {"namespace", "job", "instance"}  # put there by whoever scrapes
UNSEEN = {
    "jrm_device_busy_ratio": "a minute's mean for those without Prometheus; the rate of jrm_device_busy_seconds_total "
    "is the same over any time",
    "jrm_watch_groups": "of /v1/watch, where whoever misses a group or a picture sees it",
    "jrm_kernel_info": "decided at the start, and the same from then on: /v1/info and the log have it too",
}


@pytest.fixture(scope="module")
def exported(served):
    """Name -> label -> its values."""
    found: dict[str, dict[str, set[str]]] = {"up": {}}
    for name, labels in served.exported():
        known = found.setdefault(name, {})
        for label, value in labels.items():
            known.setdefault(label, set()).add(value)
    recorded = queries.records()
    for name, expr in recorded.items():  # summed up by its labels, or made of what was recorded before
        before = (found[one.name] for one in queries.selected(expr) if one.name in recorded)
        found[name] = {label: set() for label in queries.grouped(expr).union(*before)}
    return found


@each("query", queries.everything(), ids=str)
def test_every_name_and_label_of_a_query_is_exported(exported, query):
    selected = queries.selected(query.expr)
    assert selected
    for one in selected:
        assert one.name in exported, f"{one.name} is not exported"
        assert {label for label, *_ in one.matchers} <= {*exported[one.name], *OF_THE_TARGET}
    known = OF_THE_TARGET.union(*(exported[one.name] for one in selected))
    assert queries.grouped(query.expr) <= known


@each("query", queries.everything(), ids=str)
def test_every_value_that_a_query_asks_for_is_exported(exported, query):
    for one in queries.selected(query.expr):
        for label, operator, value in one.matchers:
            values = exported[one.name].get(label)
            if label in OF_THE_TARGET or not values:
                continue
            for wanted in alternatives(value):
                assert any(re.fullmatch(wanted, known) for known in values), f"{one.name}{{{label}{operator}{value!r}}}"


def alternatives(value: str) -> list[str]:
    """Each of ``a|b|c``; a pattern of another kind as it is."""
    return value.split("|") if re.fullmatch(r"\w+(\|\w+)*", value) else [value]


OF_SCORING = {"jrm_queue_depth", "jrm_queue_limit", "jrm_workers", "jrm_workers_alive", "jrm_batch_tokens_limit"}
OF_CRITIQUES = {"jrm_explain_running", "jrm_explain_engine_up"}


def test_a_server_has_no_gauge_of_what_it_does_not_do(served):
    scorer, critic = (fleet.samples(url) for url in (served.scorer, served.critic))
    assert {name for name, _ in scorer} & {*OF_SCORING, *OF_CRITIQUES} == OF_SCORING
    assert {name for name, _ in critic} & {*OF_SCORING, *OF_CRITIQUES} == OF_CRITIQUES


def test_every_metric_is_on_the_dashboard_or_in_the_rules():
    shown = {
        one.name for query in [*queries.of_dashboard(), *queries.of_rules()] for one in queries.selected(query.expr)
    }
    families = [family.name for family in Metrics(CollectorRegistry()).registry.collect()]
    endings = ("", "_total", "_bucket", "_sum", "_count")
    missing = {name for name in families if shown.isdisjoint(name + ending for ending in endings)}
    assert missing == UNSEEN.keys()
