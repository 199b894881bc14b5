"""Starts what the settings ask for: threads or a process for each device, and the process that writes critiques."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from .device.channel import Load
from .device.process import ProcessWorker, load_all
from .errors import ExplainSetupError
from .explain.runtime import ExplainRuntime
from .explain.service import ExplainLimits
from .explain.worker import ExplainWorker
from .explain.worker_messages import OpenCheckpoint
from .host_memory import available_memory
from .metrics import Metrics
from .model.manifest import read_manifest
from .model.trie import BATCH_COSTS
from .score_runtime import Loader, OnFailed, Parts, RunningModel
from .scoring.fakes import DIMENSIONS, FakeBackend, FakePreparer
from .scoring.local import LocalWorker
from .scoring.preparing import CheckpointPreparer
from .scoring.types import ServedModel, joined_kernels
from .settings import Settings
from .threads import in_daemon_thread


def score_loader(settings: Settings, load: Callable[[], Parts] | None) -> Loader:
    """Return the loader of the settings' model. ``load`` replaces every checkpoint, and runs in a thread."""
    if load is None and settings.backend != "fake":
        return partial(_in_processes, settings)
    return partial(_in_threads, load or partial(_fakes, settings))


def _fakes(settings: Settings) -> Parts:
    """The fake model, in this process."""
    devices = ["cpu" if device == "auto" else device for device in settings.devices]
    preparer = FakePreparer()
    facts = {
        "device": ",".join(devices),
        "dtype": None,
        "precision": "float32",
        "backend": "fake",
        "image": {"max_sources": preparer.max_sources},
        "dimensions": [*DIMENSIONS],
        "passes": [{"read": {name: name}} for name in DIMENSIONS],
        "heads": {name: {"outputs": ["mean", "log_std"]} for name in DIMENSIONS},
    }
    model = ServedModel("jrm-fake", "fake", facts)
    return Parts(model, preparer, [FakeBackend(device=device) for device in devices])


async def _in_threads(load: Callable[[], Parts], _checkpoint: Path | None) -> RunningModel:
    """Start the backends of this process, each in a thread of its own."""
    parts = await in_daemon_thread(load)
    workers = [LocalWorker(backend) for backend in parts.backends]
    await asyncio.gather(*(worker.start() for worker in workers))
    return RunningModel(parts.model, parts.preparer, workers, parts.cost, parts.batch_tokens)


async def _in_processes(settings: Settings, checkpoint: Path | None) -> RunningModel:
    """Start one process for each device with a checkpoint, by default that of the settings.

    Raises CheckpointError, StartFailed.
    """
    folder = checkpoint or settings.checkpoint
    workers = [
        ProcessWorker(
            Load(
                checkpoint=None if folder is None else str(folder),
                devices=settings.devices,
                number=number,
                dtype=settings.dtype,
                engine=settings.engine,
                quantize=settings.quantize,
                fused_layers=settings.fused_layers,
                cuda_graphs=settings.cuda_graphs,
                self_test=settings.self_test,
                allow_pipeline_drift=settings.allow_pipeline_drift,
                # It reads every weight, so one worker does it.
                hashed=number == 0,
                measured=settings.max_batch_tokens is None,
                # vLLM has not taken its share yet: see app.
                spared=settings.explain_gpu_share if settings.serves_explain else 0.0,
                gpu_share=settings.gpu_share,
            ),
            start_timeout_s=settings.start_timeout_s,
        )
        for number in range(len(settings.devices))
    ]
    loaded = await load_all(workers)
    first = loaded[0]
    descriptions = [worker.model.description for worker in loaded]
    tests = [description["self_test"] for description in descriptions]
    facts = {
        "device": ",".join(description["device"] for description in descriptions),
        "self_test": None if None in tests else max(tests, key=lambda test: test["max_deviation"]),
        "kernels": joined_kernels([description["kernels"] for description in descriptions]),
    }
    return RunningModel(
        replace(first.model, description={**first.model.description, **facts}),
        CheckpointPreparer(first),
        workers,
        BATCH_COSTS[settings.engine],
        min(worker.batch_tokens for worker in loaded),
    )


def explaining_runtime(settings: Settings, module: str, metrics: Metrics, on_failed: OnFailed) -> ExplainRuntime:
    """Return the runtime of critiques, with a process that runs ``module``.

    Raises ExplainSetupError with the problems that show without opening the checkpoint; the worker finds the others.
    """
    if settings.backend == "fake":
        raise ExplainSetupError(["serve explain: --backend fake has no language head"])
    problems = []
    if settings.checkpoint is not None:
        manifest, _ = read_manifest(settings.checkpoint / "reward" / "manifest.json")
        if manifest is not None and not manifest.explained:
            problems.append("serve explain: reward/manifest.json has no 'explain': this checkpoint only scores")
    if find_spec("vllm") is None:
        problems.append("serve explain: vllm is missing: pip install 'jrm-serve[explain]', on a CPU [explain-cpu]")
    if problems:
        raise ExplainSetupError(problems)
    worker = ExplainWorker(
        OpenCheckpoint(
            checkpoint=None if settings.checkpoint is None else str(settings.checkpoint),
            devices=settings.devices,
            dtype=settings.dtype,
            allow_pipeline_drift=settings.allow_pipeline_drift,
            context=settings.explain_context,
            concurrency=settings.explain_concurrency,
            gpu_share=settings.explain_gpu_share,
            cache_gib=settings.explain_cache_gib,
            scorer=settings.serves_score,
            available=available_memory(),
            # It reads every weight, so a scoring worker does it if there is one.
            hashed=not settings.serves_score,
        ),
        start_timeout_s=settings.start_timeout_s,
        module=module,
    )
    return ExplainRuntime(
        worker,
        ExplainLimits(
            max_pixels=settings.max_image_pixels,
            max_decoded_bytes=settings.max_decoded_bytes,
            max_instruction_chars=settings.max_instruction_chars,
            max_tokens=settings.explain_max_tokens,
            max_requests=settings.explain_max_requests,
            context=settings.explain_context,
        ),
        threads=settings.preprocess_threads,
        hang_timeout_s=settings.hang_timeout_s,
        grace_s=settings.grace_s,
        metrics=metrics,
        on_failed=on_failed,
    )
