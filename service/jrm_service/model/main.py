"""A worker process: it loads a checkpoint onto one device, tests itself, and then scores batches until its server ends.

``python -m jrm_service.model.main FD PID``: started by ``device.process`` alone. FD is its end of the channel to the
server with the process id PID.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jrm_service.device.channel import Channel, Load
    from jrm_service.scoring.backend import Backend
    from jrm_service.scoring.types import Candidate

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_DEVICE_LOST = 70  # EX_SOFTWARE: the exit status that the server's log shows


def main() -> None:
    """Serve batches from the channel. Ends with the server, whatever ends that."""
    descriptor, server = int(sys.argv[1]), int(sys.argv[2])
    _end_with(server)
    # A terminal's Ctrl-C and a supervisor's SIGTERM reach every process; the server drains, then ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end = socket.socket(fileno=descriptor)
    end.set_inheritable(False)

    from jrm_service.device.channel import Channel

    channel = Channel(end)
    batches: SimpleQueue[tuple[Sequence[Candidate], Any]] = SimpleQueue()
    loaded: SimpleQueue[Load] = SimpleQueue()
    backend: list[Backend[Any]] = []
    # Begun before anything is loaded: a server that goes away meanwhile is not waited for.
    threading.Thread(target=_receive, args=(channel, loaded, backend, batches), name="jrm-receive", daemon=True).start()
    _log_to(channel)
    load = loaded.get()
    try:
        backend.append(_load(load, channel))
    except Exception as error:
        _give_up(channel, error)
    _score_all(backend[0], batches, channel)


def _end_with(server: int) -> None:
    """Be killed when the server ends. The kernel sees to it even when this process is stopped; elsewhere than on Linux
    the end of the channel is the signal."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server:  # it ended before it could be followed
        os._exit(0)


def _receive(
    channel: Channel,
    loaded: SimpleQueue[Load],
    backend: list[Backend[Any]],
    batches: SimpleQueue[tuple[Sequence[Candidate], Any]],
) -> None:
    """Build each batch as it arrives, while the device works on the one before."""
    try:
        loaded.put(channel.receive())
        while True:
            candidates = channel.receive().candidates
            try:
                batch = backend[0].collate(candidates)
            except Exception:
                batch = None  # it raises again where that is handled, and tells which candidate it is
            batches.put((candidates, batch))
            del candidates, batch
    finally:
        os._exit(0)  # the server is gone; the main thread may be anywhere


def _load(load: Load, channel: Channel) -> Backend[Any]:
    import torch

    from jrm_service.cpus import usable_cpus
    from jrm_service.device.channel import Loaded
    from jrm_service.errors import CheckpointError

    from .devices import resolve_device
    from .kernels import compile_no_more
    from .source import open_source

    devices = [resolve_device(device) for device in load.devices]
    device, on_cpu = devices[load.number], devices.count("cpu")
    if device == "cpu" and on_cpu > 1:
        torch.set_num_threads(max(1, usable_cpus() // on_cpu))  # more would only wait for each other
    dtype = load.dtype
    if dtype == "auto" and "cpu" in devices:
        dtype = "float32"  # one precision for all: a score must not depend on where it was computed
    source = open_source(
        None if load.checkpoint is None else Path(load.checkpoint),
        [device],
        dtype,
        load.engine,
        quantize=load.quantize,
        cuda_graphs=load.cuda_graphs,
        self_test=load.self_test,
        allow_pipeline_drift=load.allow_pipeline_drift,
    )
    if load.fingerprint is not None and load.fingerprint != source.checkpoint.fingerprint:
        raise CheckpointError(
            [f"the checkpoint has become another: fingerprint {source.checkpoint.fingerprint}, not {load.fingerprint}"]
        )
    model, [backend] = source.load(hashed=load.hashed)
    tokens = 0
    if load.measured:
        tokens = source.batch_tokens([backend], spared=load.spared, sharing=devices.count(device))
    compile_no_more()
    channel.send(Loaded(model, source.checkpoint.image_spec, source.checkpoint.builder, tokens))
    return backend


def _give_up(channel: Channel, error: Exception) -> None:
    from jrm_service.device.channel import NotLoaded
    from jrm_service.errors import CheckpointError

    if isinstance(error, CheckpointError):
        channel.send(NotLoaded(error.problems))
    else:
        logger.error("loading failed", exc_info=error)
    os._exit(1)


def _score_all(backend: Backend[Any], batches: SimpleQueue[tuple[Sequence[Candidate], Any]], channel: Channel) -> None:
    from jrm_service.device.channel import Scores
    from jrm_service.scoring.backend import WorkerLost
    from jrm_service.scoring.local import score_batch

    while True:
        candidates, batch = batches.get()
        try:
            answer = score_batch(backend, candidates, batch)
        except WorkerLost:
            logger.exception("the device is lost")
            os._exit(_DEVICE_LOST)
        channel.send(Scores(answer))
        del candidates, batch, answer  # while it waits, nothing of the last batch is kept


def _log_to(channel: Channel) -> None:
    """Records go through the server, which writes them in its own format; what C code prints goes to stderr."""
    from jrm_service.device.channel import LogLine

    class ToServer(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with suppress(OSError):  # the server is gone, and so is this process in a moment
                channel.send(LogLine(record.name, record.levelno, self.format(record)))

    handler = ToServer()
    handler.setFormatter(logging.Formatter())  # the message, and a traceback behind it
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(True)


if __name__ == "__main__":
    main()
