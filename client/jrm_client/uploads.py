"""The images of one call: first only keys and sizes; edits are encoded when the request that carries them is sent.

Sources are encoded at once, because candidates whose sources are equal, byte for byte, form one group. Up to
KEPT_BYTES of them are kept, and the others are encoded again when they are sent. So a call holds in memory what it is
sending, and not all of its images.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterable

from .concurrency import gather
from .images import ImageFormat, ImageInput, encode, size_bound

KEPT_BYTES = 64 * 2**20


class Uploads:
    """Belongs to one call on one event loop. ``sizes`` has the bytes of every image, or a little more."""

    def __init__(self, image_format: ImageFormat) -> None:
        self._format: ImageFormat = image_format
        self._keys: dict[object, str] = {}
        self._images: dict[str, tuple[ImageInput, str]] = {}
        self._kept: dict[str, bytes] = {}
        self._kept_bytes = 0
        self.sizes: dict[str, int] = {}

    async def add(self, sources: Iterable[tuple[ImageInput, str]], edits: Iterable[tuple[ImageInput, str]]) -> None:
        """Add images, each with its name in messages. Raises what ``encode`` raises, of some edits only in ``load``."""
        distinct = {_identity(image): (image, name) for image, name in sources}
        await gather(self._add_source(identity, *item) for identity, item in distinct.items())
        edited = {_identity(image): (image, name) for image, name in edits}
        await asyncio.to_thread(self._add_edits, {i: item for i, item in edited.items() if i not in self._keys})

    async def _add_source(self, identity: object, image: ImageInput, name: str) -> None:
        key, data = await asyncio.to_thread(_encode, image, name, self._format)
        self._keys[identity] = key
        if key in self.sizes:
            return
        self._images[key], self.sizes[key] = (image, name), len(data)
        if self._kept_bytes + len(data) <= KEPT_BYTES:
            self._kept[key] = data
            self._kept_bytes += len(data)

    def _add_edits(self, edits: dict[object, tuple[ImageInput, str]]) -> None:
        for number, (identity, (image, name)) in enumerate(edits.items()):
            key = f"edit-{number}"
            self.sizes[key] = size_bound(image, name, self._format)
            self._keys[identity], self._images[key] = key, (image, name)

    def key(self, image: ImageInput) -> str:
        """Return the key of an image that was added; equal sources have equal keys."""
        return self._keys[_identity(image)]

    async def load(self, keys: Iterable[str]) -> dict[str, bytes]:
        """Return the bytes of images. Raises what ``encode`` raises, and ValueError for a source that has changed."""
        wanted = list(keys)
        return dict(zip(wanted, await gather(self._load(key) for key in wanted), strict=True))

    async def _load(self, key: str) -> bytes:
        if key in self._kept:
            return self._kept[key]
        image, name = self._images[key]
        digest, data = await asyncio.to_thread(_encode, image, name, self._format)
        if not key.startswith("edit-") and digest != key:
            raise ValueError(f"{name}: this image changed while it was being scored")
        return data


def _identity(image: ImageInput) -> object:
    """Equal for inputs that are certainly one image: the same path, or the same object. Valid during the call."""
    return os.fsdecode(image) if isinstance(image, str | os.PathLike) else id(image)


def _encode(image: ImageInput, name: str, image_format: ImageFormat) -> tuple[str, bytes]:
    data = encode(image, name, image_format)
    return hashlib.blake2b(data, digest_size=16).hexdigest(), data
