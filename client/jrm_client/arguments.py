"""What callers pass, checked before anything is sent: messages name the argument, its value and the remedy."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from PIL import Image

from .images import ImageInput


def base_urls(value: str | Sequence[str]) -> tuple[str, ...]:
    """Return one or several base URLs without trailing slashes; commas separate them inside a string.

    Raises ValueError for what is not an HTTP URL.
    """
    given = (value,) if isinstance(value, str) else tuple(value)
    urls = tuple(dict.fromkeys(url.strip() for text in given for url in text.split(",") if url.strip()))
    if not urls:
        raise ValueError("base_url: an empty list; pass at least one URL")
    if any("@" in url.rpartition("://")[2].partition("/")[0] for url in urls):
        raise ValueError("base_url: a URL with a user or password in it; pass the key as api_key")
    for url in urls:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url: {url[:200]!r} does not begin with http:// or https:// and a host")
        if parts.query or parts.fragment:
            raise ValueError(f"base_url: {url[:200]!r} has a query or fragment")
    return tuple(dict.fromkeys(url.rstrip("/") for url in urls))


def key(api_key: str | None) -> str | None:
    """Return the API key, by default that of ``JRM_API_KEY``. It is never part of a message."""
    if api_key is None:
        api_key = os.environ.get("JRM_API_KEY") or None
    if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key and " " not in api_key):
        raise ValueError("api_key (or JRM_API_KEY): empty, or with spaces, line breaks or non-ASCII characters in it")
    return api_key


def seconds(timeout: float) -> float:
    """Return a timeout in seconds. Raises ValueError unless it is finite and positive."""
    if not (math.isfinite(timeout) and timeout > 0):
        raise ValueError(f"timeout={timeout!r}: expected a positive number of seconds")
    return float(timeout)


def pin(fingerprint: bool | str) -> bool | str:
    """Return what ``pin_fingerprint`` says. Raises ValueError for an empty fingerprint, TypeError for another type."""
    if not isinstance(fingerprint, bool | str):
        raise TypeError(f"pin_fingerprint: {type(fingerprint).__name__}; expected True, False or a fingerprint")
    if isinstance(fingerprint, str) and not fingerprint.strip():
        raise ValueError("pin_fingerprint: empty; pass a fingerprint, or True for that of the first reply")
    return fingerprint


def instruction(text: str, name: str) -> str:
    """Return an instruction that the contract allows. Raises TypeError or ValueError with ``name``."""
    if not isinstance(text, str):
        raise TypeError(f"{name}: {type(text).__name__}; expected str")
    if not text.strip():
        raise ValueError(f"{name}: empty; say which edit was asked for")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: not valid Unicode (a lone surrogate at {error.start})") from None
    return text


def dimensions(names: Sequence[str] | None) -> list[str] | None:
    """Return the dimensions to explain; None means all. Raises TypeError for a single string, ValueError for none."""
    if names is None:
        return None
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"dimensions={names!r}: expected a list of names")
    if not names:
        raise ValueError("dimensions: an empty list; pass at least one name, or None for all dimensions")
    return list(names)


def token_limit(max_tokens: int) -> int:
    """Return a limit of tokens. Raises TypeError or ValueError unless it is a positive whole number."""
    if not isinstance(max_tokens, int) or isinstance(max_tokens, bool):
        raise TypeError(f"max_tokens={max_tokens!r}: expected a whole number")
    if max_tokens < 1:
        raise ValueError(f"max_tokens={max_tokens}: expected at least 1")
    return max_tokens


def image_list(images: Iterable[ImageInput], name: str) -> list[ImageInput]:
    """Return a list or a batch [G, …] as a list. Raises TypeError or ValueError for a single image."""
    if isinstance(images, str | bytes | bytearray | memoryview | os.PathLike | Image.Image):
        raise TypeError(f"{name}: a single {type(images).__name__}; expected a list of images")
    shape = getattr(images, "shape", None)
    if shape is not None and len(shape) != 4:
        raise ValueError(f"{name}: an array of shape {tuple(shape)}; expected a list of images or a batch of four axes")
    return list(images)
