"""What a backbone runs on its device: plain layers, or fused ones where they have shown there that they are right.

A layer that computes something else is a wrong reward, and versions of torch and of compilers differ in what they make
of the same lines. So nothing is replaced that has not given, at the start and on the very device, what the layer gives
that it replaces.
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
from .fused import Functions, FusedLayer, GatedMLP, Norm, Products, as_it_is
from .products import Merged, Operand, ScaledFP8, SimulatedFP8, require_right_product, rounded
from .trie import build_trie, positions
from .varlen import Kernel

logger = logging.getLogger(__name__)

# How much further from float32 than a plain module a fused one may be, as a share of the length of what it gives for a
# token, and what it may always be: two roundings of the dtype, or float32 summed in another order.
_MORE = 2.5
_FLOORS = {torch.float32: 1e-5, torch.float16: 2**-10, torch.bfloat16: 2**-7}
# Tokens of the segments of each sequence of a trial. There are two, because what torch compiles for the first length it
# compiles for any length once it has seen a second one.
_TRIALS = (((5, 3), (5, 9), (7,)), ((40, 17), (40, 130), (1,)))
# A function is compiled for each dtype, arithmetic and tower of all models of a process. Beyond so many, by default 8,
# torch refuses, and a model that comes late would run uncompiled.
_MOST_COMPILED = 64
_TRIAL_SCALE = 0.05  # of hidden states: small beside what a layer adds to them, so that this weighs in the comparison


@dataclass(frozen=True, slots=True)
class Way:
    """How the functions between the products run; ``wrap`` makes of one of them another that gives the same."""

    name: str
    wrap: Callable[[Any], Any]


def _compiled(function: Any) -> Any:
    # torch.compile, not a library of triton kernels: a kernel then holds all that lies between two products, rounding
    # to fp8 included, and a library needs a compiler on the machine and a folder to write to just the same.
    from torch._dynamo import config as tracing
    from torch._inductor import config

    config.compile_threads = 1  # in this process: a pool of compilers would outlive a worker that is killed
    tracing.recompile_limit = max(tracing.recompile_limit, _MOST_COMPILED)
    return torch.compile(function, fullgraph=True)


COMPILED = Way("compiled", _compiled)
EAGER = Way("eager", as_it_is)


def ways_on(device: str) -> tuple[Way, ...]:
    """What is tried on a device, best first. On a CPU plain layers are as fast, and stay what they are."""
    return (COMPILED, EAGER) if device.startswith("cuda") else ()


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """What the language model multiplies: ``operand`` makes of tokens what ``products`` of linear layers take."""

    products: Products = Merged
    operand: Callable[[torch.Tensor], Operand] = as_it_is


IN_DTYPE = Arithmetic()
IN_FP8 = Arithmetic(ScaledFP8, rounded)
IN_SIMULATED_FP8 = Arithmetic(SimulatedFP8, rounded)

PLAIN = dict.fromkeys(("norm", "rotary", "mlp", "linear", "attention"), "plain") | {"graphs": "none"}
"""What runs where nothing is replaced, by part."""


def fuse(
    backbone: Any,
    *,
    device: str,
    dtype: torch.dtype,
    kernel: Kernel | None,
    ways: Sequence[Way],
    arithmetic: Arithmetic = IN_DTYPE,
) -> dict[str, str]:
    """Replace layers of a backbone in the first way that agrees with them on their device; return what runs now.

    Weights that become one product move into it, so memory holds one layer twice at most. ``kernel`` attends to rows,
    see ``find_kernel``. Raises CheckpointError when fp8 is asked for and no way is right.
    """
    language = backbone.language_model
    if arithmetic is IN_FP8:
        require_right_product(language.layers[0].mlp.down_proj, device)
    attention = "varlen" if kernel is not None else "per_shape"
    for way in ways:
        functions = _agreed(language, device, dtype, kernel, way, arithmetic)
        if functions is not None:
            break
    else:
        if arithmetic is not IN_DTYPE:
            raise CheckpointError([f"quantize: no fp8 layer on {device} gives about what the plain one gives"])
        if ways:
            logger.warning("layers on %s: plain, nothing faster is right here", device)
        return PLAIN | {"attention": attention}
    for number, layer in enumerate(language.layers):
        language.layers[number] = FusedLayer(layer, functions, arithmetic.products)
    for fused, has in (
        (Norm, "variance_epsilon"),
        (partial(GatedMLP, functions=Functions(wrap=way.wrap)), "gate_proj"),
    ):
        _replace(backbone, fused, has, device, dtype)
    elementwise = "compiled" if way is COMPILED else "plain"
    runs = {
        "norm": "compiled" if way is COMPILED else "fused",
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
    language: Any, device: str, dtype: torch.dtype, kernel: Kernel | None, way: Way, arithmetic: Arithmetic
) -> Functions | None:
    """The functions of layers that give what the plain ones give; None where they do not, or cannot be run."""
    plain = language.layers[0]
    try:
        exact = copy.deepcopy(plain).float()
        eps = float(plain.input_layernorm.variance_epsilon)
        functions = Functions(eps, way.wrap, arithmetic.operand)
        fused = FusedLayer(plain, functions, arithmetic.products)
        # What a way must be as right as: the plain layer and, where products round, one that simulates them.
        compared: list[tuple[nn.Module, nn.Module]] = [(plain, fused)]
        if arithmetic is not IN_DTYPE:
            simulated = FusedLayer(plain, Functions(eps, operand=rounded), SimulatedFP8)
            compared = [(plain, FusedLayer(plain, Functions(eps))), (simulated, fused)]
        for lengths in _TRIALS:
            hidden, row = _trial_row(language, lengths, device, dtype, kernel)
            wide, wide_row = _trial_row(language, lengths, device, torch.float32, None)
            expected = exact(wide, **wide_row)
            outputs = [(reference(hidden, **row), layer(hidden, **row)) for reference, layer in compared]
            if not all(_is_as_right(expected, *pair) for pair in outputs):
                logger.info("%s layers on %s: they give something else than plain ones", way.name, device)
                return None
    except CheckpointError:
        raise
    except Exception as error:  # another kind of layer; whatever is said where there is no compiler, or no room for it
        logger.info("%s layers on %s: %s", way.name, device, one_line(error))
        return None
    return functions


def _trial_row(
    language: Any, lengths: Sequence[Sequence[int]], device: str, dtype: torch.dtype, kernel: Kernel | None
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Hidden states [1, T, H] of a row in which segments are shared, and what a layer takes beside them."""
    trie = build_trie([[Text((tokens,) * tokens) for tokens in sequence] for sequence in lengths])
    width = len(language.layers[0].input_layernorm.weight)
    hidden = _TRIAL_SCALE * _random(1, trie.tokens, width, device=device, dtype=dtype)
    position_ids = torch.from_numpy(positions(trie, 1))[:, None].to(device)
    attention = TrieAttention.of(trie, kernel).to(device)
    return hidden, {"position_embeddings": language.rotary_emb(hidden, position_ids), "trie": attention}


def _replace(root: nn.Module, fused: Callable[[Any], nn.Module], has: str, device: str, dtype: torch.dtype) -> None:
    """Replace modules that have an attribute by their fused form, unless the first of a class gives something else."""
    right: dict[type[nn.Module], bool] = {}
    for name, plain in [(name, module) for name, module in root.named_modules() if hasattr(module, has)]:
        kind = type(plain)
        if kind not in right:
            right[kind] = _fused_is_as_right(plain, fused, device, dtype)
        if right[kind]:
            root.set_submodule(name, fused(plain))


@torch.inference_mode()
def _fused_is_as_right(plain: nn.Module, fused: Callable[[Any], nn.Module], device: str, dtype: torch.dtype) -> bool:
    try:
        exact, made, width = copy.deepcopy(plain).float(), fused(plain), next(plain.parameters()).shape[-1]
        tokens = [_random(count, width, device=device, dtype=dtype) for count in (17, 190)]
        right = all(_is_as_right(exact(x.float()), plain(x), made(x)) for x in tokens)
    except Exception as error:  # as in _agreed
        logger.info("%s on %s stays plain: %s", type(plain).__name__, device, one_line(error))
        return False
    if not right:
        logger.info("%s on %s stays plain: a fused one gives something else", type(plain).__name__, device)
    return right


def _is_as_right(exact: torch.Tensor, plain: torch.Tensor, got: torch.Tensor) -> bool:
    """Whether an output is about as far from the exact one as that of plain layers, which round as often or more."""
    floor = _FLOORS[plain.dtype]
    return _deviation(exact, got) <= max(_MORE * _deviation(exact, plain), floor)  # False for NaN as well


def _random(*shape: int, device: str, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)


def _deviation(expected: torch.Tensor, got: torch.Tensor) -> float:
    """The largest difference of a token, as a share of its length."""
    off = (got.float() - expected.float()).norm(dim=-1) / expected.float().norm(dim=-1)
    return float(off.max())


def compile_no_more() -> None:
    """For the rest of this process: where nothing was compiled for a call, it runs as it is written, and is right."""
    torch.compiler.set_stance("eager_on_recompile")
