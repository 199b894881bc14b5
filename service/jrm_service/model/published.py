"""Imports a published reward model: weights and base folder become a checkpoint that does what its code did.

Everything is checked from headers and small files before a weight is copied, and the new folder appears only when it
is complete.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from jrm_service.errors import CheckpointError

from . import import_base
from .checkpoint import Checkpoint, open_checkpoint
from .checkpoint_files import one_line, read_chat_template, write_json
from .families import FAMILIES, Config
from .manifest import FORMAT, Manifest, Part, PositionRule
from .prompts import TemplateError, sequence_builder
from .published_heads import OUTPUTS, read_heads
from .published_prompts import REWARD_TOKEN, read_prompts, template_file
from .statedict import SHARD_BYTES, StateDict, copy_tensors, open_state_dict, save_tensors, with_stock_names
from .weights import LM_HEAD, compare_tensors, expected_tensors, new_folder

EMBEDDING = "model.language_model.embed_tokens.weight"

_VIDEO = "video_preprocessor_config.json"
_COPIED = (_VIDEO, "generation_config.json")


@dataclass(frozen=True)
class Usage:
    """How the published code runs a family's model.

    ``pixels`` is the area that its own code resizes to, None if only the base's image processor resizes.
    """

    positions: PositionRule
    pixels: int | None


@dataclass(frozen=True, kw_only=True)
class Published:
    """A reward model that others have published.

    ``dimensions`` maps each dimension to its head; each is read in a turn of its own with ``parts``. ``state_names``
    maps each head to its module's name in the state dict. ``regions`` are the dimensions whose critique has boxes.
    ``usages`` are by the base's ``model_type``. ``files`` are files of weights that are preferred to the usual ones;
    ``default_prompts`` says where the default prompts come from.
    """

    name: str
    files: tuple[str, ...] = ()
    dimensions: Mapping[str, str]
    state_names: Mapping[str, str]
    parts: tuple[Part, ...]
    regions: frozenset[str]
    usages: Mapping[str, Usage]
    default_prompts: str

    def manifest(
        self,
        name: str,
        image: dict[str, Any],
        templates: dict[str, str],
        hidden: dict[str, list[int]],
        provenance: dict[str, Any],
        positions: PositionRule = "mrope",
    ) -> Manifest:
        """One pass for each dimension, each read by its own head, with widths ``hidden``."""
        return Manifest.model_validate(
            {
                "format": FORMAT,
                "name": name,
                "reward_token": REWARD_TOKEN,
                "image": image,
                "positions": positions,
                "passes": [
                    {"parts": list(self.parts), "prompt": templates[dimension], "read": {dimension: head}}
                    for dimension, head in self.dimensions.items()
                ],
                "heads": {head: {"hidden": widths, "outputs": OUTPUTS} for head, widths in hidden.items()},
                "reward": {"combine": "mean", "weights": dict.fromkeys(self.dimensions, 1.0)},
                "explain": {dimension: {"regions": dimension in self.regions} for dimension in self.dimensions},
                "provenance": provenance,
            }
        )


@dataclass(frozen=True)
class Imported:
    """The finished checkpoint, opened, and notes for its user."""

    checkpoint: Checkpoint
    notes: tuple[str, ...]


def import_published(
    published: Published,
    checkpoint: Path,
    base: Path,
    out: Path,
    *,
    prompts: Path | None,
    pixels: tuple[int | None, int | None],
    name: str | None,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None],
) -> Imported:
    """Write the weights in ``checkpoint`` to ``out`` as a JRM checkpoint, and open it.

    ``base`` holds config, tokenizer, chat template and image processor of the model that they were trained from; its
    ``config.json`` decides the family. ``prompts`` is a JSON file, dimension -> template. ``pixels``, the smallest and
    the largest area, override those of the published code. ``name`` is the model's name in replies, by default that of
    the folder. ``progress`` is called with (bytes copied, bytes in all).

    Raises CheckpointError with every problem, and then leaves ``out`` as it was.
    """
    checkpoint, base, out = checkpoint.resolve(), base.resolve(), out.resolve()
    problems = [f"{folder}: not a folder" for folder in (checkpoint, base) if not folder.is_dir()]
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        problems.append(f"{out}: is not an empty folder, and nothing is overwritten")
    if not checkpoint.is_dir() or not base.is_dir():
        raise CheckpointError(problems)
    notes: list[str] = []
    plan = _plan(published, checkpoint, base, name or out.name, prompts, pixels, problems, notes)
    with new_folder(out) as draft:
        plan.write(draft, shard_bytes, progress)
        open_checkpoint(draft)
    return Imported(open_checkpoint(out), tuple(notes))


@dataclass(frozen=True)
class _Plan:
    """All parts of the new folder, consistent with each other."""

    base: Path
    config: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase
    chat_template: str
    preprocessor: dict[str, Any]
    manifest: Manifest
    heads: dict[str, torch.Tensor]
    source: StateDict
    backbone: list[str]

    def write(self, folder: Path, shard_bytes: int, progress: Callable[[int, int], None]) -> None:
        write_json(folder / "config.json", self.config)
        write_json(folder / import_base.PREPROCESSOR, self.preprocessor)
        import_base.save_tokenizer(self.tokenizer, self.chat_template, folder)
        for name in _COPIED:
            if (self.base / name).exists():
                shutil.copyfile(self.base / name, folder / name)
        video_processor = FAMILIES[self.config["model_type"]].video_processor
        if video_processor is not None and not (folder / _VIDEO).exists():
            write_json(folder / _VIDEO, import_base.video_preprocessor(self.preprocessor, video_processor))
        (folder / "reward").mkdir()
        write_json(folder / "reward" / "manifest.json", self.manifest.model_dump(mode="json"))
        save_tensors(self.heads, folder / "reward" / "heads.safetensors")
        problems = copy_tensors(self.source, self.backbone, folder, shard_bytes=shard_bytes, progress=progress)
        if problems:
            raise CheckpointError(problems)


def _plan(
    published: Published,
    checkpoint: Path,
    base: Path,
    name: str,
    prompts: Path | None,
    pixels: tuple[int | None, int | None],
    problems: list[str],
    notes: list[str],
) -> _Plan:
    """Read everything but the weights. Raises CheckpointError if there are ``problems``, new ones or the caller's."""
    source = with_stock_names(open_state_dict(checkpoint, problems, notes, first=published.files))
    embedding = source.headers.get(EMBEDDING)
    rows = embedding.shape[0] if embedding is not None and embedding.shape else None
    raw, config = import_base.read_config(base, rows, problems) or (None, None)
    usage = None if config is None else _usage(published, base, config, problems)
    tokenizer = import_base.read_tokenizer(base, REWARD_TOKEN, rows, config, problems, notes)
    chat_template = read_chat_template(base, problems, prefix=f"{base.name}/")
    preprocessor = _preprocessor(published, base, usage, pixels, config, problems, notes)
    hidden, heads = read_heads(source, published.state_names, config, problems, notes)
    backbone = _backbone_names(source, config, problems)
    templates: dict[str, str] | None
    if prompts is None:
        templates = {dimension: template_file(dimension) for dimension in published.dimensions}
        notes.append(
            f"the prompts are {published.default_prompts}; scores equal the published model's only with the templates "
            "that it was trained with (--prompts)"
        )
    else:
        templates = read_prompts(prompts, published.name, list(published.dimensions), problems, notes)
    if config is not None and not (base / _VIDEO).exists() and FAMILIES[config.model_type].video_processor is None:
        notes.append(f"{base.name}/{_VIDEO}: missing; scoring does not need it, but /explain will not start without it")
    if raw and config and usage and tokenizer and chat_template and preprocessor and templates:
        image = import_base.image_rules(preprocessor)
        prompt_source = prompts.name if prompts else published.default_prompts
        provenance = {
            "base": base.name,
            "source": [f"{checkpoint.name}/{file}" for file in source.files],
            "notes": f"imported from {published.name}; prompts: {prompt_source}",
        }
        manifest = published.manifest(name, image, templates, hidden, provenance, usage.positions)
        check_turns(manifest, tokenizer, chat_template, config, problems)
        if not problems:
            return _Plan(base, raw, tokenizer, chat_template, preprocessor, manifest, heads, source, backbone)
    raise CheckpointError(problems)


def _usage(published: Published, base: Path, config: Config, problems: list[str]) -> Usage | None:
    usage = published.usages.get(config.model_type)
    if usage is None:
        known = ", ".join(FAMILIES[model_type].name for model_type in published.usages)
        problems.append(
            f"{base.name}/config.json: model_type is {config.model_type!r}; {published.name} was trained from {known}"
        )
    return usage


def _preprocessor(
    published: Published,
    base: Path,
    usage: Usage | None,
    pixels: tuple[int | None, int | None],
    config: Config | None,
    problems: list[str],
    notes: list[str],
) -> dict[str, Any] | None:
    """The base's image processor, with the limits that were asked for, or else those of the published code."""
    own = None if usage is None else usage.pixels
    smallest, largest = (own if asked is None else asked for asked in pixels)
    if own is not None:
        limits = import_base.read_limits(base)
        # The published code passes resized images to the base's image processor, whose usual limits are far wider.
        if limits is not None and (limits[0] > own // 2 or limits[1] < own * 2):
            notes.append(
                f"{base.name}/{import_base.PREPROCESSOR}: images of {limits[0]:,} to {limits[1]:,} pixels; "
                f"{published.name}'s own code would resize some of its {own:,} pixels a second time, which is not done"
            )
    return import_base.read_preprocessor(base, smallest, largest, config, problems)


def check_turns(
    manifest: Manifest,
    tokenizer: PreTrainedTokenizerBase,
    chat_template: str,
    config: Config,
    problems: list[str],
) -> None:
    """Add to ``problems`` the reasons why tokenizer and chat template cannot express the manifest's passes."""
    try:
        sequence_builder(manifest, tokenizer, chat_template, max_tokens=config.text_config.max_position_embeddings)
    except TemplateError as error:
        problems += str(error).splitlines()
    except Exception as error:  # a chat template is a program: jinja may raise anything
        problems.append(f"chat template: cannot render the turns ({one_line(error)})")


# --- the weights -----------------------------------------------------------------------------------------------------


def _backbone_names(source: StateDict, config: Config | None, problems: list[str]) -> list[str]:
    """All tensors except the heads, checked against the base's architecture; a tied language head is left out."""
    names = [name for name in source.headers if not name.startswith("rm_head")]
    if any(".lora_" in name for name in names):
        problems.append("the weights are a LoRA adapter: merge it into its base first")
        return []
    if config is None or not source.headers:
        return names
    root = next(iter(source.headers.values())).file.parent
    tied = bool(config.tie_word_embeddings)
    mismatches = compare_tensors(
        {name: source.headers[name] for name in names},
        expected_tensors(config),
        optional=frozenset({LM_HEAD} if tied else ()),
        source="the base's config.json",
        root=root,
    )
    problems += mismatches
    if not tied or LM_HEAD not in names:
        return names
    if not mismatches and not torch.equal(source.read(LM_HEAD), source.read(EMBEDDING)):
        problems.append(f"{LM_HEAD}: differs from the embedding, though config.json ties the two")
    return [name for name in names if name != LM_HEAD]
