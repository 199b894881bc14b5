"""The text of the language head -> the explanation that callers get (paper, appendix A.2 and C). Pure.

With regions (C.1) a critique is ``{"reasoning": "<|bbox_0|> … <|global|> …", "edit_region": [{"id", "label",
"bbox_2d"}]}``, without (A.2) it is ``{"reasoning": "…"}``. A truncated critique keeps its complete parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from jrm_client.protocol import CandidateErrorBody, EditRegion, ExplainUsage, Explanation, Segment

MAX_REGIONS = 8
"""The number of region tags of a checkpoint: ``<|bbox_0|>`` to ``<|bbox_7|>``."""

FinishReason = Literal["stop", "length"]

_SCALE = 1000  # of bbox_2d
_TAG = re.compile(r"<\|(global|bbox_(\d{1,3}))\|>")


def schema(regions: bool) -> dict[str, Any]:
    """The JSON schema of a critique, for structured output. ``read`` can read whatever it allows."""
    properties: dict[str, Any] = {"reasoning": {"type": "string", "minLength": 1}}
    if regions:
        number = {"type": "integer", "minimum": 0, "maximum": _SCALE}
        region = {
            "id": {"type": "integer", "minimum": 0, "maximum": MAX_REGIONS - 1},
            "label": {"type": "string", "minLength": 1},
            "bbox_2d": {"type": "array", "items": number, "minItems": 4, "maxItems": 4},
        }
        properties["edit_region"] = {"type": "array", "items": _object(region), "maxItems": MAX_REGIONS}
    return _object(properties)


def read(
    raw: str, *, regions: bool, size: tuple[int, int], finish_reason: FinishReason, usage: ExplainUsage
) -> Explanation:
    """Return the explanation of one dimension from the generated text.

    Args:
        raw: the text, region tags included.
        regions: whether the dimension's critique has boxes.
        size: width and height of the edited image as it was sent, in pixels.
        finish_reason: ``length`` when the text was cut; the status is then ``truncated``.
        usage: tokens read and written.
    """
    cut = finish_reason == "length"
    unread = Explanation(status="truncated" if cut else "ok", raw=raw, finish_reason=finish_reason, usage=usage)
    try:
        # In a truncated list, only items with a closing brace are complete: 36 may be the beginning of 360.
        whole = raw[: raw.rfind("}") + 1]
        reasoning = _Reasoning.model_validate(from_json(raw, allow_partial="trailing-strings" if cut else False))
        boxes = _Regions.model_validate(from_json(whole, allow_partial=cut) if whole else {}) if regions else _Regions()
    except ValueError as error:
        if cut:
            return unread
        reason = _first(error) if isinstance(error, ValidationError) else "not JSON"
        problem = CandidateErrorBody(code="invalid_critique", message=f"the model's critique cannot be read: {reason}")
        return unread.model_copy(update={"status": "error", "error": problem})
    text = _without_partial_tag(reasoning.reasoning) if cut else reasoning.reasoning
    segments = _segments(text) if regions else _segment("global", " ".join(_TAG.sub(" ", text).split()))
    regions_on_image = [region for box in boxes.edit_region if (region := _region(box, size)) is not None]
    return unread.model_copy(update={"reasoning": text, "segments": list(segments), "edit_regions": regions_on_image})


class _Reasoning(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    reasoning: str = ""


class _Region(BaseModel):
    model_config = ConfigDict(extra="ignore")

    id: int
    label: str
    bbox_2d: Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=4, max_length=4)]


class _Regions(BaseModel):
    model_config = ConfigDict(extra="ignore")

    edit_region: list[_Region] = []


def _segments(reasoning: str) -> Iterator[Segment]:
    """The text after each tag, up to the next; text before the first tag is about the whole image."""
    pieces = _TAG.split(reasoning)
    yield from _segment("global", pieces[0])
    for name, number, text in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
        yield from _segment("global" if name == "global" else int(number), text)


def _segment(region: int | Literal["global"], text: str) -> Iterator[Segment]:
    if text.strip():
        yield Segment(region=region, text=text.strip())


def _region(region: _Region, size: tuple[int, int]) -> EditRegion | None:
    """A region with its corners in order and clipped to the image; None for a box without area."""
    xs = sorted(min(_SCALE, max(0, x)) for x in region.bbox_2d[0::2])
    ys = sorted(min(_SCALE, max(0, y)) for y in region.bbox_2d[1::2])
    if xs[0] == xs[1] or ys[0] == ys[1]:
        return None
    width, height = size
    left, right = _pixels(xs[0], xs[1], width)
    top, bottom = _pixels(ys[0], ys[1], height)
    return EditRegion(
        id=region.id,
        label=region.label,
        bbox_2d=(xs[0], ys[0], xs[1], ys[1]),
        bbox_pixels=(left, top, right, bottom),
    )


def _pixels(low: float, high: float, length: int) -> tuple[int, int]:
    """Edges in pixels, at least one pixel apart and inside the image."""
    first = min(round(low * length / _SCALE), length - 1)
    return first, min(max(round(high * length / _SCALE), first + 1), length)


def _without_partial_tag(text: str) -> str:
    """Drop a tag that was being written when the text was cut."""
    start = text.rfind("<|")
    return text if start < 0 or "|>" in text[start:] else text[:start]


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "critique"
    return f"{where}: {first['msg']}"


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
