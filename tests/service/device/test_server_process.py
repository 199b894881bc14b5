"""A whole server whose workers are killed, stopped and crash under load: nothing is lost, doubled or wrong."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time

import numpy as np
import pytest

from jrm_client import JRMClient
from support import processes

WORKER = "jrm_service.model.main"
SECONDS = 30.0
FAULTS = (signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV)


def images(seed: int, count: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (48, 48, 3), np.uint8) for _ in range(count)]


@pytest.mark.heavy
@pytest.mark.timeout(600)
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_that_are_killed_stopped_and_crash_under_load(workers: int) -> None:
    flags = (
        "--device",
        ",".join(["cpu"] * workers),
        "--hang-timeout-s",
        "10",
        "--start-timeout-s",
        "60",
        "--cache-entries",
        "0",
    )
    groups = [images(seed, 7) for seed in range(6)]
    with processes.serving(*flags) as server:
        server.wait_until_ready()
        with JRMClient(server.url, timeout=240) as client:
            expected = [
                client.score_group(source, f"edit {n}", edits).rewards for n, (source, *edits) in enumerate(groups)
            ]
            wrong: list[str] = []
            answered = itertools.count()
            end = time.monotonic() + SECONDS

            def call(caller: int) -> None:
                number = caller
                while time.monotonic() < end:
                    number = (number + 1) % len(groups)
                    source, *edits = groups[number]
                    try:
                        rewards = client.score_group(source, f"edit {number}", edits).rewards
                    except Exception as error:
                        wrong.append(f"{type(error).__name__}: {error}")
                        return
                    if not np.allclose(rewards, expected[number], rtol=0, atol=1e-4):
                        wrong.append(f"group {number}: {rewards} instead of {expected[number]}")
                    next(answered)

            callers = [threading.Thread(target=call, args=(caller,)) for caller in range(4)]
            for caller in callers:
                caller.start()
            choice = random.Random(workers)
            faults = itertools.cycle(FAULTS)
            while time.monotonic() < end - 8:
                time.sleep(choice.uniform(3, 6))  # the schedule of faults, not a wait for anything
                alive = server.children(WORKER)
                if alive:
                    os.kill(choice.choice(alive), next(faults))
            for caller in callers:
                caller.join()
            assert wrong == []
            assert next(answered) > len(groups)
        assert server.process.poll() is None
        server.wait_until_ready()
        assert len(server.children(WORKER)) == workers
        log = "".join(server.log)
        assert "is back" in log
    assert server.children(WORKER) == []
