"""The manifest, ``reward/manifest.json``: it names everything a score depends on, and is validated here.

A manifest says how the sequences are built (``passes``), where they are read (``reward_token``), what each head means
(``read``, ``heads``) and how dimensions are combined into one reward (``reward``). Unknown keys are refused: a misspelt
key that is silently ignored would silently change the reward.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .checkpoint_files import read_json, validation_problems

FORMAT = "jrm-reward/1"
INSTRUCTION = "{instruction}"
MAX_SOURCES = 64  # each number of source images is rendered when the checkpoint is opened

Part = Literal["source", "edited", "prompt", "ending"]
PositionRule = Literal["mrope", "sequential"]
Name = Annotated[str, Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ImageRules(_Strict):
    """Qwen's smart resize: the area in pixels after resizing lies in [min_pixels, max_pixels]."""

    min_pixels: Annotated[int, Field(ge=1, strict=True)]
    max_pixels: Annotated[int, Field(ge=1, strict=True)]
    resample: Literal["bicubic", "bilinear", "lanczos"] = "bicubic"
    # Left out if it is 1, so that checkpoints from before this key existed keep their fingerprints.
    max_sources: Annotated[int, Field(ge=1, le=MAX_SOURCES, strict=True, exclude_if=lambda most: most == 1)] = 1

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} is above max_pixels {self.max_pixels}")
        return self


class Pass(_Strict):
    """One user turn in the checkpoint's chat template, generation prompt added; ``read`` maps dimension -> head."""

    parts: list[Part]
    prompt: Name
    ending: Name | None = None
    read: Annotated[dict[Name, Name], Field(min_length=1)]

    @field_validator("parts")
    @classmethod
    def _each_part_once(cls, parts: list[Part]) -> list[Part]:
        repeated = [part for part, count in Counter(parts).items() if count > 1]
        missing = [part for part in ("edited", "prompt") if part not in parts]
        if repeated or missing:
            raise ValueError(f"each part may appear once, and 'edited' and 'prompt' must be there, got {parts}")
        return parts

    @model_validator(mode="after")
    def _ending_is_used(self) -> Self:
        if ("ending" in self.parts) != (self.ending is not None):
            raise ValueError("the part 'ending' and the template 'ending' go together")
        return self

    def template(self, part: Part) -> str | None:
        """The template of a text part; None for an image."""
        return {"prompt": self.prompt, "ending": self.ending}.get(part)

    @property
    def text(self) -> str:
        """Both templates, in the order of ``parts``."""
        return "".join(self.template(part) or "" for part in self.parts)


class Head(_Strict):
    """Linear-ReLU per hidden width, then Linear to the outputs. float32 always."""

    hidden: list[Annotated[int, Field(ge=1, strict=True)]]
    outputs: list[Literal["mean", "log_std"]]

    @field_validator("outputs")
    @classmethod
    def _known_outputs(cls, outputs: list[str]) -> list[str]:
        if outputs not in (["mean"], ["mean", "log_std"]):
            raise ValueError(f'outputs are ["mean"] or ["mean", "log_std"], got {outputs}')
        return outputs


class Normalize(_Strict):
    """Adds sigmoid((reward - center) / scale) to every reward in replies. ``jrm calibrate`` fits both."""

    center: Annotated[float, Field(allow_inf_nan=False)]
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Reward(_Strict):
    """How dimensions are pooled into one reward. No weights means 1.0 for each; a dimension of weight 0 is left out."""

    combine: Literal["mean", "min"] = "mean"
    weights: dict[Name, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = {}
    # Left out if there is none, so that checkpoints from before this key existed keep their fingerprints.
    normalize: Annotated[Normalize | None, Field(exclude_if=lambda normalize: normalize is None)] = None


class Explain(_Strict):
    """How a dimension is explained: by default (``template`` null) as the answer to the prompt that is scored."""

    template: str | None = None
    regions: bool = False


class Manifest(_Strict):
    """A whole ``reward/manifest.json``."""

    format: Literal["jrm-reward/1"]
    name: Name
    reward_token: Name
    image: ImageRules
    # Left out if it is mrope, so that checkpoints from before this key existed keep their fingerprints.
    positions: Annotated[PositionRule, Field(exclude_if=lambda rule: rule == "mrope")] = "mrope"
    passes: Annotated[list[Pass], Field(min_length=1)]
    heads: Annotated[dict[Name, Head], Field(min_length=1)]
    reward: Reward = Reward()
    explain: dict[Name, Explain] = {}
    provenance: dict[str, Any] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = [*self._template_problems(), *self._name_problems()]
        if self.image.max_sources > 1 and not self.max_sources:
            problems.append(f"image.max_sources is {self.image.max_sources}, and no pass has the part 'source'")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _template_problems(self) -> list[str]:
        problems = []
        for number, pass_ in enumerate(self.passes):
            where = f"passes.{number}"
            if (count := pass_.text.count(self.reward_token)) != 1:
                problems.append(f"{where}: the templates hold {self.reward_token} {count} times, must be exactly once")
                continue
            if (count := pass_.text.count(INSTRUCTION)) > 1:
                problems.append(f"{where}: the templates hold {INSTRUCTION} {count} times, may be once at most")
            holder = next(part for part in pass_.parts if self.reward_token in (pass_.template(part) or ""))
            unseen = [part for part in pass_.parts[pass_.parts.index(holder) :] if part in ("source", "edited")]
            if unseen:  # attention is causal: such a reward could not depend on the image
                problems.append(f"{where}: {self.reward_token} stands in '{holder}', before the image '{unseen[0]}'")
            if INSTRUCTION in pass_.text.partition(self.reward_token)[2]:
                problems.append(f"{where}: {INSTRUCTION} stands after {self.reward_token}, which cannot see it")
        return problems

    def _name_problems(self) -> list[str]:
        problems = []
        dimensions = Counter(dimension for pass_ in self.passes for dimension in pass_.read)
        problems += [f"dimension '{name}' is read {count} times" for name, count in dimensions.items() if count > 1]
        used = {head for pass_ in self.passes for head in pass_.read.values()}
        problems += [
            f"passes read head '{head}', which heads does not define" for head in sorted(used - set(self.heads))
        ]
        problems += [f"heads.{head} is read by no pass" for head in sorted(set(self.heads) - used)]
        for key, names in (("reward.weights", self.reward.weights), ("explain", self.explain)):
            unknown = sorted(set(names) - set(dimensions))
            problems += [f"{key}.{name} is not a dimension ({', '.join(dimensions)})" for name in unknown]
        if self.reward.weights and not any(self.reward.weights.values()):
            problems.append("reward.weights are all 0")
        return problems

    @property
    def dimensions(self) -> list[str]:
        """Names of all dimensions, in the order in which the passes read them."""
        return [dimension for pass_ in self.passes for dimension in pass_.read]

    @property
    def explained(self) -> dict[str, bool]:
        """Each dimension that can be explained, in the same order -> whether its critique has regions."""
        return {name: self.explain[name].regions for name in self.dimensions if name in self.explain}

    @property
    def max_sources(self) -> int:
        """The most source images of a candidate. 0: no pass shows any; otherwise it has at least one."""
        return self.image.max_sources if any("source" in pass_.parts for pass_ in self.passes) else 0

    @property
    def pooled_weights(self) -> dict[str, float]:
        """The weight of each dimension that is part of the reward."""
        weights = self.reward.weights or dict.fromkeys(self.dimensions, 1.0)
        return {name: weights[name] for name in self.dimensions if weights.get(name, 0.0) > 0}

    def canonical_json(self) -> str:
        """The manifest in one fixed format with defaults filled in, which the fingerprint hashes."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def read_manifest(path: Path, *, label: str | None = None) -> tuple[Manifest | None, list[str]]:
    """Read and validate a manifest file: (manifest, []) or (None, problems), each problem with its key.

    ``label`` is what problems call the file, by default its name and that of its folder.
    """
    where = label or f"{path.parent.name}/{path.name}"
    problems: list[str] = []
    value = read_json(path, problems, label=where)
    if value is None:
        return None, problems
    try:
        return Manifest.model_validate(value), []
    except ValidationError as error:
        return None, validation_problems(where, error)
