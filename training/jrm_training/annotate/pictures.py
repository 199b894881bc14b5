"""Images for a chat: the pixels that training sees, however an endpoint handles orientation and alpha."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from jrm_client.jsonl import quoted
from jrm_service.errors import CandidateError
from jrm_service.images.decode import decode, read_header

_AS_THEY_ARE = {"PNG": "image/png", "JPEG": "image/jpeg", "WebP": "image/webp"}


def data_url(path: Path) -> str:
    """Return the file as a data URL if every reader sees the same pixels in it, else a PNG of what training sees.

    Raises ValueError, with the path, for a file that is no image.
    """
    try:
        data = path.read_bytes()
        header, image = read_header(data), decode(data)
    except OSError as error:
        raise ValueError(f"{quoted(str(path))}: {error.strerror or error}") from None
    except CandidateError as error:
        raise ValueError(f"{quoted(str(path))}: {error}") from None
    kind = _AS_THEY_ARE.get(header.format)
    if kind is None or not _plain(data):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        kind, data = "image/png", buffer.getvalue()
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _plain(data: bytes) -> bool:
    """Whether it is RGB, without metadata that could rotate it."""
    with Image.open(io.BytesIO(data)) as image:
        return image.mode == "RGB" and not {"exif", "xmp", "Raw profile type exif"} & image.info.keys()


def pixels(path: Path) -> int:
    """Width times height, from the header. Raises ValueError, with the path, for a file that is no image."""
    try:
        header = read_header(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{quoted(str(path))}: {error.strerror or error}") from None
    except CandidateError as error:
        raise ValueError(f"{quoted(str(path))}: {error}") from None
    return header.width * header.height
