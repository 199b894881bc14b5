"""The tables of settings, metrics and fakes against the code."""

import inspect
import re

import pytest
from prometheus_client import CollectorRegistry

from docs import pages
from jrm_service.metrics import Metrics
from jrm_service.scoring import fakes
from jrm_service.settings import Settings

SETTINGS, METRICS, FAKES = (pages.DOCS / name for name in ("settings.md", "metrics.md", "testing.md"))
IN_WORDS = {"checkpoint": "the bundled one", "preprocess_threads": "the number of CPUs"}


def test_every_setting_has_its_row_flag_variable_and_default():
    documented = [tuple(row[:4]) for row in pages.table(SETTINGS, "setting")]
    assert documented == [
        (
            name,
            f"--{name.replace('_', '-')}",
            f"JRM_{name.upper()}",
            IN_WORDS.get(name) or (f"{field.default:,}" if _is_large(field.default) else str(field.default)),
        )
        for name, field in Settings.model_fields.items()
    ]


def _is_large(default: object) -> bool:
    return isinstance(default, int) and default >= 1000 and default != 8000  # a port is not a quantity


def test_every_metric_has_its_row_and_type():
    registry = CollectorRegistry()
    Metrics(registry)
    documented = {name: kind for name, kind, *_ in pages.table(METRICS, "metric")}
    assert documented == {
        family.name + "_total" * (family.type == "counter"): family.type for family in registry.collect()
    }


def test_every_metric_has_its_labels():
    metrics = Metrics(CollectorRegistry())
    collectors = {one.describe()[0].name: one for one in vars(metrics).values() if hasattr(one, "describe")}
    for name, _, labels, *_ in pages.table(METRICS, "metric"):
        collector = collectors[name.removesuffix("_total")]
        if labels:
            collector.labels(**dict.fromkeys(re.split(r",\s*", labels), "x"))  # raises ValueError for other labels
        else:
            with pytest.raises(ValueError, match="No label names were set"):
                collector.labels()


def test_every_fake_is_on_the_page():
    for name, kind in inspect.getmembers(fakes, inspect.isclass):
        if kind.__module__ == fakes.__name__ and not name.startswith("_"):
            assert f"`{name}(" in pages.prose(FAKES)
