"""Several devices: the rank of this process, sums over all of them, and sharding (ZeRO-2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from .model import JointModel


class Place(NamedTuple):
    """This process among all: ``rank`` of ``world``."""

    rank: int
    world: int


def place() -> Place:
    """Rank of this process and world size; 0 of 1 without a process group."""
    return Place(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Place(0, 1)


def barrier() -> None:
    """Wait for every process."""
    if dist.is_initialized():
        dist.barrier()


def sum_over_devices(numbers: torch.Tensor) -> list[float]:
    """Sums over all devices of plain numbers: float64 [N], on this process's device."""
    if dist.is_initialized():
        dist.all_reduce(numbers)
    summed: list[float] = numbers.tolist()
    return summed


def sum_gradients(model: JointModel) -> None:
    """Sum gradients over devices, in one transfer. Losses are already divided by counts over all of them."""
    if not dist.is_initialized():
        return
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()


def shard(model: JointModel, dtype: torch.dtype | None) -> None:
    """Shard weights at rest, gradients and optimizer state; weights stay gathered between forward and backward.

    That is ZeRO-2: the gradients of each row are summed and sharded in its backward pass, since keeping them whole
    until the step's last row would take 35 GB of float32 on each device for 8B. ``dtype`` is the dtype that weights are
    sent in and layers compute in, as a server's do in that dtype; gradients are summed in float32, and the heads stay
    in float32 throughout. Needs a process group, of one process at least.
    """
    # Inputs of layers are not cast: rotary tables of images are in float32, as on a server.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    # Without a mesh, weights on the CPU of a machine that has GPUs would be taken for theirs.
    mesh = init_device_mesh(next(model.parameters()).device.type, (dist.get_world_size(),))
    fully_shard(model.heads, mesh=mesh, reshard_after_forward=False)
    for part in parts(model):
        fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Losses are already divided by counts over all devices. A plain sum, since only NCCL can scale as it sums.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def parts(model: JointModel) -> list[nn.Module]:
    """The modules that are gathered and summed in one transfer each; everything else takes one more."""
    language = model.backbone.language_model
    tables = [] if model.backbone.config.tie_word_embeddings else [language.embed_tokens, model.lm_head]
    return [*tables, *model.backbone.visual.blocks, *language.layers]
