"""Whether the language head fits into a device's memory, beside scoring. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

GiB = 2**30
_RUNTIME = GiB // 2
"""At least this much for activations, CUDA graphs and workspaces of one model, in bytes."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What sets a model's size in memory: its number of parameters, and the cache per token."""

    parameters: int
    layers: int
    kv_heads: int
    head_dim: int

    def cache_bytes(self, tokens: int, bytes_per_value: int) -> int:
        """Bytes of the keys and values of this many tokens, in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * bytes_per_value * tokens


def problem(
    shape: Shape, *, total: int, share: float, scorer: bool, context: int, bytes_per_value: int, device: str
) -> str | None:
    """Return why critiques cannot be served on a device with ``total`` bytes, with the arithmetic; None if they can.

    Args:
        shape: of the checkpoint.
        total: bytes of the device's memory.
        share: the share of it that vLLM may use.
        scorer: whether the same device also scores, which takes the weights once more.
        context: tokens of the longest sequence, which the cache must hold once.
        bytes_per_value: of weights and cache.
        device: its name, for the message.
    """
    weights = shape.parameters * bytes_per_value
    cache = shape.cache_bytes(context, bytes_per_value)
    needed, allowed = weights + cache + _RUNTIME, int(share * total)
    if needed > allowed:
        return (
            f"{device}: vLLM may use {share:g} of {_gib(total)} = {_gib(allowed)}, and needs {_gib(needed)}: weights "
            f"{_gib(weights)} + a cache for one sequence of {context} tokens {_gib(cache)} + {_gib(_RUNTIME)} to run; "
            "raise explain_gpu_share, lower explain_context, or serve explain from a separate process"
        )
    left = total - allowed
    if scorer and weights + _RUNTIME > left:
        return (
            f"{device}: explain_gpu_share {share:g} leaves {_gib(left)} of {_gib(total)} for scoring, which needs "
            f"{_gib(weights + _RUNTIME)}: weights {_gib(weights)} + {_gib(_RUNTIME)} to run; "
            "lower explain_gpu_share, or serve score and explain from separate processes"
        )
    return None


def cpu_problem(
    shape: Shape, *, available: int | None, cache: int, scorer: bool, context: int, bytes_per_value: int
) -> str | None:
    """Like ``problem``, for a CPU whose free memory is ``available`` bytes and a vLLM cache of ``cache`` bytes.

    If the free memory is unknown (None), the weights are assumed to fit.
    """
    sequence = shape.cache_bytes(context, bytes_per_value)
    if sequence > cache:
        return (
            f"cpu: explain_cache_gib gives {_gib(cache)}, one sequence of {context} tokens needs {_gib(sequence)}; "
            "raise it, or lower explain_context"
        )
    weights = shape.parameters * bytes_per_value
    copies = 2 if scorer else 1
    needed = copies * weights + cache + copies * _RUNTIME
    if available is not None and needed > available:
        both = "scoring and vLLM each " if scorer else ""
        return (
            f"cpu: {_gib(available)} of memory are free, {_gib(needed)} are needed: {both}weights {_gib(weights)} and "
            f"{_gib(_RUNTIME)} to run, and a cache of {_gib(cache)} (explain_cache_gib)"
        )
    return None


def _gib(amount: int) -> str:
    return f"{amount / GiB:.2f} GiB"
