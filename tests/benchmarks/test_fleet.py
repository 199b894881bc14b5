"""Small simulated fleets: what is asserted are counts and virtual times, which are the same on every machine."""

import asyncio
import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

from benchmarks.simulated import EDITS, Rank, replicas

from benchmarks import virtual_time

ROOT = Path(__file__).parents[2]


def test_the_command_prints_its_tables_and_keeps_its_numbers(tmp_path):
    saved = tmp_path / "fleet.json"
    command = [sys.executable, "-W", "error", "-m", "benchmarks.fleet", "--quick", "--save", str(saved)]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=280).stdout
    for heading in ("| replicas ", "| one replica is ", "| sudden job "):
        assert heading in printed
    measured = json.loads(saved.read_text())
    by_number = [run for run in measured["scaling"] if run["numbered"]]
    assert len(by_number) > 1
    for run in by_number:
        assert run["most_requests"] == run["mean_requests"]
        assert run["rate"] / run["replicas"] >= 0.95 * by_number[0]["rate"]
    lost = {run["fault"]: sum(run["failed"]) for run in measured["faults"]}
    assert [lost[fault] for fault in lost if fault.startswith(("killed", "drained"))] == [0, 0]


def test_a_replica_that_is_killed_costs_no_call():
    async def main():
        servers = await replicas(2)
        ranks = [Rank(servers, Fraction(number, 4)) for number in range(4)]
        calls = [asyncio.create_task(rank.call(groups=2)) for rank in ranks]
        await asyncio.sleep(0.5)
        first, second = servers.values()
        assert first.received == second.received == 4
        await first.kill()
        assert [(call.failure, call.candidates) for call in await asyncio.gather(*calls)] == [("", 2 * EDITS)] * 4
        assert second.received == 8

    virtual_time.run(main(), grace_s=0.0)


def test_a_replica_that_answers_nobody_costs_each_rank_one_call():
    async def main():
        servers = await replicas(2)
        ranks = [Rank(servers, Fraction(number, 2)) for number in range(2)]
        first, second = servers.values()
        first.freeze()
        assert [call.failure for call in await asyncio.gather(*(rank.call(groups=2) for rank in ranks))] == [
            "APITimeoutError"
        ] * 2
        for _ in range(3):
            await asyncio.sleep(60.0)
            calls = await asyncio.gather(*(rank.call(groups=2) for rank in ranks))
            assert [call.failure for call in calls] == ["", ""]
        first.thaw()
        await asyncio.sleep(60.0)
        before = first.received
        await asyncio.gather(*(rank.call(groups=2) for rank in ranks))
        assert first.received > before
        assert second.received

    virtual_time.run(main(), grace_s=0.0)
