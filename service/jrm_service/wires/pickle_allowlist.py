"""The classes and functions that a pickle may name, and the values made for them; none is ever imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 32
"""How deeply containers may be nested."""

_IMAGE_CLASSES = frozenset(
    {
        ("PIL.Image", "Image"),
        ("PIL.PngImagePlugin", "PngImageFile"),
        ("PIL.JpegImagePlugin", "JpegImageFile"),
        ("PIL.MpoImagePlugin", "MpoImageFile"),
        ("PIL.WebPImagePlugin", "WebPImageFile"),
        ("PIL.PpmImagePlugin", "PpmImageFile"),
        ("PIL.BmpImagePlugin", "BmpImageFile"),
    }
)
_TEXT_CLASSES = frozenset({("PIL.PngImagePlugin", "iTXt")})  # a str with attributes, in the info of a PNG file
# How protocols below 3 write bytes, and those below 5 a bytearray.
_FUNCTIONS = frozenset(
    {
        ("_codecs", "encode"),
        ("builtins", "bytes"),
        ("__builtin__", "bytes"),
        ("builtins", "bytearray"),
        ("__builtin__", "bytearray"),
    }
)


class PickleError(ValueError):
    """The bytes are not a pickle, are truncated, or hold something that no client of these wires sends."""


@dataclass(frozen=True, slots=True)
class Global:
    """A class or function that a pickle names. Raises PickleError for one that no client of these wires writes."""

    module: str
    name: str

    def __post_init__(self) -> None:
        if self.pair not in _IMAGE_CLASSES | _TEXT_CLASSES | _FUNCTIONS:
            raise PickleError(f"it names {self.module[:64]}.{self.name[:64]}")

    @property
    def pair(self) -> tuple[str, str]:
        """Module and name."""
        return self.module, self.name


@dataclass(slots=True)
class PILState:
    """The state of a PIL image in a pickle, as pillow's ``__getstate__`` returns it, not checked yet."""

    state: Any = None


def call_function(function: Global, arguments: Sequence[Any]) -> bytes:
    """Return the result of a call, which must be one of those that make bytes. Raises PickleError."""
    if function.pair == ("_codecs", "encode") and [type(argument) for argument in arguments] == [str, str]:
        text, encoding = arguments
        if encoding not in ("latin1", "latin-1"):
            raise PickleError("bytes are in another encoding than latin1")
        try:
            return bytes(text, "latin-1")
        except UnicodeEncodeError:
            raise PickleError("bytes that are not latin1") from None
    if function.name in ("bytes", "bytearray") and not arguments:
        return b""
    if function.name == "bytearray" and [type(argument) for argument in arguments] == [bytes]:
        return bytes(arguments[0])
    raise PickleError(f"it calls {function.module}.{function.name}")


def construct(kind: Global, arguments: Sequence[Any]) -> PILState | str:
    """Return what stands for a new object of a class. Raises PickleError."""
    if kind.pair in _IMAGE_CLASSES and not arguments:
        return PILState()
    if kind.pair in _TEXT_CLASSES and [type(argument) for argument in arguments] == [str]:
        return str(arguments[0])
    raise PickleError(f"it makes a {kind.module}.{kind.name}")


def set_state(target: object, state: Any) -> None:
    """Give an object its state, once. Raises PickleError."""
    if isinstance(target, PILState) and target.state is None:
        target.state = state
    elif type(target) is not str:  # the attributes of a PNG file's text are dropped
        raise PickleError(f"it sets the state of a {type(target).__name__}")


def require_shallow(value: Any) -> None:
    """Raise PickleError for a value that contains itself, or is nested deeper than MAX_DEPTH.

    Every container is visited once, however often it occurs.
    """
    depths: dict[int, int] = {}  # of containers that were visited
    path: dict[int, Sequence[Any]] = {}  # the children of those that are being visited
    pending: list[tuple[Any, bool]] = [(value, False)] if isinstance(value, _CONTAINERS) else []
    while pending:
        container, walked = pending.pop()
        if id(container) in depths:
            continue
        if walked:
            children = path.pop(id(container))
            depths[id(container)] = 1 + max((depths.get(id(child), 0) for child in children), default=0)
            if depths[id(container)] > MAX_DEPTH:  # it was first reached by a shorter path
                raise PickleError(f"nested deeper than {MAX_DEPTH}")
            continue
        if id(container) in path:
            raise PickleError("a value contains itself")
        if len(path) >= MAX_DEPTH:
            raise PickleError(f"nested deeper than {MAX_DEPTH}")
        children = path[id(container)] = _children(container)
        pending.append((container, True))
        pending += [(child, False) for child in children if isinstance(child, _CONTAINERS)]


def _children(container: Any) -> Sequence[Any]:
    if isinstance(container, PILState):
        return (container.state,)
    if isinstance(container, dict):
        return list(container.values())
    values: list[Any] | tuple[Any, ...] = container
    return values


_CONTAINERS = (PILState, dict, list, tuple)
