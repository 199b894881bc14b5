"""Requests the critiques that are not settled yet, many at a time, and records each outcome in the journal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import check, pictures, prompts
from .check import AnswerRejected
from .endpoint import Answer, Endpoint, EndpointError, RequestRefused
from .jobs import Job, Judgement
from .journal import Entry, Journal, JournalError
from .prompts import Boxes, Templates

MAX_REFUSALS = 8  # of requests before any was answered: then the rows are not the problem
READINGS = 2  # tries of a blind reading


@dataclass(frozen=True, slots=True)
class Options:
    """How critiques are requested: at most ``tries`` answers for each; ``verify``: have each one read back blindly."""

    boxes: Boxes = "yx"
    tries: int = 3
    verify: bool = True
    concurrency: int = 8
    templates: Templates = field(default_factory=lambda: prompts.TEMPLATES)


@dataclass(slots=True)
class _Spent:
    """Tokens spent on one critique."""

    tokens_in: int = 0
    tokens_out: int = 0
    unmetered: int = 0

    def add(self, answer: Answer) -> None:
        self.tokens_in += answer.tokens_in or 0
        self.tokens_out += answer.tokens_out or 0
        self.unmetered += answer.tokens_in is None or answer.tokens_out is None


@dataclass(slots=True)
class _Refusals:
    """Entries of refused requests, held back until a request is answered."""

    answered: bool = False
    held: list[Entry] = field(default_factory=list)


def unsettled(jobs: Sequence[Job], journal: Journal, *, retry_rejected: bool = False) -> list[tuple[Job, list[int]]]:
    """What is left to do: jobs with their edits that are not settled; with ``retry_rejected``, also those given up.

    Raises JournalError if an entry is about a row that has changed in the data since.
    """
    left = []
    for job in jobs:
        edits = []
        for edit in job.edits:
            settled = journal.get((job.line, job.dimension, edit))
            if settled is not None and settled.row != job.row:
                raise JournalError(
                    f"{journal.path} has answers about line {job.line}, which has changed since; use another --out"
                )
            if settled is None or (retry_rejected and not settled.accepted):
                edits.append(edit)
        if edits:
            left.append((job, edits))
    return left


async def run(
    folder: Path,
    left: Sequence[tuple[Job, list[int]]],
    endpoint: Endpoint,
    journal: Journal,
    options: Options,
    settled: Callable[[Entry], None] = lambda _entry: None,
) -> None:
    """Settle everything that is left. Image paths are relative to ``folder``; ``settled`` is called with each entry.

    Raises EndpointError if the endpoint cannot be used; what is settled by then stays in the journal.
    """
    waiting = iter(left)
    refusals = _Refusals()

    def settle(entry: Entry, *, refused: bool) -> None:
        if refused and not refusals.answered:
            refusals.held.append(entry)
            if len(refusals.held) >= MAX_REFUSALS:
                raise EndpointError(f"it refuses every request, most recently with {entry.faults[-1][-1]}")
            return
        refusals.answered = True
        for each in (*refusals.held, entry):
            journal.append(each)
            settled(each)
        refusals.held.clear()

    async def work() -> None:
        for job, edits in waiting:
            for edit in edits:
                entry, refused = await _Writer(folder, job, endpoint, options).write(edit, _others(job, edit, journal))
                settle(entry, refused=refused)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(options.concurrency, len(left))):
                group.create_task(work())
    except* EndpointError as errors:
        raise next(_leaves(errors)) from None
    for entry in refusals.held:
        journal.append(entry)
        settled(entry)


def _leaves(errors: BaseExceptionGroup[Any]) -> Iterator[BaseException]:
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _others(job: Job, edit: int, journal: Journal) -> dict[float, int]:
    """Score -> the score that was read back, for the row's other settled edits."""
    others = {}
    for other, judgement in job.edits.items():
        settled = journal.get((job.line, job.dimension, other))
        if other != edit and settled is not None and isinstance(settled.read, int) and judgement.score is not None:
            others[judgement.score] = settled.read
    return others


class _Writer:
    """Writes critiques of one row in one dimension."""

    def __init__(self, folder: Path, job: Job, endpoint: Endpoint, options: Options) -> None:
        self._folder = folder
        self._job = job
        self._endpoint = endpoint
        self._options = options

    async def write(self, edit: int, others: Mapping[float, int]) -> tuple[Entry, bool]:
        """Ask until an answer is accepted, at most ``tries`` times. Also returns whether the request was refused."""
        job, judgement = self._job, self._job.edits[edit]
        spent, faults = _Spent(), list[list[str]]()
        text: str | None = None
        critique: dict[str, Any] | None = None
        read: int | str | None = None
        tries, refused = 0, False
        try:
            messages = [await self._question(edit, judgement)]
            while critique is None and len(faults) < self._options.tries:
                tries += 1
                answer = await self._endpoint.chat(messages, prompts.schema(job.kind))
                spent.add(answer)
                text = answer.text
                try:
                    if answer.cut:
                        raise AnswerRejected(["cut off at the token limit: be shorter"])
                    value = check.parse_critique(text, job.kind, judgement, self._options.boxes)
                    read = await self._read(value["reasoning"], judgement, others, spent)
                    critique = value
                except AnswerRejected as error:
                    faults.append(error.faults)
                    messages += _rejection(text, error.faults)
        except RequestRefused as error:
            refused = True
            faults.append([f"the endpoint refused it: {error}"])
        except ValueError as error:
            faults.append([str(error)])
        entry = Entry(
            line=job.line,
            row=job.row,
            dimension=job.dimension,
            edit=edit,
            critique=critique,
            read=read,
            tries=tries,
            tokens_in=spent.tokens_in,
            tokens_out=spent.tokens_out,
            unmetered=spent.unmetered,
            faults=faults,
            answer=text if critique is None else None,
        )
        return entry, refused

    async def _question(self, edit: int, judgement: Judgement) -> dict[str, Any]:
        job = self._job
        options = self._options
        text = prompts.ask(job.kind, job.instruction, len(job.sources), judgement, options.boxes, options.templates)
        paths = prompts.images_of(job.kind, job.sources, job.images, edit, judgement)
        urls = [await asyncio.to_thread(pictures.data_url, self._folder / path) for path in paths]
        images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        return {"role": "user", "content": [*images, {"type": "text", "text": text}]}

    async def _read(
        self, reasoning: str, judgement: Judgement, others: Mapping[float, int], spent: _Spent
    ) -> int | str | None:
        """What the words argue for, read blindly. Raises AnswerRejected if they argue for another judgement."""
        if not self._options.verify:
            return None
        question = prompts.read_back(self._job.kind, judgement, check.without_scores(reasoning))
        messages = [_chat_message("user", question)]
        for attempt in range(1, READINGS + 1):
            answer = await self._endpoint.chat(messages, prompts.reading_schema(judgement))
            spent.add(answer)
            try:
                found = check.parse_reading(answer.text, judgement)
                break
            except AnswerRejected as error:
                if attempt == READINGS:
                    raise AnswerRejected([f"what the words argue for could not be read back: {error}"]) from None
                messages += _rejection(answer.text, error.faults)
        problem = check.contradiction(found, judgement, others)
        if problem is not None:
            raise AnswerRejected([problem])
        return found


def _rejection(answer: str, faults: Sequence[str]) -> list[dict[str, Any]]:
    """The messages that follow an answer that cannot be used."""
    return [_chat_message("assistant", answer), _chat_message("user", prompts.ask_again(faults))]


def _chat_message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}
