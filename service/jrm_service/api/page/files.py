"""The static files of the page, served from memory with their media types and strict security headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable

from starlette.datastructures import Headers
from starlette.responses import Response

INDEX = "index.html"

_MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "svg": "image/svg+xml",
    "png": "image/png",
    "txt": "text/plain; charset=utf-8",
}
"""By suffix. Not from ``mimetypes``, which differs by machine: browsers do not run a script of another type."""

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # cached, but revalidated: an updated server shows its new page at once
}


@dataclass(frozen=True, slots=True)
class StaticFile:
    """One file. ``etag`` is of its content, so that all replicas of a version agree."""

    content: bytes
    media_type: str
    etag: str

    def reply(self, headers: Headers) -> Response:
        """The file, or 304 for a browser that has it. ``headers`` are those of the request."""
        reply_headers = {**_HEADERS, "etag": self.etag}
        known = headers.get("if-none-match", "").split(",")
        # A proxy that compresses turns a tag into a weak one.
        if any(tag.strip().removeprefix("W/") in (self.etag, "*") for tag in known):
            return Response(status_code=304, headers=reply_headers)
        return Response(self.content, headers={**reply_headers, "content-type": self.media_type})


def static_files() -> Mapping[str, StaticFile]:
    """Every file of the page, by its path below ``static/``. No other file can be requested, whatever a path says."""
    return dict(_load(files(__package__) / "static", ""))


def _load(folder: Traversable, prefix: str) -> list[tuple[str, StaticFile]]:
    loaded: list[tuple[str, StaticFile]] = []
    for entry in folder.iterdir():
        name = f"{prefix}{entry.name}"
        if entry.is_dir():
            loaded += _load(entry, f"{name}/")
        elif (media_type := _MEDIA_TYPES.get(name.rpartition(".")[2])) is not None:
            content = entry.read_bytes()
            loaded.append((name, StaticFile(content, media_type, f'"{sha256(content).hexdigest()[:32]}"')))
    return loaded
