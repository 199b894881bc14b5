"""What a GPU does with the engine, beside its speed: the attention kernel, whether the host ever waits, the memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from jrm_service.model.devices import GPUMemory
from jrm_service.model.engine import TrieScorer
from jrm_service.model.trie import shared_tokens
from jrm_service.scoring.fitting import fitting_tokens
from jrm_service.scoring.types import Candidate


def facts(engine: TrieScorer, candidates: Sequence[Candidate]) -> list[str]:
    """A line each. ``candidates`` are scored; the engine is warm. On a CPU there is only the first."""
    lines = [f"attention: {'one call a layer' if engine.packed.kernel else 'one call for each shape of nodes'}"]
    if not engine.device.startswith("cuda"):
        return lines
    lines.append(f"host waits inside a forward pass: {host_waits(engine, candidates)}")
    free = torch.cuda.mem_get_info(engine.device)[0] / 2**30
    memory = GPUMemory(engine.device)
    budget = fitting_tokens(engine, candidates, shared_tokens, memory, kept=engine.features.room)
    return [*lines, f"token budget: {budget:,} in {free:.1f} GiB beside this benchmark's other models"]


@torch.inference_mode()
def host_waits(engine: TrieScorer, candidates: Sequence[Candidate]) -> str:
    """``none``, or what torch says about the first one: it raises where the host would wait for the device."""
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
    return "none"
