"""Saved states of a run, from which it resumes after a kill: ``states/00000200`` is the one after step 200.

A state is torch's distributed checkpoint of model and optimizers, with the recipe and what identifies the data beside
it. It does not depend on how many processes saved it. Frozen weights are not in it: they are in the start checkpoint.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from jrm_client import strict_json

from .config import Recipe
from .distributed import barrier, place

STATES = "states"
KEPT = 2

# May change between states: how a step is computed, kept or exported, but not what it is.
_FREE = {"save_every", "micro_batch", "gradient_checkpointing", "saved_dtype", "data.workers"}
_RECIPE = "recipe.json"
_DATA = "data.json"

Data = Mapping[str, int | str]
"""What identifies the data and the start checkpoint of a run: the number of groups, checksums."""


def save_state(
    out: Path, step: int, recipe: Recipe, data: Data, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """Write the state after a step, by all processes together, and remove all but the newest ``KEPT``.

    It is written under another name and renamed, so that a kill leaves the last complete one. Raises OSError.
    """
    folder = out / STATES
    draft, final = folder / "draft", folder / f"{step:08}"
    first = place().rank == 0
    if first:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
    barrier()
    with _without_warning():
        save(_tensors(model, optimizers), checkpoint_id=draft, no_dist=place().world == 1)
    if first:
        (draft / _RECIPE).write_text(recipe.model_dump_json(), encoding="utf-8")
        (draft / _DATA).write_text(json.dumps(dict(data)), encoding="utf-8")
        shutil.rmtree(final, ignore_errors=True)
        draft.replace(final)
        for old in saved_states(out)[:-KEPT]:
            shutil.rmtree(old)
    barrier()


def load_state(
    out: Path, recipe: Recipe, data: Data, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> int:
    """Load the newest state into model and optimizers and return its step; 0, with nothing done, if there is none.

    Raises ValueError if it is from another recipe or other data: the remaining steps would not be those of the killed
    run.
    """
    states = saved_states(out)
    if not states:
        return 0
    newest = states[-1]
    saved = Recipe.model_validate_json((newest / _RECIPE).read_bytes())
    changes = _changes(saved.model_dump(mode="json"), recipe.model_dump(mode="json"))
    if changes:
        raise ValueError(f"{newest}: this run was started with another recipe: {'; '.join(changes)}")
    if (newest / _DATA).exists():  # the first states had none
        try:
            saved_data = strict_json.loads((newest / _DATA).read_bytes())
        except ValueError as error:
            raise ValueError(f"{newest / _DATA}: {error}") from None
        changes = [
            f"{key} was {saved_data.get(key)}, is {value}"
            for key, value in data.items()
            if saved_data.get(key) != value
        ]
        if changes:
            raise ValueError(f"{newest}: this run was started on other data: {'; '.join(changes)}")
    state = _tensors(model, optimizers)
    with _without_warning():
        load(state, checkpoint_id=newest, no_dist=place().world == 1)
    set_state_dict(
        model,
        optimizers,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizers"],
        options=_options(model),
    )
    return int(newest.name)


def saved_states(out: Path) -> list[Path]:
    """Complete states of a run, oldest first."""
    folder = out / STATES
    return sorted(path for path in folder.iterdir() if path.name.isdigit()) if folder.exists() else []


def _tensors(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Any]:
    weights, moments = get_state_dict(model, optimizers, options=_options(model))
    return {"model": weights, "optimizers": moments}


def _options(model: nn.Module) -> StateDictOptions:
    frozen = any(not weight.requires_grad for weight in model.parameters())
    return StateDictOptions(ignore_frozen_params=frozen, strict=not frozen)


@contextmanager
def _without_warning() -> Iterator[None]:
    """Suppress torch's warning that a single process saves or loads, given even if it is told to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def _changes(saved: dict[str, Any], current: dict[str, Any], prefix: str = "") -> list[str]:
    """The values that differ although they must not, by their names in the recipe."""
    changes: list[str] = []
    for key, value in current.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and isinstance(saved[key], dict):
            changes += _changes(saved[key], value, f"{name}.")
        elif saved[key] != value and name not in _FREE:
            changes.append(f"{name} was {saved[key]}, is {value}")
    return changes
