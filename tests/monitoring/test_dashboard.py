"""The dashboard's shape: what Grafana needs of it, and what a reader does."""

import itertools
import re

from tools.dashboard.grafana import dashboard
from tools.dashboard.rows import ROWS

from support.cases import each

from . import queries

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
LABEL = re.compile(r"{{(\w+)}}")

every_panel = each("panel", queries.panels(), ids=lambda panel: panel["title"])


def cells(panel: dict) -> set[tuple[int, int]]:
    place = panel["gridPos"]
    columns = range(place["x"], place["x"] + place["w"])
    return set(itertools.product(columns, range(place["y"], place["y"] + place["h"])))


def test_the_file_is_what_the_program_writes():
    assert queries.DASHBOARD.read_text(encoding="utf-8") == dashboard(ROWS), "run `python -m tools.dashboard`"


def test_it_is_the_same_dashboard_in_every_grafana():
    document = queries.dashboard()
    assert document["uid"] == "jrm-serve"
    assert document["editable"] is True
    assert document["schemaVersion"] >= 39
    assert "id" not in document


def test_numbers_of_panels_are_unique():
    rows = [panel for panel in queries.dashboard()["panels"] if panel["type"] == "row"]
    numbers = [panel["id"] for panel in [*rows, *queries.panels()]]
    assert len(numbers) == len(set(numbers))


def test_no_panel_lies_on_another_or_outside():
    taken: set[tuple[int, int]] = set()
    for panel in queries.dashboard()["panels"]:
        assert taken.isdisjoint(cells(panel)), panel["title"]
        taken |= cells(panel)
    for row in (panel for panel in queries.dashboard()["panels"] if panel["type"] == "row"):
        inside = [cells(panel) for panel in row["panels"]]
        assert sum(map(len, inside)) == len(set().union(*inside))
        taken |= set().union(*inside)
    assert all(column < 24 for column, _ in taken)


def test_no_data_source_is_named():
    """Only the variable: whatever Grafana calls its Prometheus, one import is enough."""
    found = [
        one["datasource"]
        for one in [*queries.panels(), *queries.dashboard()["templating"]["list"]]
        if "datasource" in one
    ]
    found += [target["datasource"] for panel in queries.panels() for target in panel["targets"]]
    assert found
    assert all(one == DATASOURCE for one in found)


@every_panel
def test_every_panel_has_a_unit_a_text_and_queries(panel):
    assert len(panel["description"]) > 40
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][0]["value"] is None
    assert panel["targets"]
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    assert all(target["expr"] for target in panel["targets"])


@every_panel
def test_a_legend_names_labels_that_its_series_have(panel):
    for target in panel["targets"]:
        expr = target["expr"].replace("$__rate_interval", "5m")
        labels = set(LABEL.findall(target["legendFormat"]))
        outermost = queries.nodes(expr)
        summed = [node for node in outermost if type(node).__name__ == "AggregateExpr"]
        if summed:
            assert labels <= queries.grouped(expr), target["legendFormat"]


@every_panel
def test_every_query_goes_by_the_choices_above(panel):
    for target in panel["targets"]:
        for one in queries.selected(target["expr"].replace("$__rate_interval", "5m")):
            chosen = {label: value for label, _, value in one.matchers if value.startswith("$")}
            assert chosen.items() >= {"namespace": "$namespace", "job": "$job"}.items()
            assert ("$model" in chosen.values()) == (one.name in HAVE_A_MODEL)


HAVE_A_MODEL = {"jrm_model_info", "job_fingerprint_dimension:jrm_reward:drift1d"}


def test_all_that_is_asked_is_asked_of_the_chosen_models():
    """But for what a replica that is still loading shows, and has no model yet."""
    without = {
        panel["title"] for panel in queries.panels() for target in panel["targets"] if "$model" not in target["expr"]
    }
    assert without == {"Replicas that score", "Workers alive", "Engine up", "Uptime"}
