"""Grafana's JSON for a dashboard: its variables, and rows of panels laid out over 24 columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

SCHEMA_VERSION = 39  # Grafana 11.0
COLUMNS = 24
_PROMETHEUS = {"type": "prometheus", "uid": "${datasource}"}

Color = Literal["green", "yellow", "red"]


@dataclass(frozen=True)
class Query:
    """One PromQL expression, and the legend of its series; Grafana fills in ``{{label}}``."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """One panel: a title, a description and the queries that it draws.

    ``unit`` is one of Grafana's. ``base`` is the colour below the first of ``steps``, each of which is a value and the
    colour from there on. ``values`` are texts to show instead of numbers. ``columns`` are the labels that a table
    shows, in this order.
    """

    title: str
    description: str
    unit: str
    queries: Sequence[Query]
    kind: Literal["timeseries", "stat", "table"] = "timeseries"
    width: int = 8
    height: int = 8
    steps: Sequence[tuple[float, Color]] = ()
    base: Color = "green"
    lowest: float | None = 0
    highest: float | None = None
    stacked: bool = False
    values: dict[int, str] = field(default_factory=dict)
    columns: Sequence[str] = ()


@dataclass(frozen=True)
class Row:
    """Panels under one heading. A folded row queries Prometheus only once it is opened."""

    title: str
    panels: Sequence[Panel]
    folded: bool = False


def dashboard(rows: Sequence[Row]) -> str:
    """Return the file that Grafana imports, provisions, or finds in a ConfigMap. Equal rows give an equal file."""
    document = {
        "uid": "jrm-serve",
        "title": "JRM Serve",
        "description": "Rewards for image edits: throughput, latency, engine, load, rewards, cache, critiques.",
        "tags": ["jrm", "reward-model"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,  # one crosshair for all panels
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": list(_variables())},
        "panels": list(_panels(rows)),
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _variables() -> Iterator[dict[str, Any]]:
    yield {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "hide": 0}
    # jrm_build_info exists from the start, jrm_model_info once a checkpoint is loaded. Outside Kubernetes there is no
    # namespace, which ".*" matches too.
    within = 'namespace=~"$namespace"'
    yield _variable("namespace", "Namespace", "jrm_build_info", every=".*")
    yield _variable("job", "Fleet", f"jrm_build_info{{{within}}}")
    within += ',job=~"$job"'
    yield _variable("model", "Model", f"jrm_model_info{{{within}}}")
    yield _variable("instance", "Replica", f"jrm_build_info{{{within}}}")


def _variable(label: str, title: str, series: str, *, every: str = ".+") -> dict[str, Any]:
    """Return a variable with all values of a label; all of them are chosen by default, and again after an import."""
    query = f"label_values({series}, {label})"
    return {
        "name": label,
        "label": title,
        "type": "query",
        "datasource": _PROMETHEUS,
        "definition": query,
        "query": {"query": query, "refId": label, "qryType": 1},
        "refresh": 2,  # whenever the time range changes
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": every,
        "current": {"text": ["All"], "value": ["$__all"]},
        "hide": 0,
    }


def _panels(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    number, top = 0, 0
    for row in rows:
        number += 1
        placed, bottom = _placed(row.panels, number + 1, top + 1)
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "gridPos": {"x": 0, "y": top, "w": COLUMNS, "h": 1},
            "collapsed": row.folded,
            "panels": placed if row.folded else [],
        }
        if not row.folded:
            yield from placed
        number, top = number + len(placed), top + 1 if row.folded else bottom


def _placed(panels: Sequence[Panel], number: int, top: int) -> tuple[list[dict[str, Any]], int]:
    """Lay out panels from left to right and top to bottom; return them, and where the next row begins."""
    placed: list[dict[str, Any]] = []
    left, bottom = 0, top
    for panel in panels:
        if left + panel.width > COLUMNS:
            left, top = 0, bottom
        position = {"x": left, "y": top, "w": panel.width, "h": panel.height}
        placed.append({"id": number + len(placed), "gridPos": position, **_panel(panel)})
        left, bottom = left + panel.width, max(bottom, top + panel.height)
    return placed, bottom


def _panel(panel: Panel) -> dict[str, Any]:
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _PROMETHEUS,
        "fieldConfig": {"defaults": _field(panel), "overrides": []},
        "options": _OPTIONS[panel.kind],
        "targets": [_target(panel, number, query) for number, query in enumerate(panel.queries)],
        **({"transformations": [_columns(panel.columns)]} if panel.columns else {}),
    }


def _target(panel: Panel, number: int, query: Query) -> dict[str, Any]:
    instant = panel.kind == "table"
    return {
        "refId": chr(ord("A") + number),
        "datasource": _PROMETHEUS,
        "editorMode": "code",
        "expr": query.expr,
        "legendFormat": query.legend or "__auto",
        "format": "table" if instant else "time_series",
        "instant": instant,
        "range": not instant,
    }


def _field(panel: Panel) -> dict[str, Any]:
    steps = [{"value": None, "color": panel.base}, *({"value": at, "color": color} for at, color in panel.steps)]
    texts = {str(value): {"text": text, "index": index} for index, (value, text) in enumerate(panel.values.items())}
    limits = {"min": panel.lowest, "max": panel.highest}
    return {
        "unit": panel.unit,
        **{name: limit for name, limit in limits.items() if limit is not None},
        "color": {"mode": "palette-classic" if panel.kind == "timeseries" else "thresholds"},
        "thresholds": {"mode": "absolute", "steps": steps},
        "mappings": [{"type": "value", "options": texts}] if texts else [],
        "custom": _curve(panel) if panel.kind == "timeseries" else {},
    }


def _curve(panel: Panel) -> dict[str, Any]:
    return {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 30 if panel.stacked else 8,
        "showPoints": "never",
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "dashed" if panel.steps else "off"},
    }


def _columns(labels: Sequence[str]) -> dict[str, Any]:
    """Show the labels of a table in this order, and hide its time and value."""
    order = {label: place for place, label in enumerate(labels)}
    return {"id": "organize", "options": {"excludeByName": {"Time": True, "Value": True}, "indexByName": order}}


_OPTIONS: dict[str, dict[str, Any]] = {
    "timeseries": {
        "legend": {
            "displayMode": "table",
            "placement": "bottom",
            "showLegend": True,
            "calcs": ["mean", "max", "lastNotNull"],
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "area",
        "textMode": "auto",
        "justifyMode": "auto",
        "orientation": "auto",
    },
    "table": {"showHeader": True, "cellHeight": "sm"},
}
