"""The score service: takes a request through the waiting line, preparation in threads and the queue to its outcomes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from jrm_service.errors import (
    Abandoned,
    CandidateError,
    DeviceMemoryTaken,
    Draining,
    InstructionTooLong,
    InternalError,
    InvalidRequest,
    NotReady,
)
from jrm_service.images.reader import ImageInput, ImageReader, RequestImages
from jrm_service.metrics import Metrics

from .backend import Preparer
from .batcher import Batcher
from .cache import ScoreCache
from .line import FairSemaphore, WaitingLine
from .outcomes import Outcome
from .preparing import sources_problem
from .request import Entry, Request
from .types import Candidate, Image, Score, ServedModel

logger = logging.getLogger(__name__)

_RETRY_AFTER_S = 5.0


@dataclass(frozen=True, slots=True)
class GroupInput:
    """Edits that share an instruction and source images: none, one or several, in order.

    ``name`` is the group's place in the request (``groups[0]``), for messages; empty if it is the whole request.
    """

    sources: Sequence[ImageInput]
    instruction: str
    edits: Sequence[ImageInput]
    name: str = ""

    def field(self, name: str) -> str:
        """The name of a field of the group in the request: ``groups[0].source``."""
        return f"{self.name}.{name}" if self.name else name


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """Outcomes per group in order, and their cost; times in milliseconds.

    ``cached`` has the shape of ``groups``: which scores came from the cache.
    """

    groups: list[list[Score | CandidateError]]
    cached: list[list[bool]]
    images: int
    tokens: int
    tokens_computed: int
    preprocess_ms: float
    queue_ms: float
    inference_ms: float


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Pixels of one image by its header; bytes of all images that are being decoded, and of all prepared ones."""

    max_pixels: int
    max_decoded_bytes: int
    max_prepared_bytes: int


class ScoreService:
    """Scores whole requests. Use from one event loop."""

    def __init__(
        self,
        model: ServedModel,
        preparer: Preparer,
        batcher: Batcher,
        line: WaitingLine,
        *,
        cache: ScoreCache,
        limits: ImageLimits,
        max_instruction_chars: int,
        threads: int,
        metrics: Metrics,
    ) -> None:
        self.model = model
        self.batcher = batcher
        self.line = line
        self.cache = cache
        self.preparer = preparer
        self.metrics = metrics
        self.reader = ImageReader(
            preparer.image, max_pixels=limits.max_pixels, max_decoded_bytes=limits.max_decoded_bytes, threads=threads
        )
        self._max_instruction_chars = max_instruction_chars
        # Counted in images of candidates that are prepared and unfinished. A source counts for each of its edits, so
        # that a candidate holds either nothing or all that it needs, and then waits only for the device.
        self.prepared = FairSemaphore(max(1, limits.max_prepared_bytes // preparer.most_image_bytes))
        self._requests: set[Request] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._abandoned: str | None = None
        self._requests_in_progress = 0
        self._none_in_progress = asyncio.Event()
        self._none_in_progress.set()

    def close(self) -> None:
        """Stop the preprocessing threads; work that has not started is dropped."""
        self.reader.close()

    async def drain(self) -> None:
        """Wait until every request has its outcomes."""
        await self._idle.wait()

    @asynccontextmanager
    async def in_progress(self) -> AsyncIterator[None]:
        """Mark a request as in progress within the block; ``wait_for_requests`` waits for all of them."""
        self._requests_in_progress += 1
        self._none_in_progress.clear()
        try:
            yield
        finally:
            self._requests_in_progress -= 1
            if not self._requests_in_progress:
                self._none_in_progress.set()

    async def wait_for_requests(self) -> None:
        """Wait until no request is in progress, including those whose bodies are still being read."""
        await self._none_in_progress.wait()

    def abandon(self, why: str = "the server stops") -> None:
        """Fail all unfinished candidates and all later requests, which another server has to score."""
        self._abandoned = why
        for request in self._requests:
            for entry in request.entries:
                entry.fail(Abandoned(why))

    async def score(self, groups: Sequence[GroupInput], *, deadline: float, tenant: str = "") -> ScoreResult:
        """Score every candidate of a request of ``tenant``; cancelling the call drops unfinished candidates.

        ``deadline`` is on the event loop's clock. Raises InvalidRequest for a group with more or fewer source images
        than the checkpoint takes; NotReady while no worker accepts work, and while something else holds a device's
        memory; Draining when the server stops meanwhile. Everything else, the deadline included, is the outcome of a
        candidate.
        """
        if self._abandoned is not None:
            raise Draining(self._abandoned, retry_after=_RETRY_AFTER_S)
        self.batcher.check_ready()
        for group in groups:
            problem = sources_problem(len(group.sources), self.preparer.max_sources)
            if problem is not None:
                field = group.field("source")
                raise InvalidRequest(f"{field}: the checkpoint '{self.model.name}' {problem}", param=field)
        request = Request(tenant, deadline, [len(group.edits) for group in groups])
        self._requests.add(request)
        self._idle.clear()
        intake = _Intake(request, self, groups)
        preparing = asyncio.create_task(intake.run())
        try:
            outcomes = await request.outcomes()
        finally:
            preparing.cancel()
            request.cancel()
            await asyncio.gather(preparing, return_exceptions=True)
            self._requests.discard(request)
            if not self._requests:
                self._idle.set()
            self._count(request)
        for outcome in outcomes:  # these fail the whole request, so that the caller sends it again
            if isinstance(outcome.result, DeviceMemoryTaken):
                raise NotReady(str(outcome.result), retry_after=_RETRY_AFTER_S)
            if isinstance(outcome.result, Abandoned):
                raise Draining(str(outcome.result), retry_after=_RETRY_AFTER_S)
        ends = iter(outcomes)
        grouped = [[next(ends) for _ in group.edits] for group in groups]
        return ScoreResult(
            groups=[[outcome.result for outcome in group] for group in grouped],
            cached=[[outcome.origin == "stored" for outcome in group] for group in grouped],
            images=intake.images,
            tokens=intake.tokens,
            tokens_computed=sum(outcome.tokens_computed for outcome in outcomes),
            preprocess_ms=intake.seconds * 1e3,
            queue_ms=max(outcome.queue_ms for outcome in outcomes),
            inference_ms=max(outcome.inference_ms for outcome in outcomes),
        )

    def check_instruction(self, instruction: str) -> None:
        """Raise InstructionTooLong; called before any image of the candidate is decoded."""
        if len(instruction) > self._max_instruction_chars:
            limit = self._max_instruction_chars
            raise InstructionTooLong(f"instruction: {len(instruction)} characters, the limit is {limit}")

    def _count(self, request: Request) -> None:
        outcomes = [entry.future.result() for entry in request.entries]
        for outcome in outcomes:
            self.metrics.candidates.labels(outcome.label).inc()
            if outcome.label == "ok" and outcome.origin == "shared":
                self.metrics.cache_shared.inc()
            if isinstance(outcome.result, Score):
                means = {name: dimension.mean for name, dimension in outcome.result.dimensions.items()}
                self.metrics.observe_score(outcome.result.reward, means)
        entries = iter(request.entries)
        for size in request.groups:
            group = [next(entries) for _ in range(size)]
            rewards = [result.reward for entry in group if isinstance(result := entry.future.result().result, Score)]
            self.metrics.observe_spread(rewards)
            began = min((entry.put_at for entry in group if entry.put_at is not None), default=None)
            if rewards and began is not None:
                ended = max(entry.ended_at or began for entry in group)
                self.metrics.observe_groups([max(0.0, ended - began)])


class _Intake:
    """Prepares the candidates of one request and queues them, in order and a few at a time.

    Only a few, because a request of a thousand candidates must neither fill the threads' queue ahead of all others nor
    keep its first candidate from the device until its last image is decoded.
    """

    def __init__(self, request: Request, service: ScoreService, groups: Sequence[GroupInput]) -> None:
        self._request = request
        self._service = service
        self._inputs = [(group, edit) for group in groups for edit in group.edits]
        self._images = RequestImages[Image](service.reader)
        self._users = Counter(image.key for group, edit in self._inputs for image in (*group.sources, edit))
        self.images = len(self._users)
        self.tokens = 0
        self.seconds = 0.0

    async def run(self) -> None:
        """Queue every candidate, or give it its error; returns after the last one."""
        try:
            await self._service.line.take_places(len(self._request.entries), self._request.tenant)
            for entry, (group, edit) in zip(self._request.entries, self._inputs, strict=True):
                entry.future.add_done_callback(partial(self._ended, group, edit))
            await self._prepare_all()
        except Exception:
            logger.exception("preparing a request failed")
            for entry in self._request.entries:
                entry.fail(InternalError("preparing the request failed"))

    def _ended(self, group: GroupInput, edit: ImageInput, _future: asyncio.Future[Outcome]) -> None:
        """A candidate has its outcome: free its place, and drop the images that no other candidate needs."""
        self._service.line.free_place(self._request.tenant)
        for image in (*group.sources, edit):
            self._users[image.key] -= 1
            if self._users[image.key] == 0:
                self._images.forget(image)

    async def _prepare_all(self) -> None:
        began = time.perf_counter()
        slots = asyncio.Semaphore(self._service.reader.threads)
        try:
            async with asyncio.TaskGroup() as tasks:
                for entry, (group, edit) in zip(self._request.entries, self._inputs, strict=True):
                    await slots.acquire()
                    tasks.create_task(self._candidate(entry, group, edit, slots.release))
        finally:
            self.seconds = time.perf_counter() - began
            self._service.metrics.preprocess_seconds.observe(self.seconds)
            self._service.metrics.images_decoded.inc(self._images.decoded)

    async def _candidate(self, entry: Entry, group: GroupInput, edit: ImageInput, prepared: Callable[[], None]) -> None:
        """Prepare a candidate and queue it, unless its score is cached; any failure becomes its outcome."""
        service, tenant = self._service, self._request.tenant
        try:
            try:
                if entry.future.done():
                    return
                held = await service.prepared.acquire(len(group.sources) + 1, tenant)
                entry.future.add_done_callback(lambda _future: service.prepared.release(held, tenant))
                candidate = await service.reader.run(lambda: self._prepare(entry, group, edit))
                if candidate is None:
                    return
            finally:
                prepared()
            self.tokens += candidate.tokens
            score = service.cache.recall(candidate)
            if score is None:
                score = await service.cache.fetch(candidate)
            if score is not None:
                entry.end(Outcome(score, origin="stored"))
            else:
                entry.prepared = candidate
                service.batcher.put(entry)
        except CandidateError as error:
            entry.fail(error)
        except Exception:
            logger.exception("preparing a candidate failed")
            entry.fail(InternalError("preparing the candidate failed"))

    def _prepare(self, entry: Entry, group: GroupInput, edit: ImageInput) -> Candidate | None:
        """Prepare the images, then the text; runs in a thread. Returns None if the entry has ended."""
        if entry.future.done():
            return None
        self._service.check_instruction(group.instruction)
        *sources, edited = (self._images.get(image)[0] for image in (*group.sources, edit))
        return self._service.preparer.candidate(sources, edited, group.instruction)
