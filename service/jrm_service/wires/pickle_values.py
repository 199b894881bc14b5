"""What a pickle may name, and what becomes of it: a few names, none of which is ever looked up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 32
"""Of containers in each other."""

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
    """The bytes are no pickle, one that was cut, or one of what no client of ours sends."""


@dataclass(frozen=True, slots=True)
class Global:
    """A name from a pickle. Raises PickleError for one that no client of ours writes."""

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
    """What a pickle says of a PIL image, as pillow's ``__getstate__`` has it: nothing of it is checked yet."""

    state: Any = None


def called(function: Global, arguments: Sequence[Any]) -> bytes:
    """What the call of a function gives: only of those that make bytes. Raises PickleError."""
    if function.pair == ("_codecs", "encode") and [type(argument) for argument in arguments] == [str, str]:
        text, encoding = arguments
        if encoding not in ("latin1", "latin-1"):
            raise PickleError("bytes are in another encoding than latin1")
        try:
            return bytes(text, "latin-1")
        except UnicodeEncodeError:
            raise PickleError("bytes that are none") from None
    if function.name in ("bytes", "bytearray") and not arguments:
        return b""
    if function.name == "bytearray" and [type(argument) for argument in arguments] == [bytes]:
        return bytes(arguments[0])
    raise PickleError(f"it calls {function.module}.{function.name}")


def made(kind: Global, arguments: Sequence[Any]) -> PILState | str:
    """What a new object of a class is here. Raises PickleError."""
    if kind.pair in _IMAGE_CLASSES and not arguments:
        return PILState()
    if kind.pair in _TEXT_CLASSES and [type(argument) for argument in arguments] == [str]:
        return str(arguments[0])
    raise PickleError(f"it makes a {kind.module}.{kind.name}")


def set_state(target: object, state: Any) -> None:
    """Give an object its state, once. Raises PickleError."""
    if isinstance(target, PILState) and target.state is None:
        target.state = state
    elif type(target) is not str:  # the attributes of a text of a PNG file, which nobody reads
        raise PickleError(f"it sets the state of a {type(target).__name__}")


def require_shallow(value: Any) -> None:
    """Raises PickleError for a value that contains itself, or is nested deeper than MAX_DEPTH.

    Every container is opened once, however often it is named.
    """
    depths: dict[int, int] = {}  # of containers that were walked through
    path: dict[int, Sequence[Any]] = {}  # the children of those that are being walked through
    pending: list[tuple[Any, bool]] = [(value, False)] if isinstance(value, _CONTAINERS) else []
    while pending:
        container, walked = pending.pop()
        if id(container) in depths:
            continue
        if walked:
            children = path.pop(id(container))
            depths[id(container)] = 1 + max((depths.get(id(child), 0) for child in children), default=0)
            if depths[id(container)] > MAX_DEPTH:  # of two ways to it, the first was the shorter one
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
