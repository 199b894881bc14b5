"""What a server does with more work than it can do: goodput, refusals, and how long the admitted wait.

``python -m benchmarks.overload`` starts a server on a made-up device of known speed. First callers who wait for each
answer before they ask again show its capacity; then, in the same run, requests come at ``--times`` that rate whatever
becomes of them (open loop), over raw HTTP so that no retry hides a refusal. Every request says in its head how long it
may take: as long as a full queue, and two batches. Some of the callers are patient: theirs say what the SDK says by
default, and after a 429 they wait its ``retry-after`` and send the same request again with the time that is left.

Latencies count from the moment a request was due, not from when this process found the time to send it. What is counted
are answers that end in the measured window, which opens when the queue has been full for as long as it takes to drain.
Scores come a batch at a time, so a window begins and ends with an answer: one that cut a batch would count it or not.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from jrm_service.bench.tables import load, machine, table

from .known_rewards import KnownGroup
from .raw_callers import RawCallers, Reply
from .server_processes import Replica

EDITS = 12
BATCH_GROUPS = 2  # a group that needs more than one batch goes to the back of the line in between
GOODPUT_GOAL = 0.95
PATIENCE_S = 60.0  # the SDK's timeout for a whole call
MOST_OUTSTANDING = 2000  # requests; above it nothing is sent, and the table says how often
REFUSED, LATE, OK = 429, 504, 200


@dataclass(frozen=True)
class Plan:
    """What is measured. ``max_queue`` in candidates, ``side`` in pixels, the rest in seconds but for
    ``times`` and the share of callers who are patient."""

    seconds: float
    times: float
    max_queue: int
    patient_share: float
    side: int
    per_candidate_s: float
    per_batch_s: float


@dataclass(frozen=True)
class PatientRequest:
    """One request of a patient caller: how often it was refused, and whether it has its scores in the end."""

    refusals: int
    scored: bool


@dataclass(frozen=True)
class Measured:
    """One run. ``replies`` are those of the measured window; rates are in candidates per second, times in seconds."""

    plan: Plan
    capacity: float
    offered: float
    not_sent: int
    window: float
    replies: list[Reply]
    patient_requests: list[PatientRequest]

    @property
    def goodput(self) -> float:
        """Candidates scored per second of the window."""
        return EDITS * len(self.seconds_of(OK)) / self.window

    @property
    def bound(self) -> float:
        """What a request may take, as it says itself."""
        return patience(self.plan, self.capacity)

    def seconds_of(self, status: int) -> list[float]:
        """Latencies of the replies with that status."""
        return [reply.seconds for reply in self.replies if reply.status == status]

    @property
    def refused(self) -> int:
        """The patient callers' requests that were refused at least once."""
        return sum(patient.refusals > 0 for patient in self.patient_requests)

    @property
    def starved(self) -> int:
        """The patient callers' requests that had no scores in the end."""
        return sum(not patient.scored for patient in self.patient_requests)


def patience(plan: Plan, capacity: float) -> float:
    """Seconds that a full queue takes: its candidates at the measured capacity, and two batches.

    One batch is on the device when a request comes, and the one that has its last candidate has others too.
    """
    batch = plan.per_batch_s + BATCH_GROUPS * EDITS * plan.per_candidate_s
    return plan.max_queue / capacity + 2 * batch


async def _capacity(callers: RawCallers, plan: Plan, seconds: float) -> float:
    """Candidates per second with the queue as full as it gets without a refusal."""
    clock = asyncio.get_running_loop().time
    started = clock()
    ends: list[float] = []

    async def caller() -> None:
        while clock() < started + seconds:
            reply = await callers.send(callers.group())
            if reply.status != OK:
                raise RuntimeError(f"status {reply.status} while the capacity was measured")
            ends.append(reply.ended)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(plan.max_queue // EDITS):
            tasks.create_task(caller())
    # Not the beginning: a queue that was empty is served in another order than one that stays full.
    first, last = _from_answer_to_answer(ends, started + seconds / 3, started + seconds)
    return EDITS * sum(first <= end < last for end in ends) / (last - first)


def _from_answer_to_answer(ends: Sequence[float], opens: float, closes: float) -> tuple[float, float]:
    """The first ends at or after the two moments."""
    return min(end for end in ends if end >= opens), min(end for end in ends if end >= closes)


@dataclass
class _Offering:
    """Requests that come when they are due, whatever became of the ones before."""

    callers: RawCallers
    plan: Plan
    closes: float
    timeout_s: float
    replies: list[Reply] = field(default_factory=list)
    patient_requests: list[PatientRequest] = field(default_factory=list)

    async def impatient(self, due: float) -> None:
        """Sent once."""
        self.replies.append(await self.callers.send(self.callers.group(), due=due, timeout_s=self.timeout_s))

    async def patient(self, due: float) -> None:
        """Sent again when the server says so, until there are scores or its time is over."""
        clock = asyncio.get_running_loop().time
        group, gives_up = self.callers.group(), due + PATIENCE_S
        for refusals in itertools.count():
            reply = await self.callers.send(group, due=due, timeout_s=gives_up - clock())
            self.replies.append(reply)
            if reply.retry_after is None or clock() + reply.retry_after >= gives_up:
                self.patient_requests.append(PatientRequest(refusals, reply.status == OK))
                return
            await asyncio.sleep(reply.retry_after)


async def _overload(callers: RawCallers, plan: Plan, capacity: float) -> Measured:
    clock = asyncio.get_running_loop().time
    interval = EDITS / (plan.times * capacity)
    started = clock()
    opens = started + 2 * plan.max_queue / capacity
    offering = _Offering(callers, plan, closes=opens + plan.seconds, timeout_s=patience(plan, capacity))
    outstanding: set[asyncio.Task[None]] = set()
    sent = not_sent = 0
    for number in itertools.count():
        due = started + number * interval
        if due >= offering.closes:
            break
        await asyncio.sleep(max(0.0, due - clock()))
        if len(outstanding) >= MOST_OUTSTANDING:
            not_sent += 1
            continue
        sent += due >= opens
        patient = number * plan.patient_share % 1 < plan.patient_share
        task = asyncio.create_task(offering.patient(due) if patient else offering.impatient(due))
        outstanding.add(task)
        task.add_done_callback(outstanding.discard)
    await asyncio.gather(*outstanding)
    ends = [reply.ended for reply in offering.replies if reply.status == OK]
    first, last = _from_answer_to_answer(ends, opens, offering.closes)
    inside = [reply for reply in offering.replies if first <= reply.ended < last]
    offered = EDITS * sent / plan.seconds
    return Measured(plan, capacity, offered, not_sent, last - first, inside, offering.patient_requests)


async def measure(url: str, plan: Plan) -> Measured:
    """Capacity, then overload."""
    async with RawCallers(url, edits=EDITS, side=plan.side) as callers:
        # Long enough for a queue that is full to be served six times.
        drains = plan.max_queue * (plan.per_candidate_s + plan.per_batch_s / EDITS)
        capacity = await _capacity(callers, plan, max(6 * drains, plan.seconds / 4))
        return await _overload(callers, plan, capacity)


def report(measured: Measured) -> str:
    """The table."""
    oks, refusals = measured.seconds_of(OK), measured.seconds_of(REFUSED)
    late = measured.seconds_of(LATE)
    other = sum(reply.status not in (OK, REFUSED, LATE) for reply in measured.replies)
    wrong = sum(reply.wrong for reply in measured.replies)
    ratio = measured.goodput / measured.capacity
    tail = _percentile(oks, 99)
    rows: list[Sequence[object]] = [
        ["capacity, candidates/s", f"{measured.capacity:.1f}", ""],
        ["offered, candidates/s", f"{measured.offered:.1f} ({measured.offered / measured.capacity:.2f} times)", ""],
        ["goodput, candidates/s", f"{measured.goodput:.1f}", ""],
        ["goodput / capacity", f"{ratio:.3f}", _goal(ratio >= GOODPUT_GOAL, f">= {GOODPUT_GOAL:.2f}")],
        ["admitted, p50", f"{_percentile(oks, 50):.2f} s", ""],
        ["admitted, p99", f"{tail:.2f} s", _goal(tail <= measured.bound, f"<= {measured.bound:.2f} s, the deadline")],
        ["429, share of requests", f"{len(refusals) / max(1, len(measured.replies)):.3f}", ""],
        ["429, p50 / p99", f"{_ms(refusals, 50)} / {_ms(refusals, 99)}", ""],
        ["504, share of requests", f"{len(late) / max(1, len(measured.replies)):.3f}", ""],
        ["other answers / none", f"{other}", _goal(other == 0, "0")],
        ["wrong rewards", f"{wrong}", _goal(wrong == 0, "0")],
        ["patient: refused once or more", f"{measured.refused} of {len(measured.patient_requests)}", ""],
        ["patient: no scores in the end", f"{measured.starved}", _goal(measured.starved == 0, "0")],
        ["requests this process did not send", f"{measured.not_sent}", _goal(measured.not_sent == 0, "0")],
    ]
    return table([f"{measured.window:.0f} s, groups of {EDITS}, max_queue {measured.plan.max_queue}", "", "goal"], rows)


def _goal(met: bool, goal: str) -> str:
    return f"{goal}: {'met' if met else 'MISSED'}"


def _percentile(values: Sequence[float], share: float) -> float:
    return float(np.percentile(values, share)) if values else float("nan")


def _ms(values: Sequence[float], share: float) -> str:
    return f"{1000 * _percentile(values, share):.0f} ms"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the measured window")
    parser.add_argument("--times", type=float, default=4.0, help="offered, as a multiple of the capacity")
    parser.add_argument("--max-queue", type=int, default=240, help="the server's, in candidates")
    parser.add_argument("--patient-share", type=float, default=0.05, help="of callers: theirs may take a minute")
    parser.add_argument("--side", type=int, default=32, help="of the images, in pixels")
    parser.add_argument("--per-candidate-s", type=float, default=0.02, help="seconds of the device")
    parser.add_argument("--per-batch-s", type=float, default=0.02, help="seconds of the device")
    parser.add_argument("--save", type=Path, metavar="FILE", help="JSON file for the numbers")
    options = vars(parser.parse_args())
    save = options.pop("save")
    plan = Plan(**options)
    print(f"{machine()}\n", flush=True)
    settings: dict[str, object] = {"backend": "fake", "cache_entries": 0}
    settings |= {"max_queue": plan.max_queue, "max_candidates": plan.max_queue}
    # The longest name that a group will have here, so that so many fit.
    settings["max_batch_tokens"] = BATCH_GROUPS * KnownGroup(10**6, EDITS, plan.side).tokens
    pace = ["--seconds-per-candidate", plan.per_candidate_s, "--seconds-per-batch", plan.per_batch_s]
    with (
        tempfile.TemporaryDirectory() as folder,
        Replica(settings, pace, Path(folder) / "log") as server,
    ):
        measured = asyncio.run(measure(server.url, plan))
    print(report(measured))
    print(f"\nload average {load():.1f} afterwards")
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
        save.write_text(json.dumps(asdict(measured)) + "\n")


if __name__ == "__main__":
    main()
