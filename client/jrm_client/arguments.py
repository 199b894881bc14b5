"""What callers pass, checked before anything is sent: messages name the argument, its value and the remedy."""

from __future__ import annotations

import math
import numbers
import os
import reprlib
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

from PIL import Image

from .images import ImageInput
from .urls import MAX_SHOWN, check_url

Sources: TypeAlias = ImageInput | list[Any] | tuple[ImageInput, ...] | None
"""The source of an edit: an image, a list or tuple of images, or None for a checkpoint that takes no source."""

Pair: TypeAlias = tuple[Sources, ImageInput, str]

REQUIRED: Any = None
"""The default of a required argument that follows an optional one: leaving it out raises what passing None raises."""

T = TypeVar("T")


def base_urls(value: str | Sequence[str]) -> tuple[str, ...]:
    """Return one or several base URLs without trailing slashes; commas separate them inside a string.

    Raises ValueError for what is not an HTTP URL.
    """
    entries = (value,) if isinstance(value, str) else value
    if not isinstance(entries, Sequence) or not all(isinstance(entry, str) for entry in entries):
        raise TypeError(f"base_url={_shown(value)}: expected a URL or a list of URLs")
    urls = tuple(dict.fromkeys(url.strip() for entry in entries for url in entry.split(",") if url.strip()))
    if not urls:
        raise ValueError("base_url: an empty list; pass at least one URL")
    if any("@" in url.rpartition("://")[2].partition("/")[0] for url in urls):
        raise ValueError("base_url: a URL with a user or password in it; pass the key as api_key")
    for url in urls:
        try:
            check_url(url, ("http", "https"))
        except ValueError as error:
            raise ValueError(f"base_url: {error}") from None
        parts = urlsplit(url)
        if parts.query or parts.fragment:
            raise ValueError(f"base_url: {url[:MAX_SHOWN]!r} has a query or fragment")
    return tuple(dict.fromkeys(url.rstrip("/") for url in urls))


def key(api_key: str | None) -> str | None:
    """Return the API key, by default that of ``JRM_API_KEY``. It is never part of a message."""
    if api_key is None:
        api_key = os.environ.get("JRM_API_KEY") or None
    elif not isinstance(api_key, str):
        raise TypeError(f"api_key: {type(api_key).__name__}; expected str or None")
    if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key and " " not in api_key):
        raise ValueError("api_key (or JRM_API_KEY): empty, or with spaces, line breaks or non-ASCII characters in it")
    return api_key


def number(value: object, name: str, wanted: str = "a number") -> float:
    """Return a number, numpy's included, as a float. Raises TypeError for anything else, booleans included."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}={_shown(value)}: expected {wanted}")
    return float(value)


def integer(value: object, name: str, least: int | None = None) -> int:
    """Return an integer, numpy's included. Raises TypeError for another type, ValueError if it is below ``least``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}={_shown(value)}: expected a whole number")
    if least is not None and value < least:
        raise ValueError(f"{name}={int(value)}: expected at least {least}")
    return int(value)


def seconds(timeout: float) -> float:
    """Return a timeout in seconds. Raises TypeError unless it is a number, ValueError unless finite and positive."""
    wanted = "a positive number of seconds"
    value = number(timeout, "timeout", wanted)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"timeout={_shown(timeout)}: expected {wanted}")
    return value


def choice(value: str, name: str, choices: Sequence[str]) -> None:
    """Raise TypeError for what is not a string, ValueError for what is not one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        kind = ValueError if isinstance(value, str) else TypeError
        expected = " or ".join(f'"{allowed}"' for allowed in choices)
        raise kind(f"{name}={_shown(value)}: expected {expected}")


def flag(value: object, name: str) -> bool:
    """Return a bool. Raises TypeError for anything else: the text "False" would count as true."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}={_shown(value)}: expected True or False")
    return value


def pin(fingerprint: bool | str) -> bool | str:
    """Return what ``pin_fingerprint`` says. Raises ValueError for an empty fingerprint, TypeError for another type."""
    if not isinstance(fingerprint, bool | str):
        raise TypeError(f"pin_fingerprint: {type(fingerprint).__name__}; expected True, False or a fingerprint")
    if isinstance(fingerprint, str) and not fingerprint.strip():
        raise ValueError("pin_fingerprint: empty; pass a fingerprint, or True for that of the first reply")
    return fingerprint


def text(value: str, name: str) -> str:
    """Return a string that UTF-8 can hold. Raises TypeError or ValueError with ``name``."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: {type(value).__name__}; expected str")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: not valid Unicode (a lone surrogate at {error.start})") from None
    return value


def instruction(value: str, name: str) -> str:
    """Return an instruction that the contract allows. Raises TypeError or ValueError with ``name``."""
    if not text(value, name).strip():
        raise ValueError(f"{name}: empty; say which edit was asked for")
    return value


def dimensions(names: Sequence[str] | None) -> list[str] | None:
    """Return the dimensions to explain; None means all. Raises TypeError for a single string, ValueError for none."""
    if names is None:
        return None
    listed = [] if isinstance(names, str) else sequence(names, "dimensions", "a list of names")
    if isinstance(names, str) or not all(isinstance(name, str) for name in listed):
        raise TypeError(f"dimensions={_shown(names)}: expected a list of names")
    if not listed:
        raise ValueError("dimensions: an empty list; pass at least one name, or None for all dimensions")
    return [text(name, f"dimensions[{index}]") for index, name in enumerate(listed)]


def sequence(values: Iterable[T], name: str, wanted: str) -> list[T]:
    """Return a list. Raises TypeError for strings, mappings, sets and what cannot be iterated over."""
    if isinstance(values, str | bytes | bytearray | memoryview):
        raise TypeError(f"{name}: a single {type(values).__name__}; expected {wanted}")
    if isinstance(values, Mapping | Set) or not isinstance(values, Iterable):
        raise TypeError(f"{name}={_shown(values)}: expected {wanted}")
    return list(values)


def image_list(images: Iterable[ImageInput], name: str) -> list[ImageInput]:
    """Return a list or a batch [G, …] as a list. Raises TypeError or ValueError for a single image."""
    if isinstance(images, str | bytes | bytearray | memoryview | os.PathLike | Image.Image):
        raise TypeError(f"{name}: a single {type(images).__name__}; expected a list of images")
    shape = getattr(images, "shape", None)
    if shape is None:
        return sequence(images, name, "a list of images")
    if len(shape) != 4:
        raise ValueError(f"{name}: an array of shape {tuple(shape)}; expected a list of images or a batch of four axes")
    return list(images)


def sources(value: Sources, name: str) -> dict[str, ImageInput]:
    """Return the source images, keyed by what messages call them. Raises ValueError for an empty list.

    Only a list or a tuple is several images: an array is always one. A list of one is the bare image.
    """
    if value is None:
        return {}
    if not isinstance(value, list | tuple):
        return {name: value}
    if not value:
        raise ValueError(f"{name}: an empty {type(value).__name__}; pass images, or None where there is no source")
    return {f"{name}[{index}]" if len(value) > 1 else name: image for index, image in enumerate(value)}


def pairs(values: Iterable[Pair], name: str = "pairs") -> list[Pair]:
    """Return a list of (source, edited, instruction). Raises TypeError or ValueError naming an item that is not one."""
    wanted = "a tuple (source, edited, instruction)"
    listed = sequence(values, name, f"a list, each item {wanted}")
    for index, pair in enumerate(listed):
        if not isinstance(pair, tuple | list):
            raise TypeError(f"{name}[{index}]: {type(pair).__name__}; expected {wanted}")
        if len(pair) != 3:
            raise ValueError(f"{name}[{index}]: a {type(pair).__name__} of {len(pair)}; expected {wanted}")
    return listed


def _shown(value: object) -> str:
    try:
        return reprlib.repr(value)
    except Exception:  # whatever a foreign __repr__ raises
        return f"<{type(value).__name__}>"
