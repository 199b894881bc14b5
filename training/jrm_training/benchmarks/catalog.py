"""The benchmarks that ``jrm evaluate --benchmark`` knows, by name."""

from __future__ import annotations

from . import editreward, editscore, genai_bench, mmrb2
from .pairs import Benchmark

BENCHMARKS: dict[str, Benchmark] = {
    module.BENCHMARK.name: module.BENCHMARK for module in (editscore, editreward, mmrb2, genai_bench)
}
