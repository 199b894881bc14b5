"""A real Prometheus scrapes real servers: every rule is evaluated, and every query has an answer."""

import math
from statistics import fmean

import pytest

from support.cases import each

from . import queries

# A server of a minute has no day before.
TOO_YOUNG = {"Drift since yesterday A", "Drift since yesterday B"}


@each("query", queries.of_dashboard(), ids=str)
def test_every_query_of_the_dashboard_has_data(watched, query):
    samples = watched.query(query.expr)
    if query.where in TOO_YOUNG:
        assert samples == []
    else:
        assert samples
        assert any(math.isfinite(value) for _, value in samples)


@each("where", ["Batch fill A", "Queue depth B"])
def test_a_replica_that_only_writes_critiques_does_not_spoil_a_panel(served, watched, where):
    """Of the same model there are the scorer and the critic; the panel is to show what the scorer's own shows."""
    [query] = [one for one in queries.of_dashboard() if one.where == where]
    expr = query.expr.replace('namespace=~".*"', f'namespace="{queries.NAMESPACE}"')
    assert expr != query.expr
    only = f'instance="{served.scorer.removeprefix("http://")}"'
    expected = watched.query(expr.replace('instance=~".+"', only))
    assert [labels for labels, _ in expected] == [{"model": "jrm-tiny"}]
    assert [one for one in watched.query(expr) if one[0]["model"] == "jrm-tiny"] == expected


@each(("series", "label"), queries.of_variables(), ids=str)
def test_every_variable_has_something_to_choose(watched, series, label):
    assert watched.prometheus.get(f"label/{label}/values", **{"match[]": series.expr})


@each("query", queries.of_autoscaling(), ids=str)
def test_every_autoscaling_query_has_an_answer(watched, query):
    samples = watched.query(query.expr)
    assert samples
    if not query.where.startswith("adapter finds"):
        assert len(samples) == 1
        assert math.isfinite(samples[0][1])


def test_every_rule_is_evaluated(watched):
    def rules():
        return [rule for group in watched.prometheus.get("rules")["groups"] for rule in group["rules"]]

    watched.prometheus.wait(lambda: all(rule["health"] != "unknown" for rule in rules()))
    assert sorted(rule["name"] for rule in rules()) == sorted(query.where for query in queries.of_rules())
    assert {rule["name"]: rule.get("lastError") for rule in rules() if rule["health"] != "ok"} == {}


def test_a_score_that_is_not_finite_is_an_alert_at_once(watched):
    firing = 'ALERTS{alertname="JRMNonFiniteScores",alertstate="firing"}'
    watched.prometheus.wait(lambda: bool(watched.prometheus.query(firing)))


def test_the_mean_that_is_recorded_is_that_of_the_replies(watched):
    recorded = 'job_fingerprint_dimension:jrm_reward:mean1h{dimension="",model="jrm-tiny",namespace="rewards"}'
    expected = pytest.approx(fmean(watched.rewards), rel=1e-6)
    watched.prometheus.wait(lambda: [value for _, value in watched.prometheus.query(recorded)] == [expected])
