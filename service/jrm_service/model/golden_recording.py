"""Records golden scores: the inputs, their scores, and tolerances from how far lower precision is off."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from PIL import ImageDraw

from jrm_client import jsonl
from jrm_client.pairs import image_file, pair_fields, source_paths
from jrm_service.errors import CandidateError, CheckpointError
from jrm_service.images.decode import decode
from jrm_service.scoring.backend import Backend
from jrm_service.scoring.preparing import CheckpointPreparer
from jrm_service.scoring.types import Score

from .checkpoint import Checkpoint
from .checkpoint_files import write_json
from .engine import TrieScorer
from .golden import (
    FILE,
    FORMAT,
    MAX_CASES,
    Golden,
    GoldenCase,
    GoldenDimension,
    GoldenInput,
    Tolerance,
    deviation,
    numbers,
    outcomes,
)
from .kernels import EAGER, IN_SIMULATED_FP8
from .scorer import PlainScorer

_MARGIN = 4  # times the measured rounding: another kernel rounds differently, but not that much worse
_FINER = 5  # float16 has three bits more than bfloat16 and rounds 8 times finer; less than that is assumed


@dataclass(frozen=True, slots=True)
class Example:
    """The input of a golden case: RGB images, the sources in order, and an instruction."""

    sources: tuple[PILImage.Image, ...]
    edited: PILImage.Image
    instruction: str


def record(checkpoint: Checkpoint, examples: Sequence[Example], *, device: str = "cpu") -> Golden:
    """Score the examples with the plain scorer in float32, write ``reward/golden.json``, and return its content.

    The tolerances for lower precision are four times the deviation of a bfloat16 backbone, and of one with simulated
    fp8 products, on the same device, and at least the defaults. The weights are loaded three times, one copy at a time.
    Raises CheckpointError if an example has no finite score, and ValueError without examples or with more than
    ``MAX_CASES``.
    """
    if not 1 <= len(examples) <= MAX_CASES:
        raise ValueError(f"golden scores are recorded of 1 to {MAX_CASES} examples, got {len(examples)}")
    inputs = [
        GoldenInput(
            source=[_png(source) for source in example.sources],
            edited=_png(example.edited),
            instruction=example.instruction,
        )
        for example in examples
    ]
    exact = _scores(checkpoint, inputs, PlainScorer(checkpoint, device, torch.float32))
    cases = [_case(*recorded, index) for index, recorded in enumerate(zip(inputs, exact, strict=True))]
    bfloat16 = _off(cases, _scores(checkpoint, inputs, PlainScorer(checkpoint, device, torch.bfloat16)))
    golden = Golden(
        format=FORMAT,
        fingerprint=checkpoint.fingerprint,
        tolerance=_tolerance(bfloat16, _off_in_fp8(checkpoint, inputs, cases, device)),
        cases=cases,
    )
    write_json(checkpoint.path / FILE, golden.model_dump())
    return golden


def _scores(
    checkpoint: Checkpoint, inputs: Sequence[GoldenInput], backend: Backend[Any]
) -> list[Score | CandidateError]:
    return list(outcomes(inputs, CheckpointPreparer(checkpoint), backend))


def _case(golden_input: GoldenInput, outcome: Score | CandidateError, index: int) -> GoldenCase:
    if not isinstance(outcome, Score) or not outcome.finite:
        raise CheckpointError([f"{FILE}: cases.{index}: nothing to record, the outcome is {outcome}"])
    dimensions = {name: GoldenDimension(mean=d.mean, std=d.std) for name, d in outcome.dimensions.items()}
    return GoldenCase(
        **golden_input.model_dump(), dimensions=dimensions, reward=outcome.reward, reward_std=outcome.reward_std
    )


def _off_in_fp8(
    checkpoint: Checkpoint, inputs: Sequence[GoldenInput], cases: Sequence[GoldenCase], device: str
) -> float:
    """The deviation of simulated fp8 products; 0 for a backbone without fp8 layers, which is never served in fp8."""
    try:
        simulated = TrieScorer(
            checkpoint, device, torch.bfloat16, arithmetic=IN_SIMULATED_FP8, variants=[EAGER], graphs=False
        )
    except CheckpointError:
        return 0.0
    return _off(cases, _scores(checkpoint, inputs, simulated))


def _off(exact: Sequence[GoldenCase], rounded: Sequence[Score | CandidateError]) -> float:
    """The largest deviation, except for scores that overflowed."""
    off = [
        deviation(name, got, expected)
        for case, score in zip(exact, rounded, strict=True)
        if isinstance(score, Score)
        for (name, expected), got in zip(numbers(case).items(), numbers(score).values(), strict=True)
    ]
    return max((value for value in off if math.isfinite(value)), default=0.0)


def _tolerance(bfloat16: float, fp8: float) -> Tolerance:
    """The defaults, or more if this checkpoint's measured rounding needs it."""
    least = Tolerance()
    return Tolerance(
        bfloat16=float(f"{max(least.bfloat16, _MARGIN * bfloat16):.2g}"),
        float16=float(f"{max(least.float16, _MARGIN * bfloat16 / _FINER):.2g}"),
        fp8=float(f"{max(least.fp8, _MARGIN * fp8):.2g}"),
    )


def _png(image: PILImage.Image) -> str:
    """Encode without loss: JPEG decoders differ in their pixels, and so in scores."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


# --- inputs ----------------------------------------------------------------------------------------------------------


def read_examples(file: Path) -> list[Example]:
    """The rows of a JSONL file, as ``jrm score --jsonl`` reads them; relative paths start at the file's folder.

    Raises ValueError with the number and the problem of every bad line, and OSError for an unreadable file.
    """
    examples: list[Example] = []
    problems: list[str] = []
    with file.open("rb") as rows:
        for line in jsonl.lines(rows):
            try:
                examples.append(_example(pair_fields(jsonl.parse(line.text)), file.parent))
            except (ValueError, OSError, CandidateError) as error:
                problems.append(f"{file.name}:{line.number}: {error}")
    if problems:
        raise ValueError("\n".join(problems))
    return examples


def _example(row: dict[str, Any], folder: Path) -> Example:
    *sources, edited = (decode(image_file(folder / path)) for path in (*source_paths(row), row["edited"]))
    return Example(tuple(sources), edited, row["instruction"])


def drawn_examples(max_sources: int = 1) -> list[Example]:
    """Edits of two drawn scenes, for an author without pictures; the checkpoint takes ``max_sources`` source images.

    They have two shapes, so two grids of patches; a gradient and a texture, so that resizing matters; a group with one
    source, so that there is something to share; and a text beyond ASCII. If the checkpoint takes several sources, one
    more example has two of them.
    """
    wide, tall = _scene((192, 144), "red"), _scene((120, 200), "green")
    examples = [
        Example((wide,), _scene((192, 144), "blue"), "make the red square blue"),
        Example((wide,), wide, "make the red square blue"),
        Example((wide,), _scene((192, 144), None), "remove the red square"),
        Example((tall,), _scene((120, 200), "orange"), "把绿色方块变成橙色"),
    ]
    if max_sources > 1:
        green = _scene((192, 144), "green")
        examples.append(Example((wide, tall), green, "give the square of the first image the colour of the second's"))
    return examples if max_sources else [replace(example, sources=()) for example in examples]


def _scene(size: tuple[int, int], square: str | None) -> PILImage.Image:
    """A shaded background with a texture, a circle and, unless None, a square of that colour."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    shades = [96 + 96 * x / width, 160 - 64 * y / height, 128 + 24 * ((x // 3 + y // 5) % 2)]
    image = PILImage.fromarray(np.stack(shades, -1).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.ellipse((width * 0.55, height * 0.5, width * 0.9, height * 0.5 + width * 0.35), fill="yellow", outline="black")
    if square is not None:
        draw.rectangle((width * 0.1, height * 0.1, width * 0.4, height * 0.1 + width * 0.3), fill=square)
    return image
