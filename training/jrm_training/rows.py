"""Validation of one line of a preference file. ``docs/training-data.md`` describes the format.

Everything is strict, because a label that is silently dropped makes a reward that is silently wrong: unknown keys,
unknown dimensions, repeated keys, numbers in quotes, NaN and half-labelled rows are all refused.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core.core_schema import ValidationInfo

from jrm_client import jsonl, strict_json
from jrm_client.jsonl import quoted

Preference: TypeAlias = Literal["first", "second", "tie"]

_MAX_REASONS = 5
_CRITIQUE = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


def critique_text(value: object) -> str:
    """Return the text that the language head should write for a critique of a row; a JSON object becomes one line.

    An object becomes ``json.dumps(value, ensure_ascii=False)``: keys in their order, ``", "`` and ``": "`` between
    them, no other white space. Raises ValueError for anything else, for what is empty or not valid Unicode, and for
    an object that holds a number beyond float64.
    """
    if isinstance(value, dict):
        try:
            text = _CRITIQUE.encode(value) if value else ""
        except RecursionError:
            raise ValueError("nested too deeply") from None
    elif isinstance(value, str):
        text = value
    else:
        raise ValueError("a critique is text or a JSON object")
    if not text.strip():
        raise ValueError("empty; leave out a critique that is not known")
    return _unicode(text)


def critique_value(text: str) -> str | dict[str, Any]:
    """Return the inverse of ``critique_text``: an object if and only if it becomes exactly this text again."""
    try:
        value = strict_json.loads(text)
        return value if isinstance(value, dict) and critique_text(value) == text else text
    except ValueError:
        return text


def _known(name: str, info: ValidationInfo) -> str:
    if info.context is not None and name not in info.context:
        raise ValueError(f"not a dimension of this checkpoint ({', '.join(info.context)})")
    return name


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("empty")
    return _unicode(text)


def _unicode(text: str) -> str:
    """The text, checked: JSON's \\u escapes can make strings that have no UTF-8 and so no tokens."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"not valid Unicode (a lone surrogate at {error.start})") from None
    return text


def _listed(source: Any) -> Any:
    """A path, a list of paths or null, as a list."""
    if source == []:
        raise ValueError("an empty list; leave it out where there is no source")
    if isinstance(source, str):
        return [_not_blank(source)]
    return [] if source is None else source


_Dimension = Annotated[str, AfterValidator(_known)]
_Text = Annotated[str, AfterValidator(_not_blank)]
_Source = Annotated[list[_Text], BeforeValidator(_listed)]
_Label = Annotated[float, Field(allow_inf_nan=False)]
_Critique = Annotated[str, BeforeValidator(critique_text)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class EditRow(_Strict):
    """An edit of a row: the path of its image, a label and the text of a critique for each dimension that has one."""

    image: _Text
    labels: dict[_Dimension, _Label] = {}
    critiques: dict[_Dimension, _Critique] = {}


class Row(_Strict):
    """A whole row. Within a row every edit has a label for a dimension or none has, unless a preference decides it.

    Validation takes the known dimensions as its context; without a context every name is one.
    """

    source: _Source = []
    instruction: _Text
    edits: Annotated[list[EditRow], Field(min_length=2)]
    preferences: dict[_Dimension, Preference] = {}

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        if self.preferences and len(self.edits) != 2:
            raise ValueError(f"preferences are between two edits, this row has {len(self.edits)}; label them instead")
        labelled = {dimension: None for edit in self.edits for dimension in edit.labels}
        for dimension in labelled:
            lacking = next((number for number, edit in enumerate(self.edits) if dimension not in edit.labels), None)
            if lacking is not None and dimension not in self.preferences:
                raise ValueError(f"edits[{lacking}].labels: no {dimension}, which another edit of the row has")
        if not self.compared and not any(edit.critiques for edit in self.edits):
            raise ValueError("nothing to learn from: no labels, no preferences, no critiques")
        return self

    @property
    def compared(self) -> frozenset[str]:
        """The dimensions in which the edits can be compared: by a preference, or since all have labels."""
        return frozenset(self.preferences).union(frozenset.intersection(*(frozenset(e.labels) for e in self.edits)))

    def images(self) -> dict[str, str]:
        """Where each image is named (``source``, ``edits[0].image``, …) -> its path in the row, sources first."""
        several = len(self.source) > 1
        sources = {f"source[{n}]" if several else "source": path for n, path in enumerate(self.source)}
        return sources | {f"edits[{n}].image": edit.image for n, edit in enumerate(self.edits)}


def parse_row(line: bytes, dimensions: Collection[str]) -> Row:
    """Parse and validate one line, with or without its line break. Raises ValueError with a short reason."""
    return to_row(jsonl.parse(line), dimensions)


def to_row(value: dict[str, Any], dimensions: Collection[str] | None) -> Row:
    """Validate a row of parsed JSON; with None, any name is a dimension. Raises ValueError with the reason."""
    try:
        return Row.model_validate(value, context=dimensions)
    except ValidationError as error:
        items = error.errors(include_url=False, include_context=False, include_input=False)
        reasons = [_reason(item["loc"], item["msg"].removeprefix("Value error, ")) for item in items[:_MAX_REASONS]]
        more = [f"and {len(items) - _MAX_REASONS} more"] if len(items) > _MAX_REASONS else []
        raise ValueError("; ".join([*reasons, *more])) from None


def _reason(location: tuple[str | int, ...], message: str) -> str:
    where = ""
    for piece in location:
        if isinstance(piece, int):
            where += f"[{piece}]"
        elif piece != "[key]":  # pydantic's mark for "the key, not the value"
            where += f".{quoted(piece)}" if where else quoted(piece)
    return f"{where}: {message}" if where else message
