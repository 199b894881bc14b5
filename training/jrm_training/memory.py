"""How much memory a run takes, counted without weights: the model is on the meta device, where tensors have no data.

A device holds weights, gradients, optimizer state, and what the forward and backward pass of a row needs. The first
three follow from the shapes. The last is the most that is alive at once while a real row goes through the real model:
every storage is counted from the operation that makes it until nothing refers to it any more.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jrm_service.model import varlen
from jrm_service.model.checkpoint import Checkpoint
from jrm_service.model.heads import RewardHeads
from jrm_service.model.weights import empty_model

from .batch import GroupRow
from .config import Recipe
from .distributed import parts
from .lora import add_lora
from .losses import language_loss
from .model import JointModel

FLOAT, HALF = 4, 2  # bytes


@dataclass(frozen=True)
class Memory:
    """Bytes on the device that has most, the first.

    ``weights`` at rest, float32 but for frozen ones; ``copies`` of them in what layers compute in; ``gradients``;
    ``optimizer``: two moments and a step count for each weight; ``row``: the most that a row adds, activations and
    temporaries of the backward pass; ``row_kept``: the same without gradient checkpointing; ``summed``: gradients in
    transit between devices, those of the largest part where they are sharded, else all; ``loading``: all weights,
    before they are sharded. ``parameters`` and ``trained`` count weights over all devices.
    """

    parameters: int
    trained: int
    weights: int
    copies: int
    gradients: int
    optimizer: int
    row: int
    row_kept: int
    summed: int
    loading: int

    @property
    def peak(self) -> int:
        """The most at once: in a backward pass, while AdamW holds roots of the moments, or while weights load."""
        kept = self.weights + self.gradients + self.optimizer
        return max(kept + self.copies + self.row + self.summed, kept + self.gradients, self.loading)


def count_memory(
    recipe: Recipe, checkpoint: Checkpoint, tokens: Sequence[int], row: GroupRow, *, devices: int, gpu: bool = True
) -> Memory:
    """Count a run's memory on each of ``devices`` for its largest ``row``; no weight is read.

    ``tokens`` are ``Collator.new_tokens``. ``gpu``: whether attention copies grouped key and value heads, as it does on
    a GPU. With autocast a row is counted in float32, which is an upper bound.
    """
    model = outline(recipe, checkpoint, tokens)
    sharded = recipe.shard
    half = recipe.dtype == "bfloat16"
    world = devices if sharded else 1
    every, trained = list(model.parameters()), [weight for weight in model.parameters() if weight.requires_grad]
    at_rest = sum(_share(weight, world) * (FLOAT if sharded else weight.element_size()) for weight in every)
    float_share = FLOAT * sum(_share(weight, world) for weight in trained)
    rows = {
        checkpointed: row_bytes(model, row, recipe.alpha, checkpointed=checkpointed, gpu=gpu)
        for checkpointed in {recipe.gradient_checkpointing, False}
    }
    return Memory(
        parameters=sum(weight.numel() for weight in every),
        trained=sum(weight.numel() for weight in trained),
        weights=at_rest,
        copies=_copies(model, world, sharded=sharded, half=half and recipe.lora is None),
        gradients=float_share,
        optimizer=2 * float_share + FLOAT * len(trained),
        row=rows[recipe.gradient_checkpointing],
        row_kept=rows[False],
        summed=_in_flight(model, world, half=half) if sharded else float_share * (devices > 1),
        loading=sum(weight.numel() * (FLOAT if recipe.lora is None else weight.element_size()) for weight in every),
    )


def state_bytes(memory: Memory) -> int:
    """Bytes of tensors in a state: each trained weight with its two moments, in float32."""
    return 3 * FLOAT * memory.trained


def export_bytes(recipe: Recipe, checkpoint: Checkpoint) -> int:
    """Bytes of tensors in the checkpoint that comes out: the backbone in ``saved_dtype``, heads in float32."""
    model = outline(recipe.model_copy(update={"lora": None}), checkpoint, ())
    heads = sum(weight.numel() for weight in model.heads.parameters())
    stock = sum(weight.numel() for weight in model.parameters()) - heads
    return stock * (HALF if recipe.saved_dtype == "bfloat16" else FLOAT) + heads * FLOAT


def outline(recipe: Recipe, checkpoint: Checkpoint, tokens: Sequence[int]) -> JointModel:
    """The model of a run on the meta device, its weights in the dtype that layers compute in."""
    frozen_or_sharded = recipe.shard or recipe.lora is not None
    dtype = torch.bfloat16 if recipe.dtype == "bfloat16" and frozen_or_sharded else torch.float32
    backbone: Any = empty_model(checkpoint.config)
    with torch.device("meta"):
        heads = RewardHeads(checkpoint.manifest, checkpoint.hidden_size)
        table = backbone.get_input_embeddings().weight
        lm_head = nn.Linear(table.shape[1], table.shape[0], bias=False)
    if checkpoint.config.tie_word_embeddings:
        lm_head.weight = table
    for weight in {*backbone.parameters(), lm_head.weight}:
        weight.data = weight.data.to(dtype)
    model = JointModel(backbone, heads, lm_head, checkpoint.image_spec).train().requires_grad_(True)
    if recipe.lora is not None:
        add_lora(model, recipe.lora, tokens, 0)
    return model


def row_bytes(model: JointModel, row: GroupRow, alpha: float, *, checkpointed: bool, gpu: bool) -> int:
    """The most bytes alive at once in the forward and backward pass of a row, beside weights and their gradients."""
    if checkpointed:
        model.backbone.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        model.backbone.gradient_checkpointing_disable()
    # A gradient is summed, or sharded, as soon as it is computed.
    hooks = [
        weight.register_post_accumulate_grad_hook(_forget)  # type: ignore[no-untyped-call]
        for weight in model.parameters()
        if weight.requires_grad
    ]
    try:
        with Alive() as alive, fused_attention(repeat=gpu):
            joint = model(row)
            loss = sum(outputs.sum() for outputs in joint.outputs.values())
            targets = row.targets.to(joint.logits.device)
            loss = (1 - alpha) * loss + alpha * language_loss(joint.logits, targets, reduction="sum")
            loss.backward()
        return int(alive.most)
    finally:
        for hook in hooks:
            hook.remove()


def _forget(weight: torch.Tensor) -> None:
    weight.grad = None


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch gives these two no types
    """Counts the bytes of live storages that operations have made: ``now``, and at ``most`` so far."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and count the storages that it makes."""
        inputs = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage(), inputs)
        return result

    def _add(self, storage: torch.UntypedStorage, inputs: Iterable[int]) -> None:
        key = id(storage)  # the same object for as long as the storage lives
        if key in self._known or key in inputs:  # a view, or an input
            return
        size = storage.nbytes()
        self._known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._remove, key, size).atexit = False

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@contextmanager
def fused_attention(*, repeat: bool) -> Iterator[None]:
    """Makes attention on the meta device allocate what a fused kernel does; by default it allocates all of its weights.

    Gradient checkpointing recomputes layers in the backward pass, outside any torch mode, so the function itself is
    replaced for the duration. ``repeat``: whether grouped key and value heads are copied.
    """

    def fused(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        attn_mask: torch.Tensor | None,
        scale: float,
        enable_gqa: bool,
    ) -> Any:
        if not query.is_meta:
            return plain(query, key, value, attn_mask=attn_mask, scale=scale, enable_gqa=enable_gqa)
        if enable_gqa and repeat:
            key, value = (varlen.repeated_heads(tensor, query.shape[1]) for tensor in (key, value))
        mask = None if attn_mask is None else attn_mask.to(query.dtype)
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return kernel(query, key, value, 0.0, False, attn_mask=mask, scale=scale)[0]

    name = "scaled_dot_product_attention"
    plain = getattr(varlen, name)
    setattr(varlen, name, fused)
    try:
        yield
    finally:
        setattr(varlen, name, plain)


def _share(weight: torch.Tensor, world: int) -> int:
    """Elements of a weight that the first of ``world`` devices holds: its rows are divided into equal pieces."""
    rows = weight.shape[0] if weight.ndim else 1
    return math.ceil(rows / world) * (weight.numel() // rows)


def _copies(model: JointModel, world: int, *, sharded: bool, half: bool) -> int:
    """Bytes of the weights that layers compute with, where those are not the weights at rest."""
    if not sharded:  # autocast keeps what it has cast
        return HALF * sum(weight.numel() for weight in model.backbone.parameters()) if half else 0
    return sum(world * _share(weight, world) * weight.element_size() for weight in model.parameters())


def _in_flight(model: JointModel, world: int, *, half: bool) -> int:
    """Bytes of the largest part's gradients as computed, and as sent and received in float32."""
    groups = [list(part.parameters()) for part in parts(model)]
    taken = {weight for group in groups for weight in group} | set(model.heads.parameters())
    groups.append([weight for weight in model.parameters() if weight not in taken])
    shares = [sum(_share(weight, world) for weight in group) for group in groups]
    return max(shares) * (world * ((HALF if half else FLOAT) + FLOAT) + FLOAT)
