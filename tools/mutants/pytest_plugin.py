"""A pytest plugin: property tests say yes or no, the same in every run, and no test goes on for ever.

A limit of CPU time is the same on a machine that does other things. What waits and uses none, mutmut ends.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, Phase, settings

CPU_S = 10

settings.register_profile(
    "mutants",
    database=None,
    deadline=None,
    derandomize=True,
    max_examples=30,
    phases=(Phase.explicit, Phase.generate),  # a smaller example of a failure is of no use here
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("mutants")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """Fail a test after CPU_S seconds of the processor; what catches that, as event loops do, ends a second later."""
    signal.signal(signal.SIGPROF, _fail)
    signal.setitimer(signal.ITIMER_PROF, CPU_S, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _fail(*_: object) -> NoReturn:
    signal.signal(signal.SIGPROF, lambda *_: os._exit(pytest.ExitCode.TESTS_FAILED))
    pytest.fail(f"more than {CPU_S} s of CPU time")
