"""Parses and checks the options of ``jrm annotate``; what is wrong is refused as wrong usage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from jrm_client import strict_json

from . import prompts
from .jobs import KINDS, Judgement, Kind, Scale
from .prompts import TEMPLATES, Templates


def path_beside(out: Path, suffix: str) -> Path:
    """The file next to ``out`` with this suffix added to its name."""
    return out.with_name(f"{out.name}.{suffix}")


def check_outputs(data: Path, out: Path) -> None:
    """Refuse to overwrite a file that no journal shows to be ours. Raises typer.BadParameter."""
    if out.is_dir() or not out.parent.is_dir():
        raise typer.BadParameter(f"--out {out}: expected a file in an existing folder")
    if out.exists() and data.exists() and out.samefile(data):
        raise typer.BadParameter(f"--out {out}: this is the input file")
    if out.exists() and not path_beside(out, "journal").exists():
        raise typer.BadParameter(f"--out {out}: already exists without a journal beside it and is not overwritten")


def parse_kinds(dimensions: Sequence[str] | None) -> Mapping[str, Kind]:
    """``NAME=following`` and ``NAME=quality``, or the paper's two. Raises typer.BadParameter."""
    if not dimensions:
        return KINDS
    kinds: dict[str, Kind] = {}
    for given in dimensions:
        name, _, kind = given.partition("=")
        if not name or kind not in ("following", "quality"):
            raise typer.BadParameter(f"--dimension {given}: expected NAME=following or NAME=quality")
        kinds[name] = kind  # type: ignore[assignment] # checked above
    return kinds


def parse_scale(text: str) -> Scale:
    """``LOW:HIGH``. Raises typer.BadParameter."""
    try:
        low, high = (float(number) for number in text.split(":"))
    except ValueError:
        low = high = 0.0
    if not low < high:
        raise typer.BadParameter(f"--scale {text}: expected LOW:HIGH, such as 1:4")
    return Scale(low, high)


def parse_body(text: str | None) -> dict[str, Any]:
    """A JSON object. Raises typer.BadParameter."""
    try:
        value = strict_json.loads(text) if text is not None else {}
    except ValueError as error:
        raise typer.BadParameter(f"--extra-body: {error}") from None
    if not isinstance(value, dict):
        raise typer.BadParameter("--extra-body: expected a JSON object")
    return value


def read_templates(path: Path | None) -> Templates:
    """The shipped templates, or those of a file instead of them. Raises typer.BadParameter."""
    if path is None:
        return TEMPLATES
    try:
        value = strict_json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"--prompts {path}: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(value, dict) or not all(
        kind in TEMPLATES and isinstance(text, str) and text.strip() for kind, text in value.items()
    ):
        raise typer.BadParameter(f"--prompts {path}: expected an object with texts for following, quality, or both")
    return {**TEMPLATES, **value}


def prompts_hash(boxes: str, templates: Templates) -> str:
    """A hash over the text of all prompts, so that a journal does not mix the answers to different templates."""
    texts = [
        prompts.ask(kind, "", 1, judgement, boxes, templates)  # type: ignore[arg-type]
        for kind in ("following", "quality")
        for judgement in (Judgement(score=1.0), Judgement(verdict="better"))
    ]
    return hashlib.blake2b(json.dumps(texts).encode(), digest_size=8).hexdigest()
