"""Estimates the requests and tokens that the critiques of a data set will take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import pictures, prompts
from .jobs import Job, Kind
from .journal import Journal
from .prompts import Boxes, Templates

PIXELS_PER_TOKEN = 32 * 32  # of Qwen3-VL; other models differ
CHARACTERS_PER_TOKEN = 4
TOKENS_OUT = {"following": 250, "quality": 120}
LEAST_ANSWERS = 20


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices of a million tokens, in any currency."""

    tokens_in: float = 0.0
    tokens_out: float = 0.0

    def cost(self, tokens_in: float, tokens_out: float) -> float:
        """The price of tokens."""
        return (tokens_in * self.tokens_in + tokens_out * self.tokens_out) / 1e6


@dataclass(frozen=True, slots=True)
class Estimate:
    """Critiques to write, requests if every answer is accepted, and their tokens; ``basis``: how they are counted."""

    critiques: int
    requests: int
    tokens_in: int
    tokens_out: int
    basis: str


def estimate(
    folder: Path,
    left: Sequence[tuple[Job, list[int]]],
    journal: Journal,
    *,
    boxes: Boxes,
    templates: Templates,
    verify: bool,
) -> Estimate:
    """Estimate what is left: from the answers so far if there are LEAST_ANSWERS or more, else from sizes.

    Raises ValueError for an image that cannot be read.
    """
    critiques = sum(len(edits) for _, edits in left)
    requests = critiques * (1 + verify)
    if len(journal) >= LEAST_ANSWERS:
        spent_in, spent_out, _ = journal.total()
        return Estimate(
            critiques,
            requests,
            round(critiques * spent_in / len(journal)),
            round(critiques * spent_out / len(journal)),
            f"the mean of {len(journal):,} critiques that were written, answers that were asked for again included",
        )
    sizes: dict[str, int] = {}
    tokens_in = tokens_out = 0
    for job, edits in left:
        for edit in edits:
            judgement = job.edits[edit]
            for path in prompts.images_of(job.kind, job.sources, job.images, edit, judgement):
                if path not in sizes:
                    sizes[path] = pictures.pixels(folder / path)
                tokens_in += sizes[path] // PIXELS_PER_TOKEN
            tokens_in += _tokens(prompts.ask(job.kind, job.instruction, len(job.sources), judgement, boxes, templates))
            tokens_out += TOKENS_OUT[job.kind]
            if verify:
                tokens_in += _tokens(prompts.read_back(job.kind, judgement, "")) + TOKENS_OUT[job.kind]
                tokens_out += 8
    return Estimate(
        critiques,
        requests,
        tokens_in,
        tokens_out,
        f"{CHARACTERS_PER_TOKEN} characters or {PIXELS_PER_TOKEN:,} pixels a token, "
        f"{_words(TOKENS_OUT)} tokens an answer, and no answer asked for again",
    )


def _words(tokens_out: dict[Kind, int] | dict[str, int]) -> str:
    return " or ".join(str(count) for count in tokens_out.values())


def _tokens(text: str) -> int:
    return len(text) // CHARACTERS_PER_TOKEN
