"""Golden scores: ``reward/golden.json`` holds scores of a few fixed inputs, and the self-test compares with them.

They were recorded in float32 by the plain scorer, the reference. At start-up they are compared with the scores of the
served engine, dtype and device for the same image files, so that a device, driver or library that computes something
else is found before it rewards anything. The file is not part of the fingerprint, but names the one it belongs to.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from jrm_service.errors import CandidateError, CheckpointError, InvalidImage
from jrm_service.images.decode import decode
from jrm_service.scoring.backend import Backend, Preparer
from jrm_service.scoring.types import Candidate, Score

from .checkpoint import Checkpoint
from .checkpoint_files import read_json, validation_problems

FILE = "reward/golden.json"
FORMAT: Final = "jrm-golden/1"
MAX_CASES = 64

_BATCH = 8  # cases scored together: they share common beginnings, and so few fit into memory
_SHOWN = 8  # lines of a failed self-test


def _is_base64(text: str) -> str:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("not base64") from None
    return text


Number = Annotated[float, Field(allow_inf_nan=False)]
Std = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Allowed = Annotated[float, Field(gt=0, allow_inf_nan=False)]
ImageFile = Annotated[str, Field(min_length=1), AfterValidator(_is_base64)]
SourceFiles = Annotated[
    list[ImageFile],
    BeforeValidator(lambda source: [] if source is None else [source] if isinstance(source, str) else source),
    PlainSerializer(lambda source: source[0] if len(source) == 1 else source or None),
]
"""The source as in a request: an image, a list of images, or null."""

Text = Annotated[str, Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Tolerance(_Strict):
    """How far a number may be off, by precision, in the unit of ``deviation``.

    The default for fp8 is five times that of bfloat16, since it rounds about that much more coarsely.
    """

    float32: Allowed = 1e-3
    float16: Allowed = 1e-2
    bfloat16: Allowed = 5e-2
    fp8: Allowed = Field(default_factory=lambda given: 5 * given.get("bfloat16", 5e-2))


class GoldenInput(_Strict):
    """One candidate: image files as base64 (PNG where we write them) and an instruction."""

    source: SourceFiles = []
    edited: ImageFile
    instruction: Text


class GoldenDimension(_Strict):
    """The recorded output of one dimension; ``std`` is null for a mean-only head."""

    mean: Number
    std: Std | None


class GoldenCase(GoldenInput):
    """One candidate and its recorded score."""

    dimensions: Annotated[dict[Text, GoldenDimension], Field(min_length=1)]
    reward: Number
    reward_std: Std | None


class Golden(_Strict):
    """A whole ``reward/golden.json``."""

    format: Literal["jrm-golden/1"]
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    tolerance: Tolerance = Tolerance()
    cases: Annotated[list[GoldenCase], Field(min_length=1, max_length=MAX_CASES)]


@dataclass(frozen=True, slots=True)
class SelfTest:
    """The result of a self-test that passed; ``max_deviation`` and ``tolerance`` in the unit of ``deviation``."""

    cases: int
    max_deviation: float
    tolerance: float


def read(checkpoint: Checkpoint) -> Golden | None:
    """Read the golden scores of a checkpoint; None if it has none. Raises CheckpointError naming every wrong key."""
    file = checkpoint.path / FILE
    if not file.exists():
        return None
    problems: list[str] = []
    value = read_json(file, problems, label=FILE)
    if value is None:
        raise CheckpointError(problems)
    try:
        return Golden.model_validate(value)
    except ValidationError as error:
        raise CheckpointError(validation_problems(FILE, error)) from None


def require_fingerprint(golden: Golden, checkpoint: Checkpoint) -> None:
    """Raise CheckpointError when the scores were recorded for another checkpoint than this one.

    If pixels or token ids have drifted, scores that were recorded before still belong to this checkpoint: comparing
    them shows how much the drift changes.
    """
    if golden.fingerprint not in (checkpoint.fingerprint, checkpoint.pinned_fingerprint):
        reason = (
            f"{FILE}: fingerprint: recorded for {golden.fingerprint}, the checkpoint's is {checkpoint.fingerprint}: "
            "weights, manifest, tokenizer or preprocessing have changed since, or were recorded where pixels or token "
            "ids had drifted. Restore them or, if the change is meant, record anew with `jrm golden --force`"
        )
        raise CheckpointError([reason])


def check(golden: Golden, preparer: Preparer, backend: Backend[Any], precision: str) -> SelfTest:
    """Score every case as a request is scored, from image file to reward, and compare every number.

    ``backend`` is the one that will serve, and ``precision`` what it computes in. Raises CheckpointError, with the
    numbers, if one is off by more than the precision's tolerance, missing or not finite, or if a case ends in an error.
    """
    allowed: float = getattr(golden.tolerance, precision)
    failures: list[tuple[float, str]] = []
    compared, wrong, largest = 0, 0, 0.0
    for index, (case, outcome) in enumerate(zip(golden.cases, outcomes(golden.cases, preparer, backend), strict=True)):
        expected = numbers(case)
        got = numbers(outcome) if isinstance(outcome, Score) else {}
        compared += len(expected | got)
        if isinstance(outcome, CandidateError):
            wrong += len(expected)
            failures.append((math.inf, f"cases.{index}: has no score: {outcome}"))
            continue
        for name in expected | got:
            off = deviation(name, got.get(name), expected.get(name))
            largest = max(largest, off)
            if off > allowed:
                wrong += 1
                text = _difference(name, got.get(name), expected.get(name), allowed)
                failures.append((off, f"cases.{index}: {text}"))
    if failures:
        summary = f"self-test on {backend.device} in {precision}: {wrong} of {compared} numbers are off"
        raise CheckpointError(_report(summary, failures))
    return SelfTest(len(golden.cases), largest, allowed)


def outcomes(
    inputs: Sequence[GoldenInput], preparer: Preparer, backend: Backend[Any]
) -> Iterator[Score | CandidateError]:
    """One outcome per input, in order, through the decoder, preparer and backend that serve."""
    for start in range(0, len(inputs), _BATCH):
        prepared = [_candidate(case, preparer) for case in inputs[start : start + _BATCH]]
        candidates = [item for item in prepared if isinstance(item, Candidate)]
        scored = iter(backend.score(backend.collate(candidates)).outcomes if candidates else [])
        yield from (next(scored) if isinstance(item, Candidate) else item for item in prepared)


def numbers(score: Score | GoldenCase) -> dict[str, float | None]:
    """Every number of a score, by its name in messages."""
    dimensions: dict[str, float | None] = {}
    for name, dimension in score.dimensions.items():
        dimensions |= {f"{name}.mean": dimension.mean, f"{name}.std": dimension.std}
    return dimensions | {"reward": score.reward, "reward_std": score.reward_std}


def deviation(name: str, got: float | None, expected: float | None) -> float:
    """How far a number is off, in the unit of the tolerances; infinite when it is missing, extra or not finite.

    Means and rewards count absolutely: the ranking loss (Eq. 4, 5) fixes their scale, and a mean that is off by d moves
    a win probability by at most d / 4. A std above 1 counts relatively, because a head outputs its logarithm.
    """
    if got is None or expected is None:
        return 0.0 if got is expected else math.inf
    return abs(got - expected) / _scale(name, expected) if math.isfinite(got) else math.inf


def _scale(name: str, expected: float) -> float:
    return max(1.0, expected) if name.endswith("std") else 1.0


def _candidate(case: GoldenInput, preparer: Preparer) -> Candidate | CandidateError:
    field = "source"
    try:
        sources = [preparer.image(decode(base64.b64decode(source))) for source in case.source]
        field = "edited"
        edited = preparer.image(decode(base64.b64decode(case.edited)))
        field = "instruction"
        return preparer.candidate(sources, edited, case.instruction)
    except CandidateError as error:
        return type(error)(f"{field}: {error}")
    except ValueError as error:  # another number of sources than the checkpoint takes
        return InvalidImage(f"source: {error}")


def _difference(name: str, got: float | None, expected: float | None, allowed: float) -> str:
    text = f"{name}: got {_shown(got)}, recorded {_shown(expected)}"
    if got is None or expected is None or not math.isfinite(got):
        return text
    return f"{text}: off by {abs(got - expected):.3g}, tolerance {allowed * _scale(name, expected):.3g}"


def _shown(number: float | None) -> str:
    return "none" if number is None else f"{number:.7g}"


def _report(summary: str, failures: list[tuple[float, str]]) -> list[str]:
    """The summary, then the worst failures first."""
    finite = [off for off, _ in failures if math.isfinite(off)]
    by = f" by up to {max(finite):.3g}" if finite else ""
    lines = [text for _, text in sorted(failures, key=lambda failure: -failure[0])]
    if len(lines) > _SHOWN:
        lines = [*lines[:_SHOWN], f"and {len(lines) - _SHOWN} more"]
    return [f"{FILE}: {line}" for line in (f"{summary}{by}; these are not the scores that its author recorded", *lines)]
