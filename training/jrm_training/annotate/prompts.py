"""The annotator's prompts: appendix A.1 and A.2 in the terms of our data, and a blind reading of the critique.

The prompt for a critique states the judgement: the model explains what people decided and does not decide itself. To
check that its words argue for that judgement, a second prompt asks what they argue for, without images or judgement.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from jrm_service.explain.critique import MAX_REGIONS

from .jobs import Judgement, Kind

Boxes = Literal["yx", "xy"]

Templates: TypeAlias = Mapping[Kind, str]

_FOLDER = Path(__file__).parent / "templates"
TEMPLATES: Templates = {
    "following": (_FOLDER / "following.txt").read_text(encoding="utf-8").rstrip("\n"),
    "quality": (_FOLDER / "quality.txt").read_text(encoding="utf-8").rstrip("\n"),
}
"""The prompts for a critique; PLACEHOLDERS in braces are replaced, literally and in one pass."""

PLACEHOLDERS = ("instruction", "images", "judgement", "levels", "most", "box")
_PLACEHOLDER = re.compile(rf"\{{({'|'.join(PLACEHOLDERS)})\}}")

BOX = {"yx": "[ymin, xmin, ymax, xmax]", "xy": "[xmin, ymin, xmax, ymax]"}

_LEVELS = {
    "following": """\
What the scores mean: 4, every region is as asked and everything else as it was. 3, the aim is reached, but one region \
has a small flaw, or something else changed slightly. 2, an important region is wrong or missing, or much else was \
changed. 1, the instruction was not followed at all, or the image is ruined.""",
    "quality": """\
What the scores mean: 4, true light and textures, nothing to object to. 3, good, with one small flaw that can be \
named. 2, flaws that everybody sees, such as a distorted face, blurred edges or shadows that do not fit. 1, a \
failure.""",
}

_READ_SCORE = """\
Here is what somebody wrote about an edit of an image:

{reasoning}

Somebody who wrote this gave the edit a score. {levels}
Which score do these words argue for? Answer with one JSON object and nothing else: {{"score": 1, 2, 3 or 4}}"""

_READ_VERDICT = """\
Here is what somebody wrote about one of two images, after comparing them:

{reasoning}

Do these words argue that the image is better than the other, worse, or equal? Answer with one JSON object and nothing \
else: {{"verdict": "better", "worse" or "equal"}}"""

_AGAIN = """\
This cannot be used:
{faults}
Answer again, with the whole JSON object and nothing else."""

_VERDICTS = {
    "better": "people found it better than the other edit, which is the last image.",
    "worse": "people found it worse than the other edit, which is the last image.",
    "equal": "people found it neither better nor worse than the other edit, which is the last image.",
}
_BESIDE = "Speak of the edit by itself; the other one is there so that you see what made the difference."


def ask(
    kind: Kind, instruction: str, sources: int, judgement: Judgement, boxes: Boxes, templates: Templates = TEMPLATES
) -> str:
    """The prompt for a critique. It goes with the images of ``images_of``, in that order."""
    has_other_edit = judgement.verdict is not None
    values = {
        "instruction": instruction,
        "images": ", ".join(_images(kind, sources, has_other_edit)),
        "judgement": f"{judgement.score:g} of 4." if judgement.verdict is None else _VERDICTS[judgement.verdict],
        "levels": _BESIDE if has_other_edit else _LEVELS[kind],
        "most": str(MAX_REGIONS),
        "box": BOX[boxes],
    }
    return _PLACEHOLDER.sub(lambda match: values[match[1]], templates[kind])


def _images(kind: Kind, sources: int, has_other_edit: bool) -> list[str]:
    several = [f"source image {number}" for number in range(1, sources + 1)]
    named = (several if sources > 1 else ["the source image"] * sources) if kind == "following" else []
    edited = "the edited image" if kind == "following" else "the image"
    return [*named, edited, *(["another edit"] if has_other_edit else [])]


def images_of(kind: Kind, sources: Sequence[str], images: Sequence[str], edit: int, judgement: Judgement) -> list[str]:
    """The paths of the images that go with ``ask``: A.2 shows no source."""
    shown = [*sources, images[edit]] if kind == "following" else [images[edit]]
    return [*shown, images[1 - edit]] if judgement.verdict is not None else shown


def ask_again(faults: Sequence[str]) -> str:
    """The message that follows an answer that cannot be used."""
    return _AGAIN.format(faults="\n".join(f"- {fault}" for fault in faults))


def read_back(kind: Kind, judgement: Judgement, reasoning: str) -> str:
    """The text that asks what a critique argues for, without saying what it should argue for."""
    if judgement.verdict is not None:
        return _READ_VERDICT.format(reasoning=reasoning)
    return _READ_SCORE.format(reasoning=reasoning, levels=_LEVELS[kind])


def schema(kind: Kind) -> dict[str, Any]:
    """The JSON schema of the critique that is requested; regions come first, as in A.1."""
    reasoning = {"reasoning": {"type": "string", "minLength": 1}}
    if kind == "quality":
        return _object(reasoning)
    coordinate = {"type": "integer", "minimum": 0, "maximum": 1000}
    region = {
        "id": {"type": "integer", "minimum": 0, "maximum": MAX_REGIONS - 1},
        "label": {"type": "string", "minLength": 1},
        "bbox_2d": {"type": "array", "items": coordinate, "minItems": 4, "maxItems": 4},
    }
    return _object({"edit_region": {"type": "array", "items": _object(region), "maxItems": MAX_REGIONS}} | reasoning)


def reading_schema(judgement: Judgement) -> dict[str, Any]:
    """The JSON schema of an answer to ``read_back``."""
    if judgement.verdict is not None:
        return _object({"verdict": {"type": "string", "enum": ["better", "worse", "equal"]}})
    return _object({"score": {"type": "integer", "enum": [1, 2, 3, 4]}})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
