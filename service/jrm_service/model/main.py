"""A worker process: it loads a checkpoint onto one device, tests itself, and then scores batches until its server ends.

``python -m jrm_service.model.main FD PID``: started by ``device.process`` alone. FD is its end of the channel to the
server with the process id PID.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from .worker import DEVICE_LOST, connect, give_up, require_same

if TYPE_CHECKING:
    from jrm_service.device.channel import Channel, Load
    from jrm_service.scoring.backend import Backend
    from jrm_service.scoring.types import Candidate

logger = logging.getLogger(__name__)


def main() -> None:
    """Serve batches from the channel. Ends with the server, whatever ends that."""
    channel = connect()
    batches: SimpleQueue[tuple[Sequence[Candidate], Any]] = SimpleQueue()
    loaded: SimpleQueue[Load] = SimpleQueue()
    backend: list[Backend[Any]] = []
    # Begun before anything is loaded: a server that goes away meanwhile is not waited for.
    threading.Thread(target=_receive, args=(channel, loaded, backend, batches), name="jrm-receive", daemon=True).start()
    load = loaded.get()
    try:
        backend.append(_load(load, channel))
    except Exception as error:
        give_up(channel, error)
    _score_all(backend[0], batches, channel)


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
    require_same(source.checkpoint, load.fingerprint)
    model, [backend] = source.load(hashed=load.hashed)
    tokens = 0
    if load.measured:
        tokens = source.batch_tokens([backend], spared=load.spared, sharing=devices.count(device))
    compile_no_more()
    channel.send(Loaded(model, source.checkpoint.image_spec, source.checkpoint.builder, tokens))
    return backend


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
            os._exit(DEVICE_LOST)
        channel.send(Scores(answer))
        del candidates, batch, answer  # while it waits, nothing of the last batch is kept


if __name__ == "__main__":
    main()
