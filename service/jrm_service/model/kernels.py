"""Chooses the layers of a backbone on its device: plain ones, or fused ones that were verified there.

A layer with other outputs gives wrong rewards, and versions of torch and of compilers differ in what they make of the
same code. So a layer is only replaced after its replacement has given the same outputs, at start-up and on the device
itself.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from jrm_service.errors import CheckpointError, one_line
from jrm_service.scoring.types import Text

from .attention import TrieAttention
from .devices import is_responsive
from .fused import FusedLayer, GatedMLP, LayerFunctions, Norm, Products, as_it_is
from .matrix_products import Merged, Operand, ScaledFP8, SimulatedFP8, quantize, require_right_product
from .trie import build_trie, positions
from .varlen import Kernel

logger = logging.getLogger(__name__)

# How many times further from float32 a fused module may be than the plain one, relative to the norm of a token's
# output, and what is always allowed: two roundings of the dtype, or float32 summed in another order.
_MORE = 2.5
_FLOORS = {torch.float32: 1e-5, torch.float16: 2**-10, torch.bfloat16: 2**-7}
# Tokens of the segments of each sequence in a trial. There are two trials, because torch compiles for one length first,
# and for any length once it has seen a second one.
_TRIALS = (((5, 3), (5, 9), (7,)), ((40, 17), (40, 130), (1,)))
# A function is compiled for each dtype, arithmetic and tower of all models of a process. Beyond so many, by default 8,
# torch refuses, and a model that comes late would run uncompiled.
_MOST_COMPILED = 64
_TRIAL_SCALE = 0.05  # of hidden states: small compared with what a layer adds, so that the comparison sees the latter


@dataclass(frozen=True, slots=True)
class KernelVariant:
    """A way to run the functions between the products, such as compiled; ``wrap`` turns each into what is run."""

    name: str
    wrap: Callable[[Any], Any]


def _compiled(function: Any) -> Any:
    # torch.compile, not a library of triton kernels: a kernel then has everything between two products, rounding to fp8
    # included, and a library would need a compiler and a writable folder just the same.
    from torch._dynamo import config as tracing
    from torch._inductor import config

    config.compile_threads = 1  # in this process: a pool of compilers would outlive a worker that is killed
    tracing.recompile_limit = max(tracing.recompile_limit, _MOST_COMPILED)
    return torch.compile(function, fullgraph=True)


COMPILED = KernelVariant("compiled", _compiled)
EAGER = KernelVariant("eager", as_it_is)


def variants_on(device: str) -> tuple[KernelVariant, ...]:
    """The variants to try on a device, best first. On a CPU plain layers are as fast, and are kept."""
    return (COMPILED, EAGER) if device.startswith("cuda") else ()


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How the language model multiplies: ``operand`` turns tokens into the operands of ``products``."""

    products: Products = Merged
    operand: Callable[[torch.Tensor], Operand] = as_it_is


IN_DTYPE = Arithmetic()
IN_FP8 = Arithmetic(ScaledFP8, quantize)
IN_SIMULATED_FP8 = Arithmetic(SimulatedFP8, quantize)

PLAIN = dict.fromkeys(("norm", "rotary", "mlp", "linear", "attention"), "plain") | {"graphs": "none"}
"""The kernels by part when nothing is replaced."""


def fuse(
    backbone: Any,
    *,
    device: str,
    dtype: torch.dtype,
    kernel: Kernel | None,
    variants: Sequence[KernelVariant],
    arithmetic: Arithmetic = IN_DTYPE,
) -> dict[str, str]:
    """Replace layers of a backbone by the first variant that agrees with them there; return the kernels by part.

    Weights that are merged into one product move into it, so memory holds at most one layer twice. ``kernel`` attends
    to rows, see ``find_kernel``. Raises CheckpointError if fp8 is requested and no variant is accurate enough, or if
    the device no longer answers after the attempt.
    """
    language = backbone.language_model
    if arithmetic is IN_FP8:
        require_right_product(language.layers[0].mlp.down_proj, device)
    attention = "varlen" if kernel is not None else "per_shape"
    for variant in variants:
        functions = _agreed(language, device, dtype, kernel, variant, arithmetic)
        if not is_responsive(device):
            switches = "--fused-layers false" if arithmetic is IN_DTYPE else "--quantize none --fused-layers false"
            raise CheckpointError([f"{device} does not answer after {variant.name} layers: use {switches}"])
        if functions is not None:
            break
    else:
        if arithmetic is not IN_DTYPE:
            raise CheckpointError([f"quantize: no fp8 layer on {device} gives about what the plain one gives"])
        if variants:
            logger.warning("layers on %s: plain, nothing faster is right here", device)
        return PLAIN | {"attention": attention}
    for number, layer in enumerate(language.layers):
        language.layers[number] = FusedLayer(layer, functions, arithmetic.products)
    for make_fused, attribute in (
        (Norm, "variance_epsilon"),
        (partial(GatedMLP, functions=LayerFunctions(wrap=variant.wrap)), "gate_proj"),
    ):
        _replace(backbone, make_fused, attribute, device, dtype)
    elementwise = "compiled" if variant is COMPILED else "plain"
    runs = {
        "norm": "compiled" if variant is COMPILED else "fused",
        "rotary": elementwise,
        "mlp": elementwise,
        "linear": "merged" if arithmetic is IN_DTYPE else "fp8",
        "attention": attention,
        "graphs": "none",
    }
    logger.info("layers on %s: %s", device, ", ".join(f"{part} {kernel}" for part, kernel in runs.items()))
    return runs


@torch.inference_mode()
def _agreed(
    language: Any,
    device: str,
    dtype: torch.dtype,
    kernel: Kernel | None,
    variant: KernelVariant,
    arithmetic: Arithmetic,
) -> LayerFunctions | None:
    """The functions of layers that agree with the plain ones; None if they do not, or cannot be run."""
    plain = language.layers[0]
    try:
        exact = copy.deepcopy(plain).float()
        eps = float(plain.input_layernorm.variance_epsilon)
        functions = LayerFunctions(eps, variant.wrap, arithmetic.operand)
        fused = FusedLayer(plain, functions, arithmetic.products)
        # Pairs of a reference and the layer that must be as accurate; fp8 is compared with simulated fp8.
        compared: list[tuple[nn.Module, nn.Module]] = [(plain, fused)]
        if arithmetic is not IN_DTYPE:
            simulated = FusedLayer(plain, LayerFunctions(eps, operand=quantize), SimulatedFP8)
            compared = [(plain, FusedLayer(plain, LayerFunctions(eps))), (simulated, fused)]
        for lengths in _TRIALS:
            hidden, row = _trial_row(language, lengths, device, dtype, kernel)
            wide, wide_row = _trial_row(language, lengths, device, torch.float32, None)
            expected = exact(wide, **wide_row)
            outputs = [(reference(hidden, **row), layer(hidden, **row)) for reference, layer in compared]
            if not all(_is_as_accurate(expected, *pair) for pair in outputs):
                logger.info("%s layers on %s: their outputs differ from the plain layers'", variant.name, device)
                return None
    except CheckpointError:
        raise
    except Exception as error:  # another kind of layer, or a compiler that is missing or fails
        logger.info("%s layers on %s: %s", variant.name, device, one_line(error))
        return None
    return functions


def _trial_row(
    language: Any, lengths: Sequence[Sequence[int]], device: str, dtype: torch.dtype, kernel: Kernel | None
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Hidden states [1, T, H] of a row with shared segments, and the other arguments of a layer."""
    trie = build_trie([[Text((tokens,) * tokens) for tokens in sequence] for sequence in lengths])
    width = len(language.layers[0].input_layernorm.weight)
    hidden = _TRIAL_SCALE * _random(1, trie.tokens, width, device=device, dtype=dtype)
    position_ids = torch.from_numpy(positions(trie, 1))[:, None].to(device)
    attention = TrieAttention.of(trie, kernel).to(device)
    return hidden, {"position_embeddings": language.rotary_emb(hidden, position_ids), "trie": attention}


def _replace(
    root: nn.Module, make_fused: Callable[[Any], nn.Module], attribute: str, device: str, dtype: torch.dtype
) -> None:
    """Replace modules that have an attribute by their fused form, unless the first of their class disagrees with it."""
    agrees: dict[type[nn.Module], bool] = {}
    for name, plain in [(name, module) for name, module in root.named_modules() if hasattr(module, attribute)]:
        kind = type(plain)
        if kind not in agrees:
            agrees[kind] = _fused_is_as_accurate(plain, make_fused, device, dtype)
        if agrees[kind]:
            root.set_submodule(name, make_fused(plain))


@torch.inference_mode()
def _fused_is_as_accurate(
    plain: nn.Module, make_fused: Callable[[Any], nn.Module], device: str, dtype: torch.dtype
) -> bool:
    try:
        exact, fused, width = copy.deepcopy(plain).float(), make_fused(plain), next(plain.parameters()).shape[-1]
        tokens = [_random(count, width, device=device, dtype=dtype) for count in (17, 190)]
        accurate = all(_is_as_accurate(exact(x.float()), plain(x), fused(x)) for x in tokens)
    except Exception as error:  # as in _agreed
        logger.info("%s on %s stays plain: %s", type(plain).__name__, device, one_line(error))
        return False
    if not accurate:
        logger.info("%s on %s stays plain: the outputs of a fused one differ", type(plain).__name__, device)
    return accurate


def _is_as_accurate(exact: torch.Tensor, plain: torch.Tensor, got: torch.Tensor) -> bool:
    """Whether an output is about as close to the exact one as that of plain layers, which round as often or more."""
    floor = _FLOORS[plain.dtype]
    return _deviation(exact, got) <= max(_MORE * _deviation(exact, plain), floor)  # False for NaN as well


def _random(*shape: int, device: str, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)


def _deviation(expected: torch.Tensor, got: torch.Tensor) -> float:
    """The largest difference of a token, relative to its norm."""
    off = (got.float() - expected.float()).norm(dim=-1) / expected.float().norm(dim=-1)
    return float(off.max())


def compile_no_more() -> None:
    """Stop compiling in this process: calls that nothing was compiled for run eagerly, with the same result."""
    torch.compiler.set_stance("eager_on_recompile")
