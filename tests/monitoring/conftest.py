"""One fleet, and one Prometheus that watches it, for all tests of what is monitored."""

import time
from dataclasses import dataclass

import pytest

from support import prometheus

from . import fleet, queries


@dataclass(frozen=True)
class Watch:
    """``at`` is when to ask, in seconds since 1970; ``rewards`` are what the scorer gave before, while watched."""

    prometheus: prometheus.Prometheus
    at: float
    rewards: list[float]

    def query(self, expr: str) -> list[tuple[dict[str, str], float]]:
        """(labels, value) of each sample."""
        return self.prometheus.query(expr, self.at)


@pytest.fixture(scope="package")
def served(explaining, tmp_path_factory):
    """Servers that have had every kind of work once, so that every series is there."""
    with fleet.running(tmp_path_factory.mktemp("fleet"), explaining.url) as running:
        running.work()
        yield running


@pytest.fixture(scope="package")
def watched(served, tmp_path_factory):
    """A Prometheus that has seen the fleet before, during and after more work."""
    folder = tmp_path_factory.mktemp("prometheus")
    with prometheus.running(folder, queries.JOB, served.targets, queries.RULES) as running:
        running.wait_for_scrapes(len(served.targets), time.time())
        rewards = served.work()
        yield Watch(running, running.wait_for_scrapes(len(served.targets), time.time()), rewards)
