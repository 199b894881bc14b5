"""A stock Qwen3-VL folder as a checkpoint to train from: ``jrm init``.

The backbone is the base's own. The added tokens, each with a row of the embedding, and the reward heads, with random
weights, are new. By default the prompts are the paper's (appendix C.1, C.2) and the heads those of EditReward.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase, Qwen3VLConfig

from jrm_service.errors import CheckpointError
from jrm_service.model import import_base
from jrm_service.model.checkpoint import Checkpoint, open_checkpoint
from jrm_service.model.checkpoint_files import RESAMPLE_NAMES, read_chat_template, write_json
from jrm_service.model.editreward import HEADS, default_prompts, published_layout
from jrm_service.model.heads import RewardHeads
from jrm_service.model.manifest import Manifest, read_manifest
from jrm_service.model.prompts import IMAGE_TOKEN
from jrm_service.model.published import EMBEDDING, check_turns
from jrm_service.model.statedict import SHARD_BYTES, StateDict, copy_tensors, open_state_dict, save_tensors
from jrm_service.model.weights import LM_HEAD, compare_tensors, expected_tensors, new_folder

PIXELS = 200_704  # appendix B.1: 256 x 28 x 28
HIDDEN = [1024, 16]
REGION_TOKENS = ["<|global|>", *(f"<|bbox_{number}|>" for number in range(8))]

_FAMILY = "qwen3_vl"
_NOISE = 0.1  # of the standard deviation of the base's rows: enough to tell new tokens apart, too little to stand out
_COPIED = ("video_preprocessor_config.json", "generation_config.json")
_RESAMPLE_NUMBERS = {name: number for number, name in RESAMPLE_NAMES.items()}


def prepare(
    base: Path,
    out: Path,
    *,
    manifest: Path | None = None,
    pixels: int | None = None,
    name: str | None = None,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Checkpoint:
    """Write ``base`` to ``out`` as a checkpoint that can be trained, and open it.

    ``manifest`` is a manifest file in place of the paper's two passes. ``pixels`` is the area that images are resized
    to, by default the manifest's or the paper's 200,704. ``name`` is the model's name, by default the manifest's or the
    folder's. The same seed gives the same rows and heads. ``progress`` is called with (bytes copied, bytes in all).

    A token that the base already has keeps its id and its row. Raises CheckpointError with every problem found, and
    then leaves ``out`` unchanged.
    """
    base, out = base.resolve(), out.resolve()
    problems = [] if base.is_dir() else [f"{base}: not a folder"]
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        problems.append(f"{out}: already exists and is not overwritten; expected a new or empty folder")
    if problems:
        raise CheckpointError(problems)
    plan = _plan(base, _init_options(manifest, pixels, name, out.name), seed)
    with new_folder(out) as draft:
        plan.write(draft, seed, shard_bytes, progress)
        open_checkpoint(draft)
    return open_checkpoint(out)


@dataclass(frozen=True)
class _InitOptions:
    """The options of ``jrm init``; ``name`` None leaves the manifest's."""

    manifest: Manifest | None
    min_pixels: int
    max_pixels: int
    name: str | None


def _init_options(file: Path | None, pixels: int | None, name: str | None, folder: str) -> _InitOptions:
    if file is None:
        return _InitOptions(None, pixels or PIXELS, pixels or PIXELS, name or folder)
    manifest, problems = read_manifest(file, label=str(file))
    if manifest is None:
        raise CheckpointError(problems)
    image = manifest.image
    return _InitOptions(manifest, pixels or image.min_pixels, pixels or image.max_pixels, name)


@dataclass(frozen=True)
class _Plan:
    """Every part of the new folder, checked against the others."""

    base: Path
    config: dict[str, Any]
    hidden_size: int
    tokenizer: PreTrainedTokenizerBase
    chat_template: str
    preprocessor: dict[str, Any]
    manifest: Manifest
    weights: StateDict

    def write(self, folder: Path, seed: int, shard_bytes: int, progress: Callable[[int, int], None]) -> None:
        write_json(folder / "config.json", self.config)
        write_json(folder / import_base.PREPROCESSOR, self.preprocessor)
        import_base.save_tokenizer(self.tokenizer, self.chat_template, folder)
        for name in _COPIED:
            if (self.base / name).exists():
                shutil.copyfile(self.base / name, folder / name)
        write_json(folder / "reward" / "manifest.json", self.manifest.model_dump(mode="json"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            heads = RewardHeads(self.manifest, self.hidden_size)
        save_tensors(heads.tensors(), folder / "reward" / "heads.safetensors")
        problems = copy_tensors(self.weights, self.weights.headers, folder, shard_bytes=shard_bytes, progress=progress)
        if problems:
            raise CheckpointError(problems)


def _plan(base: Path, options: _InitOptions, seed: int) -> _Plan:
    """Read everything but the weights. Raises CheckpointError with every problem."""
    problems: list[str] = []
    source = open_state_dict(base, problems, [])
    raw, config = import_base.read_config(base, None, problems) or (None, None)
    # A token that every base has: nothing is added yet.
    tokenizer = import_base.read_tokenizer(base, IMAGE_TOKEN, None, config, problems, [])
    chat_template = read_chat_template(base, problems, prefix=f"{base.name}/")
    preprocessor = import_base.read_preprocessor(base, options.min_pixels, options.max_pixels, config, problems)
    if config is not None and config.model_type != _FAMILY:
        problems.append(f"{base.name}/config.json: model_type is {config.model_type!r}, must be {_FAMILY!r} to train")
    elif config is not None and source.headers:
        problems += _weight_problems(base, source, config)
    if problems or not (raw and config and tokenizer and chat_template and preprocessor):
        raise CheckpointError(problems)
    manifest = _manifest(base, options, preprocessor)
    preprocessor["resample"] = _RESAMPLE_NUMBERS[manifest.image.resample]
    known = tokenizer.get_vocab()
    tokens = [manifest.reward_token, *REGION_TOKENS]
    added = [AddedToken(token, special=True, normalized=False) for token in tokens]
    tokenizer.add_tokens(added, special_tokens=True)
    new = [number for token, number in tokenizer.get_vocab().items() if token not in known]
    weights = _with_rows(source, sorted(known.values()), sorted(new), config, seed)
    raw["text_config"]["vocab_size"] = weights.headers[EMBEDDING].shape[0]
    check_turns(manifest, tokenizer, chat_template, config, problems)
    if problems:
        raise CheckpointError(problems)
    hidden_size = int(config.text_config.hidden_size)
    return _Plan(base, raw, hidden_size, tokenizer, chat_template, preprocessor, manifest, weights)


def _manifest(base: Path, options: _InitOptions, preprocessor: dict[str, Any]) -> Manifest:
    """The given manifest, or the paper's two passes, with the image rules in effect."""
    image = import_base.image_rules(preprocessor)
    provenance = {"base": base.name, "notes": "prepared by jrm init, with new reward heads"}
    if options.manifest is None:
        hidden = dict.fromkeys(HEADS.values(), HIDDEN)
        return published_layout(options.name or base.name, image, default_prompts(), hidden, provenance)
    given = options.manifest
    image["resample"] = given.image.resample
    changes = {"image": image, "provenance": given.provenance | provenance, "name": options.name or given.name}
    return Manifest.model_validate(given.model_dump() | changes)


# --- the weights -----------------------------------------------------------------------------------------------------


def _weight_problems(base: Path, source: StateDict, config: Qwen3VLConfig) -> list[str]:
    optional = frozenset({LM_HEAD} if config.tie_word_embeddings else ())
    expected = expected_tensors(config)
    found = compare_tensors(source.headers, expected, optional=optional, source="config.json", root=base)
    return [f"{base.name}/{problem}" for problem in found]


def _with_rows(source: StateDict, known: list[int], new: list[int], config: Qwen3VLConfig, seed: int) -> StateDict:
    """The weights with a row for every new token, in the embedding and in a language head of its own.

    A row is the mean of those of the known tokens with a little noise. The base's padding rows are used up first.
    """
    tables = [EMBEDDING] if config.tie_word_embeddings else [EMBEDDING, LM_HEAD]
    rows, width = source.headers[EMBEDDING].shape
    rows = max([rows, *(number + 1 for number in new)])
    headers = {name: h for name, h in source.headers.items() if name != LM_HEAD or not config.tie_word_embeddings}
    headers |= {name: replace(headers[name], shape=(rows, width)) for name in tables}

    def read(name: str) -> torch.Tensor:
        tensor = source.read(name)
        if name not in tables:
            return tensor
        random = torch.Generator().manual_seed(2 * seed + tables.index(name))
        known_rows = tensor[known].float()
        noise = torch.randn(len(new), width, generator=random) * _NOISE * known_rows.std()
        grown = torch.cat([tensor, tensor.new_zeros(rows - len(tensor), width)])
        grown[new] = (known_rows.mean(0) + noise).to(tensor.dtype)
        return grown

    return StateDict(headers, read)
