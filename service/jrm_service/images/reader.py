"""Reads the images of requests in threads: each image once, within a limit on the memory that decoding takes."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from PIL import Image as PILImage

from jrm_service.errors import CandidateError

from .decode import decode_behind, read_header

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class ImageInput:
    """One image of a request as it arrived: the bytes of its file, or the error that stands for them.

    ``name`` is its field, for messages; ``key`` a digest of the bytes, so that equal images are decoded once.
    """

    name: str
    data: bytes | CandidateError
    key: bytes

    @classmethod
    def of(cls, name: str, data: bytes | CandidateError) -> ImageInput:
        """Return the input with the digest of ``data``. Hashing takes time: call it off the event loop."""
        raw = data if isinstance(data, bytes) else str(data).encode()
        return cls(name, data, hashlib.blake2b(raw, digest_size=16).digest())


class DecodingMemory:
    """The bytes that decoding may take in all threads together. An image that needs more is decoded alone."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._spent = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, amount: int) -> Iterator[None]:
        """Wait in this thread until ``amount`` bytes are free, and hold them until the block ends."""
        amount = min(amount, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._spent + amount <= self._total)
            self._spent += amount
        try:
            yield
        finally:
            with self._changed:
                self._spent -= amount
                self._changed.notify_all()


class ImageReader(Generic[T]):
    """Threads that decode images and prepare them for the model.

    Args:
        prepare: turns an upright RGB image into the prepared image; raises the image's CandidateError.
        max_pixels: of one image, by its header.
        max_decoded_bytes: of all images that are being decoded.
        threads: how many images are read at once.
    """

    def __init__(
        self, prepare: Callable[[PILImage.Image], T], *, max_pixels: int, max_decoded_bytes: int, threads: int
    ) -> None:
        self.threads = threads
        self._prepare = prepare
        self._max_pixels = max_pixels
        self._memory = DecodingMemory(max_decoded_bytes)
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="jrm-preprocess")

    async def run(self, work: Callable[[], U]) -> U:
        """Run ``work`` in one of the threads and return its result."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def close(self) -> None:
        """Stop the threads; work that has not started is dropped."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def read(self, data: bytes) -> tuple[T, tuple[int, int]]:
        """The prepared image of a file, and the file's width and height. Runs in a thread. Raises CandidateError."""
        header = read_header(data, max_pixels=self._max_pixels)
        with self._memory.hold(header.decoded_bytes):
            rgb = decode_behind(header, data)
            return self._prepare(rgb), rgb.size


class RequestImages(Generic[T]):
    """The images of one request: equal bytes are read once, by the thread that needs them first. Thread-safe."""

    def __init__(self, reader: ImageReader[T]) -> None:
        self._reader = reader
        self._read: dict[bytes, Future[tuple[T, tuple[int, int]]]] = {}
        self._lock = threading.Lock()
        self.decoded = 0
        """How many images were read."""

    def get(self, image: ImageInput) -> tuple[T, tuple[int, int]]:
        """The prepared image and its size. Runs in a thread. Raises CandidateError with this input's name."""
        with self._lock:
            future = self._read.get(image.key)
            first = future is None
            if future is None:
                future = self._read[image.key] = Future()
        if first:
            try:
                if isinstance(image.data, CandidateError):
                    raise image.data
                future.set_result(self._reader.read(image.data))
                self.decoded += 1
            except BaseException as error:
                future.set_exception(error)
        failure = future.exception()
        if isinstance(failure, CandidateError):
            named = type(failure)(f"{image.name}: {failure}")
            named.param = image.name
            raise named from None
        return future.result()

    def forget(self, image: ImageInput) -> None:
        """Drop the image once nothing needs it any more."""
        with self._lock:
            self._read.pop(image.key, None)
