"""The explain service: a request's images and prompts, the writer, and the explanations made from its text."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Protocol

from PIL import Image as PILImage

from jrm_client.protocol import CandidateErrorBody, ExplainUsage, Explanation
from jrm_service.errors import (
    DeadlineExceeded,
    Draining,
    InstructionTooLong,
    InternalError,
    InvalidRequest,
    JRMError,
    Overloaded,
)
from jrm_service.images.reader import ImageInput, ImageReader, RequestImages
from jrm_service.metrics import Metrics, begin
from jrm_service.scoring.preparing import sources_problem
from jrm_service.scoring.types import Image, ServedModel, TokenSequence

from .critique import read, schema
from .writer import EngineState, Piece, Prompt, Writer

logger = logging.getLogger(__name__)

OUTCOMES = ("ok", "truncated", "invalid_critique", "deadline_exceeded", "explain_unavailable", "internal")
"""How a critique can end."""

_KEEP = 0.8  # weight of the old mean when a request's duration is added to the mean behind Retry-After


class Questions(Protocol):
    """Turns images and an instruction into prompts for the language head. Thread-safe."""

    def image(self, rgb: PILImage.Image) -> Image:
        """RGB to pixels as the model sees them. Raises ImageTooLarge."""
        ...

    @property
    def max_sources(self) -> int:
        """The most source images of an edit. 0: there are none; otherwise there is at least one."""
        ...

    def question(self, dimension: str, sources: Sequence[Image], edited: Image, instruction: str) -> TokenSequence:
        """The prompt of one dimension. Raises InstructionTooLong."""
        ...


@dataclass(frozen=True, slots=True)
class ExplainLimits:
    """The limits of requests. ``max_tokens`` caps a request's own; ``context`` is for prompt and answer together."""

    max_pixels: int
    max_decoded_bytes: int
    max_instruction_chars: int
    max_tokens: int
    max_requests: int
    context: int


@dataclass(frozen=True, slots=True)
class Question:
    """One request. ``dimensions`` None means all. ``timeout_s`` counts from the call of ``explain``."""

    sources: Sequence[ImageInput]
    edited: ImageInput
    instruction: str
    dimensions: Sequence[str] | None
    max_tokens: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of one dimension's critique, as it is written."""

    dimension: str
    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """One dimension is finished. ``error`` is set if ``explanation.status`` is ``error``."""

    dimension: str
    explanation: Explanation
    error: JRMError | None = None


class ExplainService:
    """Explains edits, for as many callers at once as the limits allow. Use from one event loop.

    Args:
        model: the model that is served, for replies.
        dimensions: name -> whether its critique has regions, as the manifest's ``explain`` says.
        questions: prepares the checkpoint's images and prompts.
        placeholder: the token id that stands for an image.
        writer: the language head.
        limits: the limits of a request.
        threads: how many threads decode and tokenize.
        metrics: counts the work.
    """

    def __init__(
        self,
        model: ServedModel,
        dimensions: Mapping[str, bool],
        questions: Questions,
        placeholder: int,
        writer: Writer,
        *,
        limits: ExplainLimits,
        threads: int,
        metrics: Metrics,
    ) -> None:
        self.model = model
        self.writer = writer
        self._dimensions = dict(dimensions)
        self._questions = questions
        self._placeholder = placeholder
        self._limits = limits
        self._metrics = metrics
        self._reader = ImageReader(
            questions.image, max_pixels=limits.max_pixels, max_decoded_bytes=limits.max_decoded_bytes, threads=threads
        )
        for outcome in OUTCOMES:
            begin(metrics.explanations, outcome)
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self._mean_seconds = 1.0

    def state(self) -> tuple[EngineState, str]:
        """Whether critiques are written, and if not, why."""
        return ("draining", "the server is shutting down") if self._draining else self.writer.state()

    async def drain(self) -> None:
        """Refuse new requests and wait for the running ones."""
        self._draining = True
        await self._idle.wait()

    def close(self) -> None:
        """Stop the threads; work that has not started is dropped."""
        self._reader.close()

    async def explain(self, question: Question) -> AsyncGenerator[Delta | Done]:
        """The events of a request as they happen: deltas, and one Done for each dimension.

        Closing the iterator stops the critiques that are still being written. Before the first event it raises
        Draining, ExplainUnavailable, Overloaded, InvalidRequest, and the CandidateError of an unusable image or
        instruction, or of a deadline that passed before there was a prompt. Later failures are in the Done of their
        dimension.
        """
        names = self._chosen(question.dimensions)
        problem = sources_problem(len(question.sources), self._questions.max_sources)
        if problem is not None:
            raise InvalidRequest(f"source: the checkpoint '{self.model.name}' {problem}", param="source")
        self._check_open()
        began = asyncio.get_running_loop().time()
        deadline = began + question.timeout_s
        with self._counted(began):
            prompts, size = await self._prompts(question, names, deadline)
            events: asyncio.Queue[Delta | Done] = asyncio.Queue()
            writing = [
                asyncio.create_task(self._write(name, prompt, size, question.max_tokens, deadline, events.put_nowait))
                for name, prompt in prompts.items()
            ]
            try:
                unfinished = len(writing)
                while unfinished:
                    event = await events.get()
                    unfinished -= isinstance(event, Done)
                    yield event
            finally:
                for task in writing:
                    task.cancel()
                await asyncio.gather(*writing, return_exceptions=True)

    def _chosen(self, dimensions: Sequence[str] | None) -> list[str]:
        if dimensions is None:
            return list(self._dimensions)
        for name in dimensions:
            if name not in self._dimensions:
                known = ", ".join(self._dimensions)
                raise InvalidRequest(f"dimensions: '{name[:64]}' is not one of {known}", param="dimensions")
        return list(dict.fromkeys(dimensions))

    def _check_open(self) -> None:
        if self._draining:
            raise Draining("the server is shutting down; send the request to another replica", retry_after=5)
        if self._running >= self._limits.max_requests:
            wait = self._mean_seconds / self._limits.max_requests
            raise Overloaded(f"{self._running} explanations are being written", retry_after=wait)
        self.writer.check()

    @contextmanager
    def _counted(self, began: float) -> Iterator[None]:
        self._running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._running -= 1
            took = asyncio.get_running_loop().time() - began
            self._mean_seconds = _KEEP * self._mean_seconds + (1 - _KEEP) * took
            if self._running == 0:
                self._idle.set()

    # --- before the writer --------------------------------------------------------------------------------------------

    async def _prompts(
        self, question: Question, names: Sequence[str], deadline: float
    ) -> tuple[dict[str, Prompt], tuple[int, int]]:
        """The prompt of each dimension, and width and height of the edited image as it was sent."""
        limit = self._limits.max_instruction_chars
        if len(question.instruction) > limit:
            raise InstructionTooLong(f"instruction: {len(question.instruction)} characters, the limit is {limit}")
        try:
            async with asyncio.timeout_at(deadline):
                return await self._reader.run(lambda: self._ask(question, names))
        except TimeoutError:
            raise DeadlineExceeded("the time was up before the images were prepared") from None

    def _ask(self, question: Question, names: Sequence[str]) -> tuple[dict[str, Prompt], tuple[int, int]]:
        images = RequestImages(self._reader)
        sources = [images.get(source)[0] for source in question.sources]
        edited, size = images.get(question.edited)
        sequences = {name: self._questions.question(name, sources, edited, question.instruction) for name in names}
        longest, context = max(sequence.tokens for sequence in sequences.values()), self._limits.context
        if longest >= context:  # the setting may be lower than the model's own, which ``question`` checks
            raise InstructionTooLong(f"instruction and images make {longest} tokens, the limit is {context}")
        return {name: as_prompt(sequence, self._placeholder) for name, sequence in sequences.items()}, size

    # --- and after it -------------------------------------------------------------------------------------------------

    async def _write(
        self,
        name: str,
        prompt: Prompt,
        size: tuple[int, int],
        max_tokens: int,
        deadline: float,
        emit: Callable[[Delta | Done], None],
    ) -> None:
        """Emit a dimension's deltas and, whatever happens, its Done."""
        began = asyncio.get_running_loop().time()
        regions, raw, last = self._dimensions[name], "", Piece("")
        room = min(max_tokens, self._limits.max_tokens, self._limits.context - prompt.tokens)
        explanation: Explanation | None = None
        error: JRMError | None = None
        try:
            async with (
                asyncio.timeout_at(deadline),
                aclosing(self.writer.write(prompt, max_tokens=room, schema=schema(regions))) as pieces,
            ):
                async for last in pieces:
                    raw += last.text
                    if last.text:
                        emit(Delta(name, last.text))
            usage = ExplainUsage(prompt_tokens=prompt.tokens, completion_tokens=last.tokens)
            if last.finish_reason is not None:
                explanation = read(raw, regions=regions, size=size, finish_reason=last.finish_reason, usage=usage)
        except TimeoutError:
            error = DeadlineExceeded("the time was up while the critique was written")
        except JRMError as failure:
            error = failure
        except Exception:
            logger.exception("a critique could not be written")
            error = InternalError("the critique could not be written")
        if explanation is None:
            error = error or InternalError("the critique was not finished")
            usage = ExplainUsage(prompt_tokens=prompt.tokens, completion_tokens=last.tokens)
            body = CandidateErrorBody(code=error.code, message=str(error))
            explanation = Explanation(status="error", raw=raw, usage=usage, error=body)
        self._metrics.explain_seconds.observe(asyncio.get_running_loop().time() - began)
        self._metrics.explain_tokens.labels("prompt").inc(prompt.tokens)
        self._metrics.explain_tokens.labels("completion").inc(last.tokens)
        self._metrics.explanations.labels(explanation.error.code if explanation.error else explanation.status).inc()
        emit(Done(name, explanation, error))


def as_prompt(sequence: TokenSequence, placeholder: int) -> Prompt:
    """Return a sequence as the prompt of a writer, with the id ``placeholder`` for each image."""
    ids: list[int] = []
    images = []
    for segment in sequence.segments:
        if isinstance(segment, Image):
            ids.append(placeholder)
            images.append(segment.pixels)
        else:
            ids += segment.ids
    return Prompt([*ids, *sequence.tail], images, sequence.tokens)
