"""The channel between the server and one worker process, over a socket pair, and the messages of scoring.

A message is a pickle, which is safe only between programs that trust each other: both ends are this package, and
nothing that a caller sent is unpickled, because a caller's bytes have become pixels and token ids by then. Arrays
follow it as raw memory, and an object that a message contains twice is sent once.
"""

from __future__ import annotations

import pickle
import socket
import struct
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from jrm_service.images.preprocess import ImageSpec
from jrm_service.scoring.backend import WorkerResult
from jrm_service.scoring.preparing import SequenceBuilder
from jrm_service.scoring.types import Candidate, ServedModel

_HEAD = struct.Struct("<QI")  # bytes of the pickle, number of arrays after it
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Load:
    """The first message to a worker: what to load, where, and how.

    ``devices`` are those of all workers, and this is worker ``number``. ``hashed``: whether it computes the
    fingerprint, which must be ``fingerprint`` if that is known already; ``measured``: whether it measures the token
    budget. ``spared`` is the share of a GPU's memory that is left for vLLM, ``gpu_share`` the largest share that this
    worker may take.
    """

    checkpoint: str | None
    devices: Sequence[str]
    number: int
    dtype: str
    engine: str
    self_test: bool
    allow_pipeline_drift: bool
    hashed: bool
    measured: bool
    spared: float
    fingerprint: str | None = None
    quantize: str = "none"
    fused_layers: bool = True
    cuda_graphs: bool = True
    gpu_share: float = 1.0


@dataclass(frozen=True, slots=True)
class Loaded:
    """From a worker: it is warm, has passed the self-test and accepts batches.

    The server prepares candidates with ``image_spec`` and ``builder``; ``batch_tokens`` is the measured token budget.
    """

    model: ServedModel
    image_spec: ImageSpec
    builder: SequenceBuilder
    batch_tokens: int


@dataclass(frozen=True, slots=True)
class NotLoaded:
    """The last message from a worker that cannot load: the problems, one a line."""

    problems: list[str]


@dataclass(frozen=True, slots=True)
class Batch:
    """To a worker: candidates to score after the earlier batches."""

    candidates: Sequence[Candidate]


@dataclass(frozen=True, slots=True)
class Scores:
    """From a worker: the answer to the oldest unanswered batch. Messages are answered in order."""

    answer: WorkerResult


@dataclass(frozen=True, slots=True)
class Sleep:
    """To a worker: release the device after the earlier batches; answered with ``Done``."""


@dataclass(frozen=True, slots=True)
class Wake:
    """To a worker that sleeps: take the device again; answered with ``Done``."""


@dataclass(frozen=True, slots=True)
class Done:
    """From a worker: ``Sleep`` or ``Wake`` is done, and it holds this many bytes on its device."""

    device_bytes: int


@dataclass(frozen=True, slots=True)
class LogLine:
    """From a worker: a record of its log."""

    name: str
    level: int
    message: str


class Channel:
    """One end of the channel. ``send`` may be called from several threads, ``receive`` from one."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(True)
        self._end = end
        self._sending = threading.Lock()

    def send(self, message: object) -> None:
        """Send a message; blocks while the other end does not read. Raises OSError when it is gone."""
        arrays: list[pickle.PickleBuffer] = []
        body = pickle.dumps(message, protocol=5, buffer_callback=arrays.append)
        raw = [array.raw() for array in arrays]
        lengths = b"".join(_LENGTH.pack(view.nbytes) for view in raw)
        with self._sending:
            self._end.sendall(_HEAD.pack(len(body), len(raw)) + lengths + body)
            for view in raw:
                self._end.sendall(view)

    def receive(self) -> Any:
        """The next message. Raises EOFError when the other end is gone."""
        size, count = _HEAD.unpack(self._read(_HEAD.size))
        lengths = [_LENGTH.unpack(self._read(_LENGTH.size))[0] for _ in range(count)]
        body = self._read(size)
        return pickle.loads(body, buffers=[self._read(length) for length in lengths])  # noqa: S301 - see above

    def close(self) -> None:
        """Close the channel: ``receive`` raises EOFError at both ends."""
        with suppress(OSError):  # the other end has closed it already
            self._end.shutdown(socket.SHUT_RDWR)
        self._end.close()

    def _read(self, length: int) -> bytearray:
        data = bytearray(length)
        view = memoryview(data)
        while view:
            try:
                received = self._end.recv_into(view)
            except OSError:
                received = 0
            if received == 0:
                raise EOFError
            view = view[received:]
        return data
