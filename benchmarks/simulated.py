"""Replicas and ranks in one process, on a virtual clock: the real queue and the real retries, a made-up device.

A replica is the server's waiting line and batcher; a rank is the client's batching, choice of replicas, retry loop and
deadline. Made up are the device, whose time is linear in tokens, and the network, which is as fast for any request.
Images, HTTP, threads and the CPUs that they take are left out. Run with ``virtual_time.run(…, grace_s=0.0)``.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from prometheus_client import CollectorRegistry

from jrm_client import batching
from jrm_client.aio import MAX_CONCURRENCY
from jrm_client.attempts import recorded, until_answered
from jrm_client.concurrency import gather
from jrm_client.deadline import Deadline, deadline_of
from jrm_client.errors import APIConnectionError, APIStatusError, CandidateError, JRMError
from jrm_client.replicas import Replicas, rotated
from jrm_client.retry import MAX_RETRIES, Backoff, Schedule
from jrm_service.api.errors import headers_of, status_of
from jrm_service.errors import CandidateError as FailedCandidate
from jrm_service.errors import Draining, RequestError
from jrm_service.metrics import Metrics
from jrm_service.scoring.backend import BatchResult, WorkerLost, WorkerResult
from jrm_service.scoring.batcher import Batcher
from jrm_service.scoring.line import WaitingLine
from jrm_service.scoring.request import Request
from jrm_service.scoring.types import Candidate, Image, Score, Text, TokenSequence

EDITS = 12
TOKENS = 640  # of a candidate: 25 of them fill a batch of 16,384
BATCH_TOKENS = 16_384
SECONDS_PER_BATCH = 0.01
SECONDS_PER_TOKEN = 0.02 / TOKENS
NETWORK_S = 0.005  # each way
BODY_BYTES = 800_000  # of each image, as PPM of 512 x 512
BYTES_PER_SECOND = 1.25e9  # of each upload
DRAINING_RETRY_AFTER_S = 5.0

_PIXELS = np.zeros((1, 1, 3), dtype=np.uint8)
_SEQUENCES = (TokenSequence((Text((0,) * TOKENS),), tail=()),)
_SCORE = Score(0.0, None, {})
_numbers = itertools.count()


class Device:
    """Implements Worker: a batch takes ``slowness`` times what its tokens say; none comes to its end while it hangs."""

    def __init__(self, name: str) -> None:
        self.device = name
        self.slowness = 1.0
        self.hangs = False
        self.busy_s = 0.0
        self._turn = asyncio.Lock()
        self._lost: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Hang no more."""
        self.hangs = False
        self._turn = asyncio.Lock()
        self._lost = asyncio.get_running_loop().create_future()

    async def score(self, candidates: Sequence[Candidate]) -> WorkerResult:
        """Take the time. Raises WorkerLost when it is ended meanwhile."""
        async with self._turn:
            tokens = sum(candidate.tokens for candidate in candidates)
            seconds = self.slowness * (SECONDS_PER_BATCH + SECONDS_PER_TOKEN * tokens)
            await asyncio.wait([self.lost], timeout=None if self.hangs else seconds)
            if self.lost.done():
                raise WorkerLost("ended")
            self.busy_s += seconds
            return WorkerResult(BatchResult([_SCORE] * len(candidates), tokens), seconds)

    @property
    def lost(self) -> asyncio.Future[None]:
        """Done once it was ended."""
        assert self._lost is not None
        return self._lost

    async def end(self, *, patience_s: float = 0.0) -> None:
        """A batch under way is lost."""
        if not self.lost.done():
            self.lost.set_result(None)

    async def sleep(self) -> None:
        """Nobody asks for it here."""
        raise WorkerLost("no weights to keep")

    async def wake(self) -> None:
        """Nobody asks for it here."""
        raise WorkerLost("no weights were kept")


class SimulatedReplica:
    """One server: its line, its batcher and a device. ``received`` counts requests, refused ones included."""

    def __init__(self, name: str, metrics: Metrics) -> None:
        self.name = name
        self.received = 0
        self.device = Device(name)
        self._metrics = metrics
        self._draining = False
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._requests: set[Request] = set()
        self._gone: asyncio.Future[None] | None = None
        self._line: WaitingLine | None = None
        self._batcher: Batcher | None = None

    async def start(self) -> None:
        """As new."""
        loop = asyncio.get_running_loop()
        await self.device.start()
        self._line = WaitingLine(max_body_bytes=2**30, max_queue=4096)
        self._batcher = Batcher(
            [self.device],
            max_batch_tokens=BATCH_TOKENS,
            hang_timeout_s=120.0,
            metrics=self._metrics,
            clock=loop.time,
            on_drained=self._line.drained,
        )
        self._batcher.start()
        self._gone, self._draining = loop.create_future(), False

    async def kill(self) -> None:
        """Every connection breaks, and none can be made."""
        assert self._gone is not None
        assert self._batcher is not None
        gone, self._gone = self._gone, None
        gone.set_result(None)
        await self._batcher.stop(0.0)

    async def drain(self) -> None:
        """Finish what was admitted, refuse the rest, and then be gone."""
        self._draining = True
        while self._requests:
            await asyncio.wait([entry.future for request in self._requests for entry in request.entries])
            await asyncio.sleep(2 * NETWORK_S)
        await self.kill()

    def freeze(self) -> None:
        """Accept connections and answer nobody, as a process does that is stopped, or a host that is cut off."""
        self._thawed.clear()

    def thaw(self) -> None:
        """Answer again."""
        self._thawed.set()

    async def greet(self) -> None:
        """``GET /health/live``. Raises as ``ask`` does."""
        await asyncio.sleep(NETWORK_S)
        if self._gone is None:
            raise APIConnectionError("refused")
        await self._thawed.wait()
        await asyncio.sleep(NETWORK_S)

    async def ask(self, candidates: Sequence[Candidate], timeout_ms: int) -> None:
        """One HTTP request, as the client sees it. Raises what the client makes of a reply."""
        await asyncio.sleep(NETWORK_S)
        gone = self._gone
        if gone is None:
            raise APIConnectionError("refused")
        answering = asyncio.create_task(self._answer(candidates, timeout_ms / 1e3))
        try:
            await asyncio.wait([answering, gone], return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                raise APIConnectionError("broken", sent=True)
            await self._thawed.wait()
            await asyncio.sleep(NETWORK_S)
            answering.result()
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)

    async def _answer(self, candidates: Sequence[Candidate], patience_s: float) -> None:
        await self._thawed.wait()
        self.received += 1
        try:
            if self._draining:
                raise Draining("draining", retry_after=DRAINING_RETRY_AFTER_S)
            await self._score(candidates, asyncio.get_running_loop().time() + patience_s)
        except RequestError as error:
            headers = headers_of(error)
            raise APIStatusError(
                str(error),
                status=status_of(error),
                code=error.code,
                retry_after=float(headers["retry-after"]) if headers else None,
            ) from error

    async def _score(self, candidates: Sequence[Candidate], deadline: float) -> None:
        """The way of ``ScorePath.serve`` and ``ScoreService.score``, without what they do in threads."""
        line, batcher = self._line, self._batcher
        assert line is not None
        assert batcher is not None
        line.check("", deadline - asyncio.get_running_loop().time())
        size = BODY_BYTES * (1 + len(candidates))
        async with line.body(size, "") as was_read:
            await asyncio.sleep(size / BYTES_PER_SECOND)
            was_read()
        batcher.check_ready()
        request = Request("", deadline, [len(candidates)])
        self._requests.add(request)
        try:
            queueing = asyncio.create_task(self._queue(line, batcher, request, candidates))
            outcomes = await request.outcomes()
        finally:
            queueing.cancel()
            request.cancel()
            self._requests.discard(request)
        errors = [outcome.result for outcome in outcomes if isinstance(outcome.result, FailedCandidate)]
        if len(errors) == len(candidates):
            raise APIStatusError(str(errors[0]), status=status_of(errors[0]), code=errors[0].code)
        if errors:
            raise CandidateError(str(errors[0]), code=errors[0].code)

    async def _queue(
        self, line: WaitingLine, batcher: Batcher, request: Request, candidates: Sequence[Candidate]
    ) -> None:
        await line.take_places(len(candidates), "")
        for entry, candidate in zip(request.entries, candidates, strict=True):
            entry.future.add_done_callback(lambda _: line.free_place(""))
            if not entry.future.done():
                entry.prepared = candidate
                batcher.put(entry)


@dataclass(frozen=True)
class Call:
    """One call of a rank: when it began, how long it took, and what went wrong."""

    began: float
    seconds: float
    candidates: int
    failure: str = ""


class Rank:
    """One client process. ``replicas`` is its view of the fleet, as ``Transport`` and ``Fleet`` have it."""

    def __init__(self, servers: Mapping[str, SimulatedReplica], turn: Fraction, timeout_s: float = 60.0) -> None:
        self.replicas = Replicas(rotated([*servers], turn))
        self._servers = servers
        self._timeout_s = timeout_s

    async def refresh(self, *, failing: bool = False) -> None:
        """All URLs are known."""

    async def call(self, groups: int) -> Call:
        """Score so many groups as ``AsyncJRMClient.score_batch`` does."""
        began = asyncio.get_running_loop().time()
        count = groups * EDITS
        candidates = [
            batching.Candidate((f"source {number // EDITS}",), f"edit {number}", f"{number // EDITS}")
            for number in range(count)
        ]
        sizes = {name: BODY_BYTES for one in candidates for name in (*one.sources, one.edited)}
        limits = batching.Limits(target_candidates=math.ceil(count / len(self.replicas)))
        slots = asyncio.Semaphore(MAX_CONCURRENCY)
        failure = ""
        try:
            async with deadline_of(self._timeout_s) as deadline:
                requests = batching.plan(candidates, sizes, limits)
                await gather(self._send(request, slots, deadline) for request in requests)
        except JRMError as error:
            failure = getattr(error, "code", None) or type(error).__name__
        return Call(began, asyncio.get_running_loop().time() - began, count, failure)

    async def _send(self, request: batching.Batch, slots: asyncio.Semaphore, deadline: Deadline) -> None:
        candidates = [candidate for group in request.groups for candidate in prepared(len(group.edits))]

        async def ask(name: str) -> None:
            async with recorded(self.replicas, name, self._servers[name].greet, deadline):
                await self._servers[name].ask(candidates, deadline.remaining_ms())

        async with slots:
            await until_answered(self, ask, Schedule(MAX_RETRIES, Backoff()), deadline)


def prepared(edits: int) -> Iterator[Candidate]:
    """The candidates of a group as a server queues them."""
    source = Image(b"source %d" % next(_numbers), _PIXELS, 1)
    for _ in range(edits):
        yield Candidate((source,), Image(b"edited %d" % next(_numbers), _PIXELS, 1), "edit", _SEQUENCES)


async def replicas(count: int) -> dict[str, SimulatedReplica]:
    """Started servers, by URL. One registry of metrics is enough: each would take more memory than all the rest."""
    metrics = Metrics(CollectorRegistry())
    servers = {name: SimulatedReplica(name, metrics) for name in (f"http://replica-{n}:8000" for n in range(count))}
    await asyncio.gather(*(server.start() for server in servers.values()))
    return servers
