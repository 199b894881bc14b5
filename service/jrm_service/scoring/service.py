"""From decoded request to outcomes: admit, decode and prepare in threads, queue, collect.

Order of work for one request: admission is all or nothing and comes before any image is decoded; every distinct image
is decoded once; each candidate enters the queue as soon as its own two images are ready; a bad one fails alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NoReturn, TypeVar

from jrm_service.errors import (
    CandidateError,
    DeadlineExceeded,
    DeviceLost,
    InstructionTooLong,
    InternalError,
    NoMemory,
    NotReady,
    NoWorker,
)
from jrm_service.images.decode import decode, read_header
from jrm_service.metrics import Metrics

from .backend import Preparer
from .batcher import Batcher
from .budget import ByteBudget
from .cache import ScoreCache
from .outcomes import Outcome
from .ticket import Ticket
from .types import Candidate, Image, Score, ServedModel

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ImageInput:
    """One image of a request as it came: file bytes, or why there are none.

    ``name`` is its field, for messages; ``key`` a digest of the bytes, so that equal images are decoded once.
    """

    name: str
    data: bytes | CandidateError
    key: bytes

    @classmethod
    def of(cls, name: str, data: bytes | CandidateError) -> ImageInput:
        """Hashes ``data``: call it off the event loop."""
        raw = data if isinstance(data, bytes) else str(data).encode()
        return cls(name, data, hashlib.blake2b(raw, digest_size=16).digest())


@dataclass(frozen=True, slots=True)
class GroupInput:
    """One (source, instruction) and its edits."""

    source: ImageInput
    instruction: str
    edits: Sequence[ImageInput]


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """Outcomes per group in order, and what they cost; times in milliseconds.

    ``cached`` has the shape of ``groups``: which scores were known before.
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
    """Pixels of one image by its header; bytes of all that are being decoded, and of all that are ready."""

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
        *,
        cache: ScoreCache,
        limits: ImageLimits,
        max_instruction_chars: int,
        threads: int,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model = model
        self.batcher = batcher
        self.cache = cache
        self._preparer = preparer
        self._limits = limits
        self._max_instruction_chars = max_instruction_chars
        self._decoding = ByteBudget(limits.max_decoded_bytes)
        # Two, because a source waits for its edits: whoever holds bytes for an edit waits for nothing but the device.
        self.sources = ByteBudget(limits.max_prepared_bytes // 2)
        self.edits = ByteBudget(limits.max_prepared_bytes // 2)
        self.threads = threads
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="jrm-preprocess")
        self._metrics = metrics
        self._clock = clock

    def close(self) -> None:
        """Stop the preprocessing threads; work that has not started is dropped."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def score(
        self, groups: Sequence[GroupInput], *, timeout_s: float, tenant: str = "", request_id: str = ""
    ) -> ScoreResult:
        """Score every candidate of a request of ``tenant``; cancelling the call drops whatever is unfinished.

        Raises the RequestErrors of admission (Overloaded, PayloadTooLarge, NotReady, Draining), and what
        ``_without_device`` says. Everything else is the outcome of a candidate.
        """
        sizes = [len(group.edits) for group in groups]
        with self.batcher.admit(sum(sizes), timeout_s, sizes, tenant, request_id) as ticket:
            intake = _Intake(ticket, self, groups)
            preparing = asyncio.create_task(self._prepare(intake))
            try:
                # Outcomes come at the latest at the deadline, however long preprocessing still takes.
                outcomes = await ticket.outcomes()
            finally:
                preparing.cancel()
                await asyncio.gather(preparing, return_exceptions=True)
        ends = iter(_without_device(outcomes))
        grouped = [[next(ends) for _ in group.edits] for group in groups]
        return ScoreResult(
            groups=[[outcome.result for outcome in group] for group in grouped],
            cached=[[outcome.origin == "stored" for outcome in group] for group in grouped],
            images=intake.images,
            tokens=intake.tokens,
            tokens_computed=round(sum(outcome.tokens_computed for outcome in outcomes)),
            preprocess_ms=intake.seconds * 1e3,
            queue_ms=max(outcome.queue_ms for outcome in outcomes),
            inference_ms=max(outcome.inference_ms for outcome in outcomes),
        )

    async def _prepare(self, intake: _Intake) -> None:
        started = self._clock()
        try:
            await intake.run()
        except Exception:
            # Nobody else looks at this task: without an outcome, its candidates would wait for their deadline.
            logger.exception("preparing a request failed")
            intake.fail_rest()
        finally:
            intake.seconds = self._clock() - started
            self._metrics.preprocess_seconds.observe(intake.seconds)
            self._metrics.images_decoded.inc(intake.decoded)

    def prepared_bytes(self, image: ImageInput) -> int:
        """What ``prepare_image`` will hold, from the image's header. Raises the image's own CandidateError."""
        if isinstance(image.data, CandidateError):
            raise image.data
        header = read_header(image.data, max_pixels=self._limits.max_pixels)
        return self._preparer.image_bytes(header.width, header.height)

    async def prepare_image(self, image: ImageInput, ticket: Ticket) -> Image:
        """Decode and resize in a thread, under the byte budget. Raises the image's own CandidateError."""
        if isinstance(image.data, CandidateError):
            raise image.data
        data, max_pixels = image.data, self._limits.max_pixels
        held = await self._decoding.acquire(read_header(data, max_pixels=max_pixels).decoded_bytes)
        if not ticket.active:
            self._decoding.release(held)
            raise DeadlineExceeded("the caller left or its time was up before the image was decoded")
        work = self._executor.submit(lambda: self._preparer.image(decode(data, max_pixels=max_pixels)))
        self._decoding.release_after(work, held)
        return await asyncio.wrap_future(work)

    def check_instruction(self, instruction: str) -> None:
        """Before anything is decoded for its sake. Raises InstructionTooLong."""
        if len(instruction) > self._max_instruction_chars:
            limit = self._max_instruction_chars
            raise InstructionTooLong(f"instruction: {len(instruction)} characters, the limit is {limit}")

    async def prepare_candidate(self, source: Image, edited: Image, instruction: str) -> Candidate:
        """Tokenize in a thread. Raises InstructionTooLong when the model's context is too short."""
        return await self._in_thread(lambda: self._preparer.candidate(source, edited, instruction))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)


_NO_MEMORY_RETRY_S = 5.0


def _without_device(outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
    """The outcomes, unless a device was missing for some: then another server, or this one later, takes the request.

    Raises NotReady where nothing speaks against its candidates, DeviceLost where some were on the last device as it was
    lost: once more elsewhere is right, again and again would bring down a fleet. Where one was lost with a second
    device or raised, the request is answered, and those that found no device are internal errors too.
    """
    stranded = [outcome.result for outcome in outcomes if isinstance(outcome.result, NoWorker | NoMemory)]
    if not stranded:
        return outcomes
    if any(isinstance(outcome.result, InternalError) for outcome in outcomes):
        return [
            replace(outcome, result=InternalError(str(outcome.result)))
            if isinstance(outcome.result, NoWorker | NoMemory)
            else outcome
            for outcome in outcomes
        ]
    lost = [error for error in stranded if isinstance(error, NoWorker)]
    if not lost:
        raise NotReady(str(stranded[0]), retry_after=_NO_MEMORY_RETRY_S)
    refusal = DeviceLost if any(error.on_device for error in lost) else NotReady
    raise refusal(str(lost[0]), retry_after=1.0)


class _Intake:
    """The way of one request's candidates into the queue, in order and a few at a time.

    A few: a request of a thousand candidates must neither fill the threads' queue in front of everybody else nor keep
    its own first candidate from the device until its last image is decoded. Pixels are held from when they are needed
    until the last candidate that uses them has its outcome.
    """

    def __init__(self, ticket: Ticket, service: ScoreService, groups: Sequence[GroupInput]) -> None:
        self._ticket = ticket
        self._service = service
        self._candidates = [(group, edit) for group in groups for edit in group.edits]
        self._users = Counter(image.key for group, edit in self._candidates for image in (group.source, edit))
        self._source_users = Counter(group.source.key for group, _ in self._candidates)
        self._images: dict[bytes, asyncio.Task[Image | CandidateError]] = {}
        self._source_bytes: dict[bytes, asyncio.Task[int | CandidateError]] = {}
        self._edit_bytes: dict[int, int] = {}
        self._finished = [False] * len(self._candidates)
        self.images = len(self._users)
        self.decoded = 0
        self.tokens = 0
        self.seconds = 0.0
        ticket.on_outcome = self._on_outcome

    async def run(self) -> None:
        """Every candidate ends in the queue or with its error; returns when the last one has."""
        # Source by source: whoever waits for room for the next one has started all that keeps the last one held.
        rank = {key: number for number, key in enumerate(self._source_users)}
        waiting = iter(sorted(range(len(self._candidates)), key=lambda n: rank[self._candidates[n][0].source.key]))

        async def worker() -> None:
            for index in waiting:
                if not self._finished[index]:
                    await self._candidate(index, *self._candidates[index])

        async with asyncio.TaskGroup() as self._tasks:
            for _ in range(min(self._service.threads, len(self._candidates))):
                self._tasks.create_task(worker())

    def fail_rest(self) -> None:
        """An internal error for every candidate that has no outcome yet."""
        for index in range(len(self._candidates)):
            self._ticket.fail(index, InternalError("preprocessing failed"))

    async def _candidate(self, index: int, group: GroupInput, edit: ImageInput) -> None:
        with self._fails_alone(index):
            self._service.check_instruction(group.instruction)
            source = await self._source(group.source)
            edited = await self._edit(index, edit)
            candidate = await self._service.prepare_candidate(source, edited, group.instruction)
            self.tokens += candidate.tokens
            self._enter(index, candidate)

    @contextmanager
    def _fails_alone(self, index: int) -> Iterator[None]:
        """What is raised here ends this candidate, at once, and no other one of the request."""
        try:
            yield
        except CandidateError as error:
            self._ticket.fail(index, error)
        except Exception:
            logger.exception("preprocessing a candidate failed")
            self._ticket.fail(index, InternalError("preprocessing failed"))

    def _enter(self, index: int, candidate: Candidate) -> None:
        """Into the queue, unless the score is known."""
        cache = self._service.cache
        score = cache.recall(candidate)
        if score is None and cache.store is not None:
            # Not awaited: the others are prepared and looked up meanwhile, so a request waits for one answer at most.
            self._tasks.create_task(self._ask_store(index, candidate))
        else:
            self._end_or_put(index, candidate, score)

    async def _ask_store(self, index: int, candidate: Candidate) -> None:
        with self._fails_alone(index):
            self._end_or_put(index, candidate, await self._service.cache.fetch(candidate))

    def _end_or_put(self, index: int, candidate: Candidate, score: Score | None) -> None:
        if score is None:
            self._ticket.put(index, candidate)
        else:
            self._ticket.recall(index, score)

    async def _source(self, image: ImageInput) -> Image:
        """Prepare a source; its bytes are held once for all of its candidates."""
        if image.key not in self._source_bytes:
            self._source_bytes[image.key] = asyncio.create_task(self._hold_source(image))
        held = await self._source_bytes[image.key]
        return await self._image(image) if isinstance(held, int) else _raise_as(image, held)

    async def _hold_source(self, image: ImageInput) -> int | CandidateError:
        try:
            held = await self._service.sources.acquire(self._service.prepared_bytes(image))
        except CandidateError as error:
            return error
        if self._source_users[image.key] == 0:  # all of its candidates have ended meanwhile
            self._service.sources.release(held)
        return held

    async def _edit(self, index: int, image: ImageInput) -> Image:
        """Prepare an edit; its bytes are held for its candidate."""
        try:
            held = await self._service.edits.acquire(self._service.prepared_bytes(image))
        except CandidateError as error:
            _raise_as(image, error)
        if self._finished[index]:
            self._service.edits.release(held)
            raise DeadlineExceeded("the caller left or its time was up before the image was decoded")
        self._edit_bytes[index] = held
        return await self._image(image)

    async def _image(self, image: ImageInput) -> Image:
        """The prepared image; equal bytes are prepared once."""
        if image.key not in self._images:
            self._images[image.key] = asyncio.create_task(self._prepare(image))
        prepared = await self._images[image.key]
        return prepared if isinstance(prepared, Image) else _raise_as(image, prepared)

    async def _prepare(self, image: ImageInput) -> Image | CandidateError:
        """An error is a value here: several candidates may wait for the same image."""
        try:
            prepared = await self._service.prepare_image(image, self._ticket)
        except CandidateError as error:
            return error
        self.decoded += 1
        return prepared

    def _on_outcome(self, index: int) -> None:
        """A candidate has ended: let go of what only it still held."""
        self._finished[index] = True
        group, edit = self._candidates[index]
        self._service.edits.release(self._edit_bytes.pop(index, 0))
        self._source_users[group.source.key] -= 1
        if self._source_users[group.source.key] == 0:
            self._service.sources.release(self._held_for(group.source))
        for image in (group.source, edit):
            self._users[image.key] -= 1
            if self._users[image.key] == 0:
                self._images.pop(image.key, None)

    def _held_for(self, source: ImageInput) -> int:
        task = self._source_bytes.get(source.key)
        if task is None or not task.done() or task.cancelled() or task.exception() is not None:
            return 0
        held = task.result()
        return held if isinstance(held, int) else 0


def _raise_as(image: ImageInput, error: CandidateError) -> NoReturn:
    """An image's error, told under the name of this input: another may hold the same bytes."""
    raise type(error)(f"{image.name}: {error}")
