"""The recipe of a training run: one frozen object, read from a TOML file. Several recipes are shipped."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

SHIPPED = Path(__file__).parent / "recipes"

Share = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Stage(_Section):
    """A stretch of a curriculum in the synthetic world: ``groups`` groups with sources of ``shapes`` (fewest, most).

    ``flawed`` is the share of edits with a visual flaw, ``two_sources`` that of groups with two source images. Labels
    are the noisy ones of simulated annotator number ``annotator``, or the true ones where it is None.
    """

    groups: PositiveInt
    shapes: tuple[PositiveInt, PositiveInt]
    flawed: Share = 0.65
    two_sources: Share = 0.0
    annotator: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.shapes[0] > self.shapes[1]:
            raise ValueError(f"shapes {list(self.shapes)}; expected the smaller number first")
        return self


class Data(_Section):
    """Where the groups come from: a JSONL file (docs/training-data.md), or the synthetic world by seed.

    A file's groups are shuffled anew in every epoch, by ``seed``. ``edits`` per group and the ``curriculum``, which
    keeps its order, apply to the world. ``workers`` is the number of processes that collate rows in advance; with 0,
    the training process collates them itself.
    """

    jsonl: Path | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    edits: Annotated[int, Field(ge=2)] = 4
    curriculum: tuple[Stage, ...] = ()
    workers: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.jsonl is None) == (not self.curriculum):
            raise ValueError("needs either jsonl or a curriculum of the synthetic world")
        return self


class Optimizer(_Section):
    """AdamW for every weight; with ``muon_lr``, Muon for the matrices of the layers and AdamW for the rest.

    ``lr`` is the peak of a cosine that follows ``warmup`` (share of all steps) and ends at ``final`` times the peak.
    ``clip`` is the largest norm of the gradient of all weights together. ``vision`` is the vision tower's share of the
    learning rates: one that is already trained should change little.
    """

    lr: Positive
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    warmup: Share = 0.05
    final: Share = 0.0
    clip: Positive = 1.0
    muon_lr: Positive | None = None
    vision: Share = 1.0


class Lora(_Section):
    """Low-rank adapters in place of the whole backbone: W + alpha / r · B A for the linear layers named in ``targets``.

    A name stands for every layer that has it; those of Qwen3-VL's vision tower have names of their own. ``r`` is the
    rank. There is no dropout: a resumed run would draw other random numbers.
    """

    r: PositiveInt
    alpha: Positive
    targets: Annotated[tuple[str, ...], Field(min_length=1)]


class Recipe(_Section):
    """A whole run.

    ``alpha`` is Eq. 7's. A step takes ``batch`` groups over all devices, in rows of ``micro_batch`` groups, whose
    gradients are accumulated. ``dtype`` is what the backbone computes in; weights, heads, losses and optimizer stay in
    float32. ``shard`` divides optimizer state and gradients among the devices (ZeRO-2); it has no effect on a single
    one. ``saved_dtype`` is the dtype of the backbone's weights in the exported checkpoint. With ``lora`` the backbone
    is frozen, and kept in ``dtype``. ``fresh_sigma`` starts with a log sigma of 0 in every head: labels without noise
    drive sigma to 0, and from there no gradient brings it back.
    """

    name: Annotated[str, Field(min_length=1)]
    data: Data
    optimizer: Optimizer
    lora: Lora | None = None
    alpha: Share = 0.7
    epochs: PositiveInt = 1
    batch: PositiveInt
    micro_batch: PositiveInt
    max_tokens: PositiveInt = 8192
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    shard: bool = False
    save_every: PositiveInt = 200
    saved_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    fresh_sigma: bool = False

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.batch % self.micro_batch:
            raise ValueError(f"batch {self.batch} is not a multiple of micro_batch {self.micro_batch}")
        if self.shard and self.optimizer.muon_lr is not None:
            raise ValueError("shard and optimizer.muon_lr cannot be combined: Muon needs whole matrices")
        if self.lora is not None and self.shard:
            raise ValueError("lora and shard cannot be combined: frozen weights are not sharded, and the rest is small")
        if self.lora is not None and self.optimizer.muon_lr is not None:
            raise ValueError("lora and optimizer.muon_lr cannot be combined: Muon updates whole matrices, not adapters")
        return self


def read_recipe(path: Path, **overrides: Any) -> Recipe:
    """Read a TOML recipe; ``overrides`` that are not None replace values, those of a table key by key.

    Raises pydantic.ValidationError for invalid values, ValueError, with the path, for a file that is not TOML, and
    OSError for one that cannot be read.
    """
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not TOML in UTF-8 ({error})") from None
    for key, value in overrides.items():
        if value is not None:
            values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return Recipe.model_validate(values)


def find_recipe(name: str) -> Path:
    """The shipped recipe of that name, or the file at that path. Raises FileNotFoundError, listing the shipped ones."""
    shipped = {file.stem: file for file in sorted(SHIPPED.glob("*.toml"))}
    if name not in shipped and not Path(name).exists():
        raise FileNotFoundError(f"{name}: no such file, and none of the shipped recipes ({', '.join(shipped)})")
    return shipped.get(name, Path(name))
