"""Strict parsing of critiques as appendix C defines them, and how well regions match the true ones. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jrm_client import strict_json

from .bootstrap import Array, Share, Tally

IOU = 0.5

_Coordinate = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]
Box = tuple[float, float, float, float]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Region(_Strict):
    """One edited region; ``bbox_2d`` is (x1, y1, x2, y2) on a scale of 0 to 1000, x1 < x2 and y1 < y2."""

    id: Annotated[int, Field(ge=0)]
    label: Annotated[str, Field(min_length=1)]
    bbox_2d: Annotated[list[_Coordinate], Field(min_length=4, max_length=4)]

    @model_validator(mode="after")
    def _has_area(self) -> Self:
        x1, y1, x2, y2 = self.bbox_2d
        if x1 >= x2 or y1 >= y2:
            raise ValueError(f"bbox_2d {self.bbox_2d} must be [x1, y1, x2, y2] with x1 < x2 and y1 < y2")
        return self

    @property
    def box(self) -> Box:
        """``bbox_2d`` as a tuple."""
        x1, y1, x2, y2 = self.bbox_2d
        return x1, y1, x2, y2


class Critique(_Strict):
    """A critique without regions (A.2): its reasoning alone."""

    reasoning: Annotated[str, Field(min_length=1)]

    @property
    def boxes(self) -> list[Box]:
        """Boxes of the edited regions."""
        return []


class RegionCritique(Critique):
    """A critique with regions (C.1); none where nothing was edited. Ids are unique."""

    edit_region: list[Region]

    @model_validator(mode="after")
    def _ids_once(self) -> Self:
        ids = [region.id for region in self.edit_region]
        if len(set(ids)) < len(ids):
            raise ValueError(f"edit_region has ids {ids}: each may appear only once")
        return self

    @property
    def boxes(self) -> list[Box]:
        """Boxes of the edited regions."""
        return [region.box for region in self.edit_region]


class CritiqueError(ValueError):
    """A text that is not a critique; the message says why, in one line."""


def parse_critique(text: str, regions: bool) -> Critique:
    """Parse what a language head wrote, strictly: one JSON object with exactly these keys, in any order.

    ``regions``: whether the dimension's critique has boxes (the manifest's ``explain``); the result is a
    ``RegionCritique`` then. Raises CritiqueError for everything else: text around the object, a repeated key, NaN, a
    box that is empty, not within 0 to 1000 or of other than four numbers.
    """
    try:
        value = strict_json.loads(text)
    except ValueError as error:
        raise CritiqueError(str(error)) from None
    try:
        return (RegionCritique if regions else Critique).model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "critique"
        raise CritiqueError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2) with an area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / (_area(a) + _area(b) - both)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def found(true: Sequence[Box], predicted: Sequence[Box]) -> int:
    """Number of true regions that a predicted one matches with IoU >= 0.5.

    Matched greedily, the best overlap first; a prediction matches one region at most, so that one large box cannot
    stand for two. Labels and ids are words of the critique and are not compared.
    """
    overlaps = sorted(
        ((iou(t, p), i, j) for i, t in enumerate(true) for j, p in enumerate(predicted)), key=lambda o: -o[0]
    )
    free_true, free_predicted = set(range(len(true))), set(range(len(predicted)))
    for overlap, i, j in overlaps:
        if overlap >= IOU and i in free_true and j in free_predicted:
            free_true.remove(i)
            free_predicted.remove(j)
    return len(true) - len(free_true)


def critique_tallies(
    true: Sequence[Sequence[Mapping[str, str]]],
    generated: Sequence[Sequence[Mapping[str, str]]],
    dimension: str,
    regions: bool,
) -> dict[str, Tally]:
    """Figures of one dimension's critiques, as sums over groups.

    ``true`` and ``generated`` hold, for each group, one mapping for each edit: dimension -> text. A group or edit for
    which nothing was generated has an empty sequence or mapping, and is left out.

    ``critique_valid``: texts that ``parse_critique`` takes. With regions also ``regions_found``: true regions that a
    predicted one matches (``found``), those of an invalid text being missed, and ``regions_made_up``: predicted regions
    that match none, lower is better. Where the true text is itself no critique there are no true regions to find.
    """
    rows = [
        _group_sums(of_group, written, dimension, regions) for of_group, written in zip(true, generated, strict=True)
    ]
    sums = np.array(rows, np.float64).reshape(len(rows), 3, 2)
    names = ("critique_valid", "regions_found", "regions_made_up") if regions else ("critique_valid",)
    return {name: Share(sums[:, number]) for number, name in enumerate(names)}


def _group_sums(
    true: Sequence[Mapping[str, str]], generated: Sequence[Mapping[str, str]], dimension: str, regions: bool
) -> Array:
    """[3, 2]: (valid, texts), (found, true regions), (made up, predicted regions)."""
    sums = np.zeros((3, 2))
    for truth, written in zip(true, generated, strict=True) if generated else ():
        if dimension not in written:
            continue
        critique = _read(written[dimension], regions)
        sums[0] += (critique is not None, 1)
        expected = _read(truth.get(dimension, ""), regions)
        if expected is not None:
            predicted = [] if critique is None else critique.boxes
            matched = found(expected.boxes, predicted)
            sums[1] += (matched, len(expected.boxes))
            sums[2] += (len(predicted) - matched, len(predicted))
    return sums


def _read(text: str, regions: bool) -> Critique | None:
    try:
        return parse_critique(text, regions)
    except CritiqueError:
        return None
