"""Profiles where a batch's time goes, by kind of kernel, to show which kernels are worth replacing."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from jrm_service.bench.device import wait_for
from jrm_service.bench.direct import finite_scores
from jrm_service.bench.tables import table
from jrm_service.scoring.backend import Backend
from jrm_service.scoring.types import Candidate

MOST_KERNELS = 20
KINDS = {
    "attention": ("flash", "fmha", "attn", "attention"),
    "matrix product": ("gemm", "cutlass", "nvjet", "matmul", "xmma", "aten::mm", "aten::addmm", "aten::bmm"),
    "gather, scatter": ("index", "gather", "scatter", "embedding"),
    "copy, cast": ("copy", "memcpy", "memset", "cast", "aten::to"),
    "concatenate": ("cat",),
    "fused": ("triton", "liger"),
    "normalize, reduce": ("norm", "reduce", "mean", "softmax"),
    "elementwise": ("elementwise", "vectorized", "aten::mul", "aten::add", "aten::silu", "aten::gelu", "aten::pow"),
}


def profile(backend: Backend[Any], batches: Sequence[Sequence[Candidate]]) -> tuple[dict[str, Any], str]:
    """Figures and their text for the last of the batches; those before it warm up."""
    *before, last = (backend.collate(batch) for batch in batches)
    for batch in before:
        finite_scores(backend.score(batch).outcomes)
    on_gpu = backend.device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    wait_for(backend.device)
    with torch_profile(activities=activities) as profiler:
        started = time.perf_counter()
        backend.score(last)
        wait_for(backend.device)
        wall_ms = 1e3 * (time.perf_counter() - started)
    kernels = [
        (event.key, (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e3, event.count)
        for event in profiler.key_averages()
        if event.device_type == (DeviceType.CUDA if on_gpu else DeviceType.CPU)
    ]
    kernels.sort(key=lambda kernel: -kernel[1])
    kinds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for name, milliseconds, count in kernels:
        kinds[kind(name)][0] += milliseconds
        kinds[kind(name)][1] += count
    busy_ms = sum(milliseconds for _, milliseconds, _ in kernels)
    rows = [
        [name, f"{milliseconds:.1f}", f"{milliseconds / busy_ms:.1%}", f"{count:,.0f}"]
        for name, (milliseconds, count) in sorted(kinds.items(), key=lambda item: -item[1][0])
    ]
    worst = [[name[:100], f"{ms:.1f}", f"{count:,}"] for name, ms, count in kernels[:MOST_KERNELS]]
    title = f"{len(batches[-1])} candidates: {wall_ms:.0f} ms, device busy {busy_ms:.0f} ms"
    figures = {
        "candidates": len(batches[-1]),
        "wall_ms": wall_ms,
        "busy_ms": busy_ms,
        "kinds": {name: {"ms": ms, "launches": count} for name, (ms, count) in kinds.items()},
        "kernels": [{"name": name, "ms": ms, "launches": count} for name, ms, count in kernels[:MOST_KERNELS]],
    }
    text = f"{table([title, 'ms', 'share', 'launches'], rows)}\n\n{table(['kernel', 'ms', 'launches'], worst)}"
    return figures, text


def kind(kernel: str) -> str:
    """Which of ``KINDS`` a kernel is by its name: the first whose words it has."""
    name = kernel.lower()
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "other")
