"""The static files of the page, as they are served: from memory, with their types and the headers of a strict page."""

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
"""By suffix. Not from ``mimetypes``, which asks the machine: a script of another type is not run."""

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # kept, and asked for again: a server that was updated shows its own page at once
}


@dataclass(frozen=True, slots=True)
class StaticFile:
    """One file. ``etag`` is of its content, so that all replicas of a version agree."""

    content: bytes
    media_type: str
    etag: str

    def reply(self, headers: Headers) -> Response:
        """The file, or 304 for a browser that has it. ``headers`` are those of the request."""
        own = {**_HEADERS, "etag": self.etag}
        known = headers.get("if-none-match", "").split(",")
        # A proxy that compresses makes a tag a weak one.
        if any(tag.strip().removeprefix("W/") in (self.etag, "*") for tag in known):
            return Response(status_code=304, headers=own)
        return Response(self.content, headers={**own, "content-type": self.media_type})


def static_files() -> Mapping[str, StaticFile]:
    """Every file of the page by its path below ``static/``. There are no others to ask for, whatever a path says."""
    return dict(_found(files(__package__) / "static", ""))


def _found(folder: Traversable, prefix: str) -> list[tuple[str, StaticFile]]:
    found: list[tuple[str, StaticFile]] = []
    for entry in folder.iterdir():
        name = f"{prefix}{entry.name}"
        if entry.is_dir():
            found += _found(entry, f"{name}/")
        elif (media_type := _MEDIA_TYPES.get(name.rpartition(".")[2])) is not None:
            content = entry.read_bytes()
            found.append((name, StaticFile(content, media_type, f'"{sha256(content).hexdigest()[:32]}"')))
    return found
