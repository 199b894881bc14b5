"""Thumbnails as data URLs, for self-contained pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable

from .html_report import Picture, Pictures
from .images import ImageInput, decode

SIDE = 512
"""The longest side of a thumbnail, in pixels."""


def data_url(image: ImageInput, name: str) -> str | None:
    """Return ``image`` as a data URL of a PNG or a JPEG, whichever is smaller, of at most SIDE pixels a side.

    None for bytes that are no image, or a damaged one. Raises what ``images.encode`` raises, under ``name``.
    """
    try:
        picture = decode(image, name)
    except ValueError:
        return None
    picture.thumbnail((SIDE, SIDE))
    png, jpeg = io.BytesIO(), io.BytesIO()
    picture.save(png, "PNG")
    picture.save(jpeg, "JPEG", quality=85)
    kind, data = min(("png", png.getvalue()), ("jpeg", jpeg.getvalue()), key=lambda file: len(file[1]))
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def pictures_of(
    instruction: str, sources: Iterable[tuple[str, ImageInput]], edits: Iterable[tuple[str, ImageInput]]
) -> Pictures:
    """Return the pictures of a group from (name, image) pairs.

    Never raises for an image: the scores are there already, and a file may be gone since it was sent.
    """
    return Pictures(
        instruction,
        tuple(_picture(name, image) for name, image in sources),
        tuple(_picture(name, image) for name, image in edits),
    )


def _picture(name: str, image: ImageInput) -> Picture:
    try:
        return Picture(name, data_url(image, name))
    except Exception:  # whatever went wrong, the image has been scored
        return Picture(name)
