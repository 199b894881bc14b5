"""A wire's candidates -> groups, and outcomes back: candidates with equal sources and instruction form a group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.responses import Response

from jrm_service.api.score_path import IncomingRequest, ParsedRequest, ScoredRequest
from jrm_service.errors import CandidateError, InvalidRequest
from jrm_service.images.reader import ImageInput
from jrm_service.scoring.preparing import sources_problem
from jrm_service.scoring.service import GroupInput
from jrm_service.scoring.types import Score

Outcome = Score | CandidateError


@dataclass(frozen=True, slots=True)
class WireCandidate:
    """One edit as trainers list them, each with its own copy of the sources. ``name`` is its field, for messages."""

    name: str
    sources: Sequence[ImageInput]
    instruction: str
    edited: ImageInput


def check_sources(name: str, count: int, incoming: IncomingRequest) -> None:
    """Raise InvalidRequest for a field with more or fewer source images for an edit than the checkpoint takes."""
    problem = sources_problem(count, incoming.max_sources)
    if problem is not None:
        raise InvalidRequest(f"{name}: the checkpoint '{incoming.model.name}' {problem}", param=name)


def is_blank(instruction: str) -> bool:
    """Whether it is empty or only white space."""
    return not instruction or instruction.isspace()


def ask(
    candidates: Sequence[WireCandidate],
    answer: Callable[[list[Outcome], ScoredRequest], Response],
    *,
    timeout_ms: int,
) -> ParsedRequest:
    """Ask for the candidates' scores; ``answer`` gets their outcomes in this order.

    Raises InvalidRequest for no candidate and for an instruction that is blank.
    """
    if not candidates:
        raise InvalidRequest("there is nothing to score")
    members: dict[tuple[bytes | str, ...], list[int]] = {}
    instructions: set[str] = set()  # a pickle may repeat one of many megabytes a thousand times: each is checked once
    for number, candidate in enumerate(candidates):
        if candidate.instruction not in instructions:
            if is_blank(candidate.instruction):
                raise InvalidRequest(f"{candidate.name}: the instruction is empty", param=candidate.name)
            instructions.add(candidate.instruction)
        key: tuple[bytes | str, ...] = (candidate.instruction, *(source.key for source in candidate.sources))
        members.setdefault(key, []).append(number)
    groups = [_group([candidates[number] for number in numbers]) for numbers in members.values()]

    def answer_in_order(scored: ScoredRequest) -> Response:
        by_number = {
            number: outcome
            for numbers, outcomes in zip(members.values(), scored.result.groups, strict=True)
            for number, outcome in zip(numbers, outcomes, strict=True)
        }
        return answer([by_number[number] for number in range(len(candidates))], scored)

    return ParsedRequest(groups, timeout_ms, answer_in_order)


def scores(outcomes: Sequence[Outcome]) -> list[Score]:
    """The scores, for a client whose replies cannot hold errors of candidates. Raises the first candidate's error."""
    for outcome in outcomes:
        if isinstance(outcome, CandidateError):
            raise outcome
    return [outcome for outcome in outcomes if isinstance(outcome, Score)]


def _group(candidates: Sequence[WireCandidate]) -> GroupInput:
    first = candidates[0]
    return GroupInput(first.sources, first.instruction, [candidate.edited for candidate in candidates], first.name)
