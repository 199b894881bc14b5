"""Completions and data set columns, as trainers of language models pass them -> candidates.

These trainers know only text. ``edited`` says where the picture of a completion comes from, ``source`` and
``instruction`` which columns hold the rest of the candidate.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self, TypeAlias

from jrm_client import arguments
from jrm_client.arguments import Pair

Draw: TypeAlias = Callable[[Any], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Where the parts of a candidate are.

    ``edited``: the column of the edited images, or a function from a completion, as the trainer has it, to an image; a
    completion without a picture has None there. ``source``: the column of the source images, each one image or a list
    of them; None for a text-to-image checkpoint, which takes no source. ``instruction``: the column of the
    instructions; a conversation stands for the text of its last user message. ``source_root``: the folder that relative
    paths of sources and edits start from.

    Images are whatever ``JRMClient`` takes, and a data set's undecoded form, a dict with ``bytes`` or ``path``.
    """

    edited: str | Draw | None = None
    source: str | None = "source"
    instruction: str = "instruction"
    source_root: str | os.PathLike[str] | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """Return the columns that ``options`` name; other options are ignored."""
        return cls(**{field.name: options[field.name] for field in fields(cls) if field.name in options})

    def __post_init__(self) -> None:
        if self.edited is not None and not callable(self.edited):
            arguments.text(self.edited, "edited")
        if self.source is not None:
            arguments.text(self.source, "source")
        arguments.text(self.instruction, "instruction")
        if self.source_root is not None and not isinstance(self.source_root, str | os.PathLike):
            raise TypeError(f"source_root: {type(self.source_root).__name__}; expected a path or None")

    def pairs(self, completions: Sequence[Any], columns: Mapping[str, Any]) -> list[Pair | None]:
        """Return (source, edited, instruction) for each completion; None where a completion has no picture.

        Raises ValueError for an ``edited`` that was not given, for a column that is missing, shorter or longer than
        ``completions``, and for a cell without a source; TypeError for an instruction that is not text.
        """
        if self.edited is None:
            raise ValueError(
                "edited: not given, and a completion is text. Pass the name of the column that holds the edited images "
                "or a function that makes an image of a completion (in a plugin file: JRM_EDITED)"
            )
        if callable(self.edited):
            edits: Sequence[Any] = [self.edited(completion) for completion in completions]
        else:
            edits = _column(columns, self.edited, "edited", len(completions))
        instructions = _column(columns, self.instruction, "instruction", len(completions))
        sources: Sequence[Any] = [None] * len(completions)
        if self.source is not None:
            sources = _column(columns, self.source, "source", len(completions))
        rows = zip(sources, edits, instructions, strict=True)
        return [self._pair(index, *row) for index, row in enumerate(rows)]

    def _pair(self, index: int, source: Any, edited: Any, instruction: Any) -> Pair | None:
        picture = self._image(edited)
        if picture is None:
            return None
        if self.source is not None:
            source = self._source(source, f"{self.source}[{index}]")
        return source, picture, _last_user_text(instruction, f"{self.instruction}[{index}]")

    def _source(self, cell: Any, name: str) -> Any:
        images = [self._image(image) for image in (cell if isinstance(cell, list | tuple) else [cell])]
        if not images or any(image is None for image in images):
            raise ValueError(f"{name}: no source image; source=None is for text-to-image checkpoints")
        return images if len(images) > 1 else images[0]

    def _image(self, cell: Any) -> Any:
        if isinstance(cell, Mapping):  # datasets.Image(decode=False), and what ms-swift makes of it
            cell = cell.get("bytes") or cell.get("path")
        if self.source_root is not None and isinstance(cell, str | os.PathLike):
            return Path(self.source_root) / os.fsdecode(cell)
        return cell


def _column(columns: Mapping[str, Any], name: str, argument: str, count: int) -> Sequence[Any]:
    cells = columns.get(name)
    if not isinstance(cells, Sequence) or isinstance(cells, str | bytes):
        names = ", ".join(sorted(key for key, value in columns.items() if isinstance(value, list | tuple)))
        raise ValueError(f'{argument}: no column "{name}"; there are {names or "none"}. Pass {argument}="COLUMN"')
    if len(cells) != count:
        raise ValueError(f"{name}: {len(cells)} cells for {count} completions")
    return cells


def _last_user_text(instruction: Any, name: str) -> str:
    if isinstance(instruction, str):
        return instruction
    messages = instruction if isinstance(instruction, list | tuple) else []
    users = [message for message in messages if isinstance(message, Mapping) and message.get("role") == "user"]
    content = users[-1].get("content") if users else None
    if isinstance(content, list | tuple):
        content = "".join(part.get("text") or "" for part in content if isinstance(part, Mapping))
    if not isinstance(content, str):
        raise TypeError(f"{name}: {type(instruction).__name__}; expected text, or a conversation with a user message")
    return content
