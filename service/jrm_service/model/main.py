"""The worker process that scores: it loads a checkpoint onto one device, self-tests, and scores until its server ends.

``python -m jrm_service.model.main FD PID``, started only by ``device.process``. FD is its end of the channel
to the server with the process id PID.
"""

from __future__ import annotations

import gc
import logging
import os
import threading
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from .worker_process import DEVICE_LOST, connect, give_up, require_same

if TYPE_CHECKING:
    from jrm_service.device.channel import Batch, Channel, Load, Sleep, Wake
    from jrm_service.scoring.backend import SleepingBackend

    _Work = tuple[Batch | Sleep | Wake, Any]  # a message of the server, and the collated batch

logger = logging.getLogger(__name__)


def main() -> None:
    """Serve batches from the channel. The process ends with its server, for whatever reason that ends."""
    channel = connect()
    batches: SimpleQueue[_Work] = SimpleQueue()
    loaded: SimpleQueue[Load] = SimpleQueue()
    backend: list[SleepingBackend[Any]] = []
    # Started before anything is loaded, so that the process also ends with its server during loading.
    threading.Thread(target=_receive, args=(channel, loaded, backend, batches), name="jrm-receive", daemon=True).start()
    load = loaded.get()
    gc.disable()  # imports leave hardly any garbage: looking for it takes a sixth of a small checkpoint's start
    try:
        backend.append(_load(load, channel))
    except Exception as error:
        give_up(channel, error)
    gc.collect()  # a layer that was tried and refused must not keep its memory
    gc.freeze()  # what is left stays, so no later collection, which stops the scoring, needs to look at it
    gc.enable()
    _work(backend[0], batches, channel)


def _receive(
    channel: Channel,
    loaded: SimpleQueue[Load],
    backend: list[SleepingBackend[Any]],
    batches: SimpleQueue[_Work],
) -> None:
    """Build each batch as it arrives, while the device works on the one before."""
    from jrm_service.device.channel import Batch

    try:
        loaded.put(channel.receive())
        while True:
            message, batch = channel.receive(), None
            if isinstance(message, Batch):
                with suppress(Exception):  # score_batch collates again, and finds the candidate that raises
                    batch = backend[0].collate(message.candidates)
            batches.put((message, batch))
            del message, batch
    finally:
        os._exit(0)  # the server is gone; the main thread may be anywhere


def _load(load: Load, channel: Channel) -> SleepingBackend[Any]:
    import torch

    from jrm_service.cpus import usable_cpus
    from jrm_service.device.channel import Loaded

    from .checkpoint_source import open_source
    from .devices import resolve_device
    from .kernels import compile_no_more

    devices = [resolve_device(device) for device in load.devices]
    device, on_cpu = devices[load.number], devices.count("cpu")
    if device == "cpu" and on_cpu > 1:
        torch.set_num_threads(max(1, usable_cpus() // on_cpu))  # more would only wait for each other
    if device.startswith("cuda") and load.gpu_share < 1:
        torch.cuda.set_per_process_memory_fraction(load.gpu_share, device)  # beyond that, allocations fail
    dtype = load.dtype
    if dtype == "auto" and "cpu" in devices:
        dtype = "float32"  # one precision for all: a score must not depend on where it was computed
    source = open_source(
        None if load.checkpoint is None else Path(load.checkpoint),
        [device],
        dtype,
        load.engine,
        quantize=load.quantize,
        fused_layers=load.fused_layers,
        cuda_graphs=load.cuda_graphs,
        self_test=load.self_test,
        allow_pipeline_drift=load.allow_pipeline_drift,
    )
    require_same(source.checkpoint, load.fingerprint)
    model, [backend] = source.load(hashed=load.hashed)
    tokens = 0
    if load.measured:
        if device.startswith("cuda"):
            gc.collect()  # what only trials needed would count as taken
        tokens = source.batch_tokens([backend], spared=load.spared, sharing=devices.count(device))
    compile_no_more()
    channel.send(Loaded(model, source.checkpoint.image_spec, source.checkpoint.builder, tokens))
    return backend


def _work(backend: SleepingBackend[Any], batches: SimpleQueue[_Work], channel: Channel) -> None:
    """Carry out the server's messages in order."""
    from jrm_service.device.channel import Batch, Done, Scores, Sleep
    from jrm_service.scoring.local import score_batch

    while True:
        message, batch = batches.get()
        answer: Scores | Done
        try:
            if isinstance(message, Batch):
                answer = Scores(score_batch(backend, message.candidates, batch))
            else:
                from .devices import device_bytes

                (backend.sleep if isinstance(message, Sleep) else backend.wake)()
                answer = Done(device_bytes(backend.device))
        except Exception:  # the device is lost, or has no room for the weights on waking
            logger.exception("the device is lost")
            os._exit(DEVICE_LOST)
        channel.send(answer)
        del message, batch, answer  # so that the last batch is not kept alive while waiting


if __name__ == "__main__":
    main()
