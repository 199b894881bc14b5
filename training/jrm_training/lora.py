"""Low-rank adapters (peft) on a frozen backbone, for one GPU; what is new in a checkpoint is trained in full.

That is the reward heads, and the rows of embedding and language head for the tokens that ``jrm init`` adds: a row that
is the mean of all others with a little noise carries no information until it has been trained.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from .config import Lora
from .model import JointModel

_ADAPTER = "default"


class TrainedRows(nn.Module):
    """An embedding, or a language head, of which only the rows of some tokens are trained.

    ``weight`` [V, H] is the frozen table, ``rows`` float32 [tokens, H] are those of ``ids`` int64 [tokens].
    """

    ids: torch.Tensor

    def __init__(self, table: nn.Embedding | nn.Linear, ids: torch.Tensor, rows: nn.Parameter) -> None:
        super().__init__()
        self.table, self.rows = table, rows
        self.register_buffer("ids", ids, persistent=False)

    @property
    def weight(self) -> torch.Tensor:
        """The frozen table."""
        return self.table.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Ids to vectors, or hidden states [C, H] to logits [C, V]."""
        output: torch.Tensor = self.table(inputs)
        if isinstance(self.table, nn.Linear):
            return output.index_copy(-1, self.ids, inputs @ self.rows.to(output.dtype).T)
        is_trained = torch.eq(inputs.unsqueeze(-1), self.ids)
        rows = self.rows[is_trained.int().argmax(-1)].to(output.dtype)  # cast last: the gradient is summed in float32
        return torch.where(is_trained.any(-1, keepdim=True), rows, output)


def add_lora(model: JointModel, lora: Lora, tokens: Sequence[int], seed: int) -> None:
    """Freeze the backbone and both tables, and train adapters, the rows of ``tokens`` and the heads instead.

    The same seed gives the same adapters, which change nothing at first. Raises ValueError for a target that no layer
    has, and if peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError(f"lora: needs peft, which 'jrm-serve[train]' brings ({error})") from None

    model.requires_grad_(False)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        target_modules=_targets(model.backbone, lora.targets),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model.backbone, adapter_name=_ADAPTER)
    for adapter in model.parameters():
        if adapter.requires_grad:
            adapter.data = adapter.data.float()
    joint: Any = model  # the class of its tables is about to change
    language = joint.backbone.language_model
    tied = language.embed_tokens.weight is joint.lm_head.weight
    ids = torch.tensor(tokens, device=language.embed_tokens.weight.device)
    language.embed_tokens = _with_rows(language.embed_tokens, ids)
    joint.lm_head = (
        TrainedRows(joint.lm_head, ids, language.embed_tokens.rows) if tied else _with_rows(joint.lm_head, ids)
    )
    model.heads.requires_grad_(True)


def merged(model: JointModel) -> dict[str, torch.Tensor]:
    """The state dict of the model without adapters, with what they have learned merged into its weights.

    W + alpha / r · B A is computed and returned in float32, on the host: a GPU has no room for it beside W. Frozen
    tensors are returned as they are.
    """
    from peft.tuners.lora import LoraLayer

    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            delta = module.get_delta_weight(_ADAPTER).detach()
            state = {key: tensor for key, tensor in state.items() if not key.startswith(f"{name}.lora_")}
            state[f"{name}.weight"] = (state.pop(f"{name}.base_layer.weight").float() + delta).cpu()
            if f"{name}.base_layer.bias" in state:
                state[f"{name}.bias"] = state.pop(f"{name}.base_layer.bias")
        elif isinstance(module, TrainedRows):
            table, rows = state.pop(f"{name}.table.weight"), state.pop(f"{name}.rows")
            state[f"{name}.weight"] = table.float().index_copy(0, module.ids, rows).cpu()
    return state


def _with_rows(table: nn.Embedding | nn.Linear, ids: torch.Tensor) -> TrainedRows:
    return TrainedRows(table, ids, nn.Parameter(table.weight.detach()[ids].float()))


def _targets(backbone: nn.Module, targets: Collection[str]) -> list[str]:
    """Full names of the targeted linear layers."""
    by_name: dict[str, list[str]] = {}
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Linear):
            by_name.setdefault(name.rpartition(".")[2], []).append(name)
    unknown = [target for target in targets if target not in by_name]
    if unknown:
        raise ValueError(
            f"lora.targets: no linear layer is named {', '.join(unknown)}; the linear layers are {', '.join(by_name)}"
        )
    return [name for target in targets for name in by_name[target]]
