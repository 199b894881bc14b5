"""Checks every path on a device: golden scores of the bundled checkpoint, and how much a batch changes a score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from jrm_service.bench.direct import score_alone, score_together
from jrm_service.bench.pictures import Pictures, prepare
from jrm_service.bench.precision import PRECISIONS
from jrm_service.bench.run import where
from jrm_service.bench.tables import table
from jrm_service.errors import CheckpointError
from jrm_service.model.checkpoint_source import open_source
from jrm_service.model.devices import release_memory
from jrm_service.model.engine import TrieScorer
from jrm_service.scoring.types import Candidate

ENGINES = ("trie", "plain")
GROUPS, EDITS, SIDE = 2, 4, 96


def parity(device: str) -> tuple[dict[str, Any], str]:
    """Return the figures and their text; ``wrong`` names the paths that failed."""
    paths = {
        f"{engine}, {precision}": _path(device, engine, precision)
        for precision in PRECISIONS
        for engine in ENGINES
        if precision != "auto" and (precision != "fp8" or (engine == "trie" and device.startswith("cuda")))
    }
    rows = [
        [name, *(_shown(path.get(key)) for key in ("deviation", "tolerance", "alone", "again")), path["state"]]
        for name, path in paths.items()
    ]
    headings = ["path", "golden scores off by", "allowed", "in a batch, alone", "from kept features", "state"]
    wrong = [name for name, path in paths.items() if path["state"] != "ready"]
    lines = [f"{name}: {problem}" for name, path in paths.items() for problem in path.get("problems", [])]
    figures = {"where": where(device), "paths": paths, "wrong": wrong}
    return figures, "\n\n".join([where(device), table(headings, rows), *lines])


def _path(device: str, engine: str, precision: str) -> dict[str, Any]:
    """Check one path as a server does at start-up, and more. A failure is part of the result, not an exception."""
    try:
        source = open_source(None, [device], engine=engine, **PRECISIONS[precision])
        model, [backend] = source.load()
        pictures = Pictures(SIDE)
        candidates = prepare(source.preparer, pictures.groups(GROUPS, EDITS))
        together = score_together(backend, candidates)
        result: dict[str, Any] = {
            "state": "ready",
            "description": {key: model.description.get(key) for key in ("device", "dtype", "kernels", "precision")},
            "deviation": model.description["self_test"]["max_deviation"],
            "tolerance": model.description["self_test"]["tolerance"],
            "again": _apart(score_together(backend, candidates), together),
            "alone": _apart(score_alone(backend, candidates), together),
        }
        if isinstance(backend, TrieScorer):
            result["attention"] = "one call a layer" if backend.packed.kernel else "one call for each shape of nodes"
            result["host_waits"] = host_waits(backend, prepare(source.preparer, [pictures.group(EDITS)]))
    except CheckpointError as error:
        result = {"state": "refused", "problems": error.problems}
    except Exception as error:  # any error of the device or a library
        result = {"state": "failed", "problems": [f"{type(error).__name__}: {error}"[:500]]}
    release_memory(device)
    return result


def _apart(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def _shown(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.1e}"


@torch.inference_mode()
def host_waits(engine: TrieScorer, candidates: Sequence[Candidate]) -> str | None:
    """Return torch's message about the first place in a forward pass where the host waits for the GPU, or None.

    The engine must be warm. On a CPU, the result is None.
    """
    if not engine.device.startswith("cuda"):
        return None
    for row in engine.collate(candidates):
        # Inputs were made of every image that is not cached; copies are part of the pass.
        images, vision = row.packed.distinct_images, engine.packed.vision
        inputs = {
            key: row.inputs[key] if key in row.inputs else vision.inputs(image.pixels) for key, image in images.items()
        }
        torch.cuda.synchronize(engine.device)
        torch.cuda.set_sync_debug_mode("error")
        try:
            encoded = vision.encode(list(inputs.values()))
            engine.outputs(row.packed.to(engine.device), dict(zip(inputs, encoded, strict=True)))
        except RuntimeError as error:
            return str(error).partition("\n")[0]
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return None
