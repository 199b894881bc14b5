"""Whether an answer is a critique to train on, and a message about every fault for the model that wrote it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jrm_client import strict_json
from jrm_service.explain.critique import MAX_REGIONS
from jrm_training.data import x_first

from .jobs import Judgement, Kind
from .prompts import BOX, Boxes

SCALE = 1000  # of boxes
MAX_FAULTS = 8

_Model = TypeVar("_Model", bound=BaseModel)
_FENCED = re.compile(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", re.DOTALL)
_ANY_TAG = re.compile(r"<\|.*?\|>")
_TAG = re.compile(r"<\|(?:global|bbox_(0|[1-9]\d{0,2}))\|>")
_NUMBER = r"([1-4](?:\.\d+)?)"
_STATED = re.compile(
    rf"\b{_NUMBER}\s*(?:/|out of)\s*4\b|\bscored?:?\s+(?:(?:of|a|is|as)\s+)*{_NUMBER}\b", re.IGNORECASE
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Region(_Strict):
    id: int
    label: Annotated[str, Field(min_length=1)]
    bbox_2d: Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=4, max_length=4)]


class _Quality(_Strict):
    reasoning: Annotated[str, Field(min_length=1)]


class _Following(_Quality):
    edit_region: list[_Region]


class _ScoreRead(_Strict):
    score: Literal[1, 2, 3, 4]


class _VerdictRead(_Strict):
    verdict: Literal["better", "worse", "equal"]


class AnswerRejected(ValueError):
    """The answer cannot be used; ``faults`` says why."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = list(faults)


def parse_critique(text: str, kind: Kind, judgement: Judgement, boxes: Boxes) -> dict[str, Any]:
    """Return the critique of an answer as training data has it: boxes with x first, keys in C.1's order.

    ``boxes`` is the order that was asked for. Raises AnswerRejected with everything that is wrong: no JSON object of
    the schema, regions outside the image or without an area, tags without a region, regions without a tag, missing
    text, or text that states another score than the one to be argued for.
    """
    answer = _validated(text, _Following if kind == "following" else _Quality)
    faults = []
    if not answer.reasoning.strip():
        faults.append("reasoning: empty")
    regions: list[dict[str, Any]] = []
    ids: list[int] = []
    if isinstance(answer, _Following):
        for number, region in enumerate(answer.edit_region):
            box, fault = _box(region.bbox_2d, boxes)
            faults += [f"edit_region[{number}].bbox_2d: {fault}"] * (fault is not None)
            regions.append({"id": region.id, "label": region.label, "bbox_2d": box})
        ids = [region.id for region in answer.edit_region]
        faults += _id_faults(ids)
    faults += _tag_faults(answer.reasoning, ids, needed=kind == "following")
    if judgement.score is not None:
        faults += _stated_faults(answer.reasoning, judgement.score)
    if faults:
        raise AnswerRejected(faults[:MAX_FAULTS])
    return ({"edit_region": regions} if kind == "following" else {}) | {"reasoning": answer.reasoning}


def parse_reading(text: str, judgement: Judgement) -> int | str:
    """Return what a blind reading found: a score, or a verdict. Raises AnswerRejected if it is neither."""
    if judgement.verdict is not None:
        return _validated(text, _VerdictRead).verdict
    return _validated(text, _ScoreRead).score


def contradiction(found: int | str, judgement: Judgement, others: Mapping[float, int]) -> str | None:
    """Say how words that were read as ``found`` contradict the judgement, or return None.

    A score may be read as the next one: words have no decimals. It may not be read further off, nor on the other side
    of an edit of the same row: ``others`` are the scores of those, and what they were read as. A verdict may be read as
    "equal", but not as its opposite.
    """
    if isinstance(found, str):
        if {found, judgement.verdict} == {"better", "worse"}:
            return f"the words argue that the edit is {found}, and people found it {judgement.verdict}"
        return None
    assert judgement.score is not None
    if abs(found - judgement.score) > 1:
        return f"the words argue for a score of {found}, and people gave {judgement.score:g}"
    for score, read in others.items():
        if (found - read) * (judgement.score - score) < 0:
            return (
                f"the words argue for a score of {found}, and those about an edit that people gave {score:g} for "
                f"{read}; people gave this one {judgement.score:g}"
            )
    return None


def without_scores(reasoning: str) -> str:
    """The words without any score that they state, so that a blind reading has to go by what they argue for."""
    return _STATED.sub("…", reasoning)


def _validated(text: str, model: type[_Model]) -> _Model:
    fenced = _FENCED.fullmatch(text)  # as most models put JSON into a code block
    try:
        value = strict_json.loads(fenced[1] if fenced else text)
    except ValueError as error:
        raise AnswerRejected([str(error)]) from None
    try:
        return model.model_validate(value)
    except ValidationError as error:
        items = error.errors(include_url=False, include_input=False, include_context=False)
        raise AnswerRejected([_reason(item["loc"], item["msg"]) for item in items[:MAX_FAULTS]]) from None


def _reason(location: tuple[str | int, ...], message: str) -> str:
    where = "".join(f"[{piece}]" if isinstance(piece, int) else f".{piece[:40]}" for piece in location)
    return f"{where.removeprefix('.')}: {message}".removeprefix(": ")


def _box(numbers: Sequence[float], boxes: Boxes) -> tuple[list[float], str | None]:
    """The box with x first, and what is wrong with it."""
    outside = next((number for number in numbers if not 0 <= number <= SCALE), None)
    if outside is not None:
        return [], f"{outside:g} is outside the image, which goes from 0 to {SCALE}"
    whole = [int(number) if number == int(number) else number for number in numbers]
    try:
        box = x_first(whole) if boxes == "yx" else whole
    except ValueError:
        box = []
    if not box or box[0] >= box[2] or box[1] >= box[3]:
        return [], f"{whole} has no area as {BOX[boxes]}"
    return box, None


def _id_faults(ids: Sequence[int]) -> list[str]:
    faults = []
    if len(set(ids)) < len(ids):
        faults.append(f"edit_region: ids {list(ids)}: each may appear only once")
    if any(not 0 <= number < MAX_REGIONS for number in ids):
        faults.append(f"edit_region: ids {list(ids)}, expected 0 to {MAX_REGIONS - 1}")
    return faults


def _tag_faults(reasoning: str, ids: Sequence[int], *, needed: bool) -> list[str]:
    faults = []
    tags = _ANY_TAG.findall(reasoning)
    unknown = dict.fromkeys(tag for tag in tags if not _TAG.fullmatch(tag))
    faults += [f"reasoning: {tag[:40]} is not a known tag" for tag in unknown]
    tagged = dict.fromkeys(int(match[1]) for match in _TAG.finditer(reasoning) if match[1] is not None)
    faults += [f"reasoning: there is no region with the id of <|bbox_{n}|>" for n in tagged if n not in ids]
    if needed:
        faults += [f"reasoning: region {n} is not mentioned: <|bbox_{n}|> is missing" for n in ids if n not in tagged]
        faults += ["reasoning: <|global|> is missing"] * ("<|global|>" not in tags)
    pieces = _TAG.split(reasoning)[2::2]  # the text after each tag
    faults += ["reasoning: a tag has no words after it"] * any(not piece.strip() for piece in pieces)
    return faults


def _stated_faults(reasoning: str, score: float) -> list[str]:
    stated = dict.fromkeys(float(match[1] or match[2]) for match in _STATED.finditer(reasoning))
    return [f"reasoning: states a score of {other:g}, and people gave {score:g}" for other in stated if other != score]
