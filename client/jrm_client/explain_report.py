"""Critiques in the terminal, partial and complete, in the colours of the overlay."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from pydantic_core import from_json
from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from .explanations import ExplainEvent, Explanation
from .overlay import color_of
from .protocol import EditRegion, ExplainDelta, Segment

_TAG = re.compile(r"<\|(?:global|bbox_(\d+))\|>")
_PARTIAL_TAG = re.compile(r"<(?:\|\w*\|?)?$")
_STATUS_STYLES = {"ok": "green", "truncated": "yellow", "error": "red"}
_LABEL_WIDTH = 28


class Critiques:
    """The critiques of a stream so far, as rich prints them; ``explanations`` has the complete ones."""

    def __init__(self) -> None:
        self.explanations: dict[str, Explanation] = {}
        self._written: dict[str, str] = {}

    def add(self, event: ExplainEvent) -> None:
        """Add the next event of the stream."""
        if isinstance(event, ExplainDelta):
            self._written[event.dimension] = self._written.get(event.dimension, "") + event.delta
        else:
            self._written.setdefault(event.dimension, "")
            self.explanations[event.dimension] = event.explanation

    def __rich__(self) -> RenderableType:
        # Another thread draws while events come in: it works on a copy.
        return Group(*[self._dimension(name, text) for name, text in list(self._written.items())])

    def _dimension(self, name: str, text: str) -> RenderableType:
        explanation = self.explanations.get(name)
        if explanation is not None:
            return critique(name, explanation)
        return Group(_heading(name, "…", "dim"), _segments(preview(text), {}))


def critique(name: str, explanation: Explanation) -> RenderableType:
    """Return one dimension's explanation: its status, a row for each segment, and the regions with their boxes."""
    status: str = explanation.status
    if explanation.error is not None:
        status += f" {explanation.error.code}: {explanation.error.message}"
    elif explanation.status == "truncated":
        status += ": cut off at the token limit"
    labels = {region.id: region.label for region in explanation.edit_regions}
    return Group(
        _heading(name, status, _STATUS_STYLES[explanation.status]),
        _segments(explanation.segments, labels),
        _boxes(explanation.edit_regions),
    )


def preview(written: str) -> list[Segment]:
    """Return the segments of a critique that is still being written; what cannot be shown yet is left out."""
    try:
        value = from_json(written, allow_partial="trailing-strings")
    except ValueError:
        return []
    reasoning = value.get("reasoning") if isinstance(value, dict) else None
    return list(_split(_PARTIAL_TAG.sub("", reasoning))) if isinstance(reasoning, str) else []


def _split(reasoning: str) -> Iterator[Segment]:
    """A region's tag stands before its text (paper, C.1); text before the first tag is about the whole image."""
    pieces = _TAG.split(reasoning)
    for number, text in zip([None, *pieces[1::2]], pieces[0::2], strict=True):
        if text.strip():
            yield Segment(region="global" if number is None else int(number), text=text.strip())


def _heading(name: str, status: str, style: str) -> Text:
    return Text.assemble((printable(name), "bold"), "  ", (printable(status), style))


def _segments(segments: Sequence[Segment], labels: Mapping[int, str]) -> Table:
    grid = _grid()
    for segment in segments:
        grid.add_row(_badge(segment.region, labels), Text(printable(segment.text)))
    return grid


def _boxes(regions: Sequence[EditRegion]) -> Table:
    grid = _grid()
    for region in regions:
        left, top, right, bottom = region.bbox_pixels
        where = f"x {left} to {right}, y {top} to {bottom}"
        grid.add_row(_badge(region.id, {region.id: region.label}), Text(where, style="dim"))
    return grid


def _grid() -> Table:
    badges = Column(overflow="fold", max_width=_LABEL_WIDTH)
    return Table(badges, Column(overflow="fold"), box=None, show_header=False, pad_edge=False, padding=(0, 1))


def _badge(region: int | str, labels: Mapping[int, str]) -> Text:
    if isinstance(region, str):
        return Text(f" {region} ", style="reverse")
    label = printable(f"{region} {labels.get(region, '')}".strip())
    return Text(f" {label} ", style=f"black on {color_of(region)}")


def printable(text: str) -> str:
    """Return text from a model or a server without the characters that would control the terminal."""
    return "".join(
        character if character == "\n" or unicodedata.category(character) not in ("Cc", "Cs") else " "
        for character in text
    )
