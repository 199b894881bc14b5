"""From decoded request to outcomes: admit, decode and prepare in threads, queue, collect.

Order of work for one request: admission is all or nothing and comes before any image is decoded; every distinct image
is decoded once; each candidate enters the queue as soon as its own two images are ready; a bad one fails alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from jrm_service.errors import CandidateError, DeadlineExceeded, InstructionTooLong, InternalError
from jrm_service.images.decode import decode, decoded_bytes
from jrm_service.metrics import Metrics

from .backend import Preparer
from .batcher import Batcher
from .budget import ByteBudget
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
    """Outcomes per group in order, and what they cost; times in milliseconds."""

    groups: list[list[Score | CandidateError]]
    images: int
    tokens: int
    tokens_computed: int
    preprocess_ms: float
    queue_ms: float
    inference_ms: float


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Bounds on what is decoded: pixels of one image by its header, decoded bytes of all images at one moment."""

    max_pixels: int
    max_decoded_bytes: int


class ScoreService:
    """Scores whole requests. Use from one event loop."""

    def __init__(
        self,
        model: ServedModel,
        preparer: Preparer,
        batcher: Batcher,
        *,
        limits: ImageLimits,
        max_instruction_chars: int,
        threads: int,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model = model
        self.batcher = batcher
        self._preparer = preparer
        self._limits = limits
        self._max_instruction_chars = max_instruction_chars
        self._budget = ByteBudget(limits.max_decoded_bytes)
        self.threads = threads
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="jrm-preprocess")
        self._metrics = metrics
        self._clock = clock

    def close(self) -> None:
        """Stop the preprocessing threads; work that has not started is dropped."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def score(self, groups: Sequence[GroupInput], *, timeout_s: float) -> ScoreResult:
        """Score every candidate of a request; cancelling the call drops whatever is unfinished.

        Raises the RequestErrors of admission (Overloaded, PayloadTooLarge, NotReady, Draining). Everything else is the
        outcome of a candidate.
        """
        sizes = [len(group.edits) for group in groups]
        with self.batcher.admit(sum(sizes), timeout_s=timeout_s, groups=sizes) as ticket:
            intake = _Intake(ticket, self)
            preparing = asyncio.create_task(self._prepare(intake, groups))
            try:
                # Outcomes come at the latest at the deadline, however long preprocessing still takes.
                outcomes = await ticket.outcomes()
            finally:
                preparing.cancel()
                await asyncio.gather(preparing, return_exceptions=True)
        results = iter([outcome.result for outcome in outcomes])
        return ScoreResult(
            groups=[[next(results) for _ in group.edits] for group in groups],
            images=len({image.key for group in groups for image in (group.source, *group.edits)}),
            tokens=intake.tokens,
            tokens_computed=round(sum(outcome.tokens_computed for outcome in outcomes)),
            preprocess_ms=intake.seconds * 1e3,
            queue_ms=max(outcome.queue_ms for outcome in outcomes),
            inference_ms=max(outcome.inference_ms for outcome in outcomes),
        )

    async def _prepare(self, intake: _Intake, groups: Sequence[GroupInput]) -> None:
        started = self._clock()
        try:
            await intake.run(groups)
        finally:
            intake.seconds = self._clock() - started
            self._metrics.preprocess_seconds.observe(intake.seconds)
            self._metrics.images_decoded.inc(intake.decoded)

    async def prepare_image(self, image: ImageInput, ticket: Ticket) -> Image:
        """Decode and resize in a thread, under the byte budget. Raises the image's own CandidateError."""
        if isinstance(image.data, CandidateError):
            raise image.data
        data = image.data
        needed = await self._in_thread(lambda: decoded_bytes(data, max_pixels=self._limits.max_pixels))
        async with self._budget.hold(needed):
            if not ticket.active:
                raise DeadlineExceeded("the caller left or its time was up before the image was decoded")
            return await self._in_thread(lambda: self._preparer.image(decode(data, max_pixels=self._limits.max_pixels)))

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


class _Intake:
    """The way of one request's candidates into the queue, in order and a few at a time.

    A few: a request of a thousand candidates must neither fill the threads' queue in front of everybody else nor keep
    its own first candidate from the device until its last image is decoded.
    """

    def __init__(self, ticket: Ticket, service: ScoreService) -> None:
        self._ticket = ticket
        self._service = service
        self._images: dict[bytes, asyncio.Task[Image | CandidateError]] = {}
        self.decoded = 0
        self.tokens = 0
        self.seconds = 0.0

    async def run(self, groups: Sequence[GroupInput]) -> None:
        """Every candidate ends in the queue or with its error; returns when the last one has."""
        waiting = enumerate((group, edit) for group in groups for edit in group.edits)

        async def worker() -> None:
            for index, (group, edit) in waiting:
                await self._candidate(index, group, edit)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._service.threads):
                tasks.create_task(worker())

    async def _candidate(self, index: int, group: GroupInput, edit: ImageInput) -> None:
        try:
            self._service.check_instruction(group.instruction)
            source, edited = await self._image(group.source), await self._image(edit)
            candidate = await self._service.prepare_candidate(source, edited, group.instruction)
        except CandidateError as error:
            self._ticket.fail(index, error)
        except Exception:
            logger.exception("preprocessing a candidate failed")
            self._ticket.fail(index, InternalError("preprocessing failed"))
        else:
            self.tokens += candidate.tokens
            self._ticket.put(index, candidate)

    async def _image(self, image: ImageInput) -> Image:
        """The prepared image; equal bytes are prepared once. Its error is told under this input's own name."""
        if image.key not in self._images:
            self._images[image.key] = asyncio.create_task(self._prepare(image))
        prepared = await self._images[image.key]
        if isinstance(prepared, CandidateError):
            raise type(prepared)(f"{image.name}: {prepared}")
        return prepared

    async def _prepare(self, image: ImageInput) -> Image | CandidateError:
        """An error is a value here: several candidates may wait for the same image."""
        try:
            prepared = await self._service.prepare_image(image, self._ticket)
        except CandidateError as error:
            return error
        self.decoded += 1
        return prepared
