"""Correct an edit by its critique alone: read what is wrong, paint it right (paper, section 4.4).

``correct`` stands for the editing model of the paper. It sees the edited image, the instruction and the critique, and
nothing else: not the source, not the scene, not a label. It reads the words that the bundled checkpoint was trained to
write, and paints no more than they say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from jrm_client import Explanation
from painting import COLOURS, KINDS, WAYS, Box, Canvas, Label, Spot, without_flaw

_COLOUR, _KIND, _WAY = ("|".join(words) for words in (COLOURS, KINDS, WAYS))
_LABEL = rf"({_COLOUR}) ({_KIND})"
_OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
_FLAW = re.compile(r"\b(slight|clear|severe) (noise|blur|seams|blocks|ghosting)\b")
_DONE = "very good"


@dataclass(frozen=True)
class Wish:
    """What an instruction asks for: ``old`` becomes ``new``; without ``old`` it is added, without ``new`` removed.

    With a ``way``, ``old`` is moved.
    """

    old: Label | None
    new: Label | None
    way: str | None = None


@dataclass(frozen=True)
class Change:
    """What a region of the critique says was done: None before is an addition, None after a removal.

    ``partly``: done to a half, or by a little. ``way`` is that of a move. ``box`` is in pixels.
    """

    before: Label | None
    after: Label | None
    box: Box
    partly: bool = False
    way: str | None = None


def correct(edited: Image.Image, instruction: str, critique: Mapping[str, Explanation]) -> Image.Image:
    """The edited image with what its critique finds wrong put right; RGB, same size, a copy.

    First the flaw that the critique of the visual quality names, then the edit: a change to the object that the
    instruction is about is finished, every other change is undone, and where that object was not touched at all, the
    instruction is carried out.
    """
    flaw = read_flaw(critique["visual_quality"]) if "visual_quality" in critique else None
    canvas = Canvas(edited if flaw is None else without_flaw(edited.convert("RGB"), *flaw))
    wish, following = read_wish(instruction), critique.get("instruction_following")
    if wish is None or following is None or not following.reasoning or _DONE in following.reasoning:
        return canvas.image
    changes = list(read_changes(following))
    asked_for = concerned(changes, wish)
    for change in changes:
        if change is asked_for:
            _finish(canvas, wish, change)
        else:
            _undo(canvas, change)
    if asked_for is None:
        _carry_out(canvas, wish)
    return canvas.image


def read_flaw(critique: Explanation) -> tuple[str, str] | None:
    """Kind and strength of the flaw that is named; None where none is."""
    found = _FLAW.search(critique.reasoning)
    return (found[2], found[1]) if found else None


def read_wish(instruction: str) -> Wish | None:
    """What is asked for: "the red square" is there, "a blue circle" is to be; None where neither is named."""
    text = instruction.lower()
    old, new = re.search(rf"\bthe {_LABEL}\b", text), re.search(rf"\ban? {_LABEL}\b", text)
    if old is None:
        return None if new is None else Wish(None, _label(new, 1))
    rest = text[: old.start()] + text[old.end() :]
    if new is not None:
        return Wish(_label(old, 1), _label(new, 1))
    if way := re.search(rf"\b({_WAY})\b", rest):
        return Wish(_label(old, 1), None, way[1])
    colour = re.search(rf"\b({_COLOUR})\b", rest)
    return Wish(_label(old, 1), (colour[1], old[2]) if colour else None)


def read_changes(critique: Explanation) -> Iterator[Change]:
    """What is said about each region that has a box; words that are not understood say nothing."""
    boxes = {region.id: region.bbox_pixels for region in critique.edit_regions}
    for segment in critique.segments:
        if isinstance(segment.region, int) and segment.region in boxes:
            for words, change in _CHANGES:
                if found := re.search(words, segment.text):
                    yield change(found, boxes[segment.region])
                    break


_CHANGES: tuple[tuple[str, Callable[[re.Match[str], Box], Change]], ...] = (
    (rf"{_LABEL} became {_LABEL}", lambda m, box: Change(_label(m, 1), _label(m, 3), box)),
    (rf"{_LABEL} is gone", lambda m, box: Change(_label(m, 1), None, box)),
    (rf"{_LABEL} is half gone", lambda m, box: Change(_label(m, 1), None, box, partly=True)),
    (rf"{_LABEL} was half recoloured", lambda m, box: Change(_label(m, 1), _label(m, 1), box, partly=True)),
    (rf"(half )?an? {_LABEL} was added", lambda m, box: Change(None, _label(m, 2), box, partly=bool(m[1]))),
    (
        rf"{_LABEL} moved ({_WAY})( a little)?",
        lambda m, box: Change(_label(m, 1), _label(m, 1), box, partly=bool(m[4]), way=m[3]),
    ),
)


def concerned(changes: Sequence[Change], wish: Wish) -> Change | None:
    """The change that was made to what the instruction is about; of several additions the one that was wished for."""
    possible = [change for change in changes if change.before == wish.old]
    return next((change for change in possible if change.after == wish.new), possible[0] if possible else None)


def _finish(canvas: Canvas, wish: Wish, change: Change) -> None:
    """From what was made of the object to what should have been made of it."""
    if change.after is None and not change.partly:  # it is gone
        if wish.new is not None:
            canvas.draw(wish.new, change.box)
        return
    spot = canvas.find(change.after or change.before or ("", ""), change.box)
    if spot is None:
        return
    if wish.way is not None:
        if change.way != wish.way:
            canvas.move(spot, wish.way)
        elif change.partly:
            canvas.move(spot, wish.way, (0.3, 0.25, 0.2))
    elif wish.new is None:
        _clear(canvas, spot, wish.old)
    elif change.after != wish.new or change.partly:
        canvas.turn_into(spot, wish.new, half=change.partly and change.before is None)


def _undo(canvas: Canvas, change: Change) -> None:
    if change.before is not None and change.after is None and not change.partly:
        canvas.draw(change.before, change.box)
        return
    spot = canvas.find(change.after or change.before or ("", ""), change.box)
    if spot is None:
        return
    if change.before is None:
        _clear(canvas, spot, change.after)
    elif change.way is not None:
        canvas.move(spot, _OPPOSITE[change.way])
    else:
        canvas.turn_into(spot, change.before, half=change.after is None)


def _carry_out(canvas: Canvas, wish: Wish) -> None:
    if wish.old is None:
        if wish.new is not None:
            canvas.draw(wish.new, canvas.free_box())
        return
    spot = canvas.find(wish.old, None)
    if spot is None:
        return
    if wish.way is not None:
        canvas.move(spot, wish.way)
    elif wish.new is None:
        _clear(canvas, spot, wish.old)
    else:
        canvas.turn_into(spot, wish.new)


def _clear(canvas: Canvas, spot: Spot, label: Label | None) -> None:
    """Take a shape away, unless it is of another colour: what is gone by mistake is worse than what stays."""
    if label is not None and spot.label[0] == label[0]:
        canvas.clear(spot)


def _label(found: re.Match[str], group: int) -> Label:
    return found[group], found[group + 1]
