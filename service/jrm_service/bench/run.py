"""One run of ``jrm bench``: the engine in this process, then a server in its own. Never both at once."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from jrm_service.model.checkpoint_source import open_source
from jrm_service.model.devices import release_memory, resolve_device

from .device import device_name
from .direct import score_together
from .engine import EngineFigures, Plan, Step, measure_engine
from .pictures import Pictures, prepare
from .precision import PRECISIONS
from .report import Report
from .server import measure_server
from .tables import machine

STEPS = 10
"""How often ``measure`` calls ``step``, in addition to once for each round."""


def measure(
    checkpoint: Path | None,
    device: str,
    precision: str,
    plan: Plan,
    *,
    step: Step = lambda _: None,
    allow_pipeline_drift: bool = False,
) -> Report:
    """Load the checkpoint, measure the engine, free it, and measure a server with the same settings.

    Raises CheckpointError, ServerFailed, and RuntimeError where a candidate has no finite score.
    """
    device = resolve_device(device)
    machine_before = where(device)  # with the load of the machine before the run
    settings = PRECISIONS[precision]
    step("the checkpoint is loaded")
    source = open_source(checkpoint, [device], engine="trie", allow_pipeline_drift=allow_pipeline_drift, **settings)
    model, [backend] = source.load()
    group = Pictures(plan.side, seed=2, source=source.preparer.max_sources > 0).group(plan.edits)
    rewards = score_together(backend, prepare(source.preparer, [group]))
    engine: EngineFigures = measure_engine(source, backend, plan, step)
    dtype = source.dtype
    del source, backend
    release_memory(device)
    flags = {"device": device, "allow_pipeline_drift": str(allow_pipeline_drift).lower(), **settings}
    server = measure_server(checkpoint, flags, plan, (group, rewards), engine.rate, step)
    return Report(
        where=machine_before,
        model=model.name,
        fingerprint=model.fingerprint,
        precision=dtype if precision == "auto" else precision,
        plan=plan,
        engine=engine,
        server=server,
    )


def where(device: str) -> str:
    """Describe hardware and versions, for every report."""
    hardware = device_name([device]) or machine()
    return f"{hardware}; torch {torch.__version__}, transformers {transformers.__version__}"
