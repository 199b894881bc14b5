"""The true critique of an edit, known by construction, in the JSON of appendix C.

The verdict comes first and the boxes last: language supervision shapes **h** most by what follows right after the
reward token. The order of a JSON object's keys is free.
"""

from __future__ import annotations

import json
from typing import Any

from .edits import Change, Edit
from .flaws import Flaw
from .scene import Scene, Shape

VERDICTS = {4: "very good", 3: "relatively good", 2: "relatively poor", 1: "very poor"}
_STRENGTHS = {3: "slight", 2: "clear", 1: "severe"}
_REASONS = {
    "right": "done as asked",
    "partly_right": "only partly done",
    "wrong_result": "the wrong result",
    "over_edited": "too much was changed",
    "wrong_object": "the wrong object",
    "unchanged": "nothing was changed",
}


def instruction_following(edit: Edit, source: Scene) -> str:
    """Verdict, reason, every change by region, what was kept, then the regions with [x1, y1, x2, y2] on 0 to 1000."""
    text = f"<|global|> {VERDICTS[edit.label]}: {_REASONS[edit.quality]}."
    regions: list[dict[str, Any]] = []
    for number, change in enumerate(edit.changes):
        text += f" <|bbox_{number}|> {_description(change)}."
        scene = source if change.after is None else edit.scene
        regions.append({"id": number, "label": change.seen.label, "bbox_2d": scene.box(change.seen)})
    kept = [shape for shape in edit.scene.shapes if shape in source.shapes]
    names = ", ".join(shape.label for shape in sorted(kept, key=lambda shape: shape.x)) or "nothing"
    return json.dumps({"reasoning": f"{text} <|global|> Kept: {names}.", "edit_region": regions})


def visual_quality(label: int, flaw: Flaw | None, scene: Scene) -> str:
    """Verdict, the flaw behind it, and what is seen where, which this prompt has no instruction to guess from."""
    reason = "clean" if flaw is None else f"{_STRENGTHS[label]} {flaw.kind}"
    in_order = sorted(scene.shapes, key=lambda shape: shape.x)
    seen = ", ".join(f"{shape.label} {_where(shape, scene)}" for shape in in_order) or "nothing"
    return json.dumps({"reasoning": f"<|global|> {VERDICTS[label]}: {reason}. Seen: {seen}."})


def _where(shape: Shape, scene: Scene) -> str:
    """One of nine places, "top left" to "bottom right"."""
    row = min(2, int(3 * shape.y / scene.height))
    column = min(2, int(3 * shape.x / scene.width))
    return f"{('top', 'middle', 'bottom')[row]} {('left', 'centre', 'right')[column]}"


def _description(change: Change) -> str:
    before, after = change.before, change.after
    if before is None:
        assert after is not None
        article = "an" if after.label[0] in "aeiou" else "a"
        return f"{f'half {article} ' if after.half else ''}{after.label} was added"
    if after is None:
        return f"{before.label} is gone"
    if after.second is not None:
        return f"{before.label} was half recoloured"
    if after.half is not None:
        return f"{before.label} is half gone"
    if (before.colour, before.kind) == (after.colour, after.kind):
        dx, dy = after.x - before.x, after.y - before.y
        way = ("right" if dx > 0 else "left") if abs(dx) > abs(dy) else ("down" if dy > 0 else "up")
        return f"{before.label} moved {way}{' a little' if max(abs(dx), abs(dy)) < 0.2 else ''}"
    return f"{before.label} became {after.label}"
