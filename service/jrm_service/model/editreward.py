"""Published EditReward checkpoints (Qwen3-VL family, two heads) to our format: ``jrm import-editreward``.

EditReward adds ``<|Reward|>`` to the tokenizer of its base model, resizes the embedding to the new length and reads two
heads, each in a turn of its own: source image, edited image, prompt. ``head_0`` is instruction following, ``head_1``
visual quality; each gives (mean, log sigma), and the published model pools the two by their mean.

Everything is checked from headers and small files before a weight is copied, and the new folder appears only when it
is complete.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase, Qwen3VLConfig

from jrm_service.errors import CheckpointError

from . import basemodel
from .checkpoint import Checkpoint, open_checkpoint
from .editreward_heads import HEADS, OUTPUTS, read_heads
from .editreward_prompts import REWARD_TOKEN, default_prompts, read_prompts
from .files import one_line, read_chat_template, write_json
from .manifest import FORMAT, Manifest
from .prompts import TemplateError, sequence_builder
from .statedict import SHARD_BYTES, StateDict, copy_tensors, open_state_dict, save_tensors
from .weights import LM_HEAD, compare_tensors, expected_tensors

EMBEDDING = "model.language_model.embed_tokens.weight"

_VIDEO = "video_preprocessor_config.json"
_COPIED = (_VIDEO, "generation_config.json")


@dataclass(frozen=True)
class Imported:
    """The finished checkpoint, opened, and what its user should know."""

    checkpoint: Checkpoint
    notes: tuple[str, ...]


def import_editreward(
    checkpoint: Path,
    base: Path,
    out: Path,
    *,
    prompts: Path | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    name: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Imported:
    """Write the EditReward weights in ``checkpoint`` to ``out`` as a JRM checkpoint, and open it.

    ``base`` holds config, tokenizer, chat template and image processor of the model that EditReward was trained from.
    ``prompts`` is a JSON file, dimension -> template; by default the paper's appendix C.1 and C.2. ``min_pixels`` and
    ``max_pixels`` go over the base's image processor. ``name`` is the model's name in replies, by default the folder's.
    ``progress`` is called with (bytes copied, bytes in all).

    Raises CheckpointError with every problem found; ``out`` is then as it was before.
    """
    checkpoint, base, out = checkpoint.resolve(), base.resolve(), out.resolve()
    problems = [f"{folder}: not a folder" for folder in (checkpoint, base) if not folder.is_dir()]
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        problems.append(f"{out}: is not an empty folder, and nothing is overwritten")
    if not checkpoint.is_dir() or not base.is_dir():
        raise CheckpointError(problems)
    notes: list[str] = []
    plan = _plan(checkpoint, base, name or out.name, prompts, (min_pixels, max_pixels), problems, notes)
    draft = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        draft.mkdir(parents=True)
        plan.write(draft, shard_bytes, progress)
        open_checkpoint(draft)
        if out.exists():
            out.rmdir()
        draft.rename(out)
    except (OSError, SafetensorError) as error:
        raise CheckpointError([f"{out}: cannot be written ({one_line(error)})"]) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Imported(open_checkpoint(out), tuple(notes))


@dataclass(frozen=True)
class _Plan:
    """Every part of the new folder, checked against the others."""

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
        write_json(folder / basemodel.PREPROCESSOR, self.preprocessor)
        basemodel.save_tokenizer(self.tokenizer, self.chat_template, folder)
        for name in _COPIED:
            if (self.base / name).exists():
                shutil.copyfile(self.base / name, folder / name)
        (folder / "reward").mkdir()
        write_json(folder / "reward" / "manifest.json", self.manifest.model_dump(mode="json"))
        save_tensors(self.heads, folder / "reward" / "heads.safetensors")
        problems = copy_tensors(self.source, self.backbone, folder, shard_bytes=shard_bytes, progress=progress)
        if problems:
            raise CheckpointError(problems)


def _plan(
    checkpoint: Path,
    base: Path,
    name: str,
    prompts: Path | None,
    pixels: tuple[int | None, int | None],
    problems: list[str],
    notes: list[str],
) -> _Plan:
    """Read all that is small. Raises CheckpointError when ``problems`` holds any, its own or the caller's."""
    source = open_state_dict(checkpoint, problems, notes)
    embedding = source.headers.get(EMBEDDING)
    rows = embedding.shape[0] if embedding is not None and embedding.shape else None
    raw, config = basemodel.read_config(base, rows, problems) or (None, None)
    tokenizer = basemodel.read_tokenizer(base, REWARD_TOKEN, rows, config, problems, notes)
    chat_template = read_chat_template(base, problems, prefix=f"{base.name}/")
    preprocessor = basemodel.read_preprocessor(base, *pixels, config, problems)
    hidden, heads = read_heads(source, config, problems, notes)
    backbone = _backbone_names(source, config, problems)
    templates = default_prompts() if prompts is None else read_prompts(prompts, problems, notes)
    if prompts is None:
        notes.append(
            "the prompts are the paper's C.1 and C.2; scores equal the published model's only with the templates that "
            "it was trained with (--prompts)"
        )
    if not (base / _VIDEO).exists():
        notes.append(f"{base.name}/{_VIDEO}: missing; scoring does not need it, but /explain will not start without it")
    if raw and config and tokenizer and chat_template and preprocessor and templates:
        image = basemodel.image_rules(preprocessor)
        provenance = {
            "base": base.name,
            "source": [f"{checkpoint.name}/{file}" for file in source.files],
            "notes": f"imported from EditReward; prompts: {prompts.name if prompts else 'JRM paper, C.1 and C.2'}",
        }
        manifest = published_layout(name, image, templates, hidden, provenance)
        check_turns(manifest, tokenizer, chat_template, config, problems)
        if not problems:
            return _Plan(base, raw, tokenizer, chat_template, preprocessor, manifest, heads, source, backbone)
    raise CheckpointError(problems)


def published_layout(
    name: str,
    image: dict[str, Any],
    templates: dict[str, str],
    hidden: dict[str, list[int]],
    provenance: dict[str, Any],
) -> Manifest:
    """The published layout: one pass for each dimension, each read by its own head, with widths ``hidden``."""
    return Manifest.model_validate(
        {
            "format": FORMAT,
            "name": name,
            "reward_token": REWARD_TOKEN,
            "image": image,
            "passes": [
                {"parts": ["source", "edited", "prompt"], "prompt": templates[dimension], "read": {dimension: head}}
                for dimension, head in HEADS.items()
            ],
            "heads": {head: {"hidden": widths, "outputs": OUTPUTS} for head, widths in hidden.items()},
            "reward": {"combine": "mean", "weights": dict.fromkeys(HEADS, 1.0)},
            # C.1 asks for boxes, C.2 does not.
            "explain": {name: {"regions": name == "instruction_following"} for name in HEADS},
            "provenance": provenance,
        }
    )


def check_turns(
    manifest: Manifest,
    tokenizer: PreTrainedTokenizerBase,
    chat_template: str,
    config: Qwen3VLConfig,
    problems: list[str],
) -> None:
    """Add to ``problems`` what keeps the tokenizer and the chat template from expressing the manifest's passes."""
    try:
        sequence_builder(manifest, tokenizer, chat_template, max_tokens=config.text_config.max_position_embeddings)
    except TemplateError as error:
        problems += str(error).splitlines()
    except Exception as error:  # a chat template is a program: jinja raises what it likes
        problems.append(f"chat template: cannot render the turns ({one_line(error)})")


# --- the weights -----------------------------------------------------------------------------------------------------


def _backbone_names(source: StateDict, config: Qwen3VLConfig | None, problems: list[str]) -> list[str]:
    """Every tensor but the heads, checked against the base's architecture; a tied language head is left out."""
    names = [name for name in source.headers if not name.startswith("rm_head")]
    if any(".lora_" in name for name in names):
        problems.append("the weights are a LoRA adapter: merge it into its base first")
        return []
    if config is None or not source.headers:
        return names
    root = next(iter(source.headers.values())).file.parent
    tied = bool(config.tie_word_embeddings)
    found = compare_tensors(
        {name: source.headers[name] for name in names},
        expected_tensors(config),
        optional=frozenset({LM_HEAD} if tied else ()),
        source="the base's config.json",
        root=root,
    )
    problems += found
    if not tied or LM_HEAD not in names:
        return names
    if not found and not torch.equal(source.read(LM_HEAD), source.read(EMBEDDING)):
        problems.append(f"{LM_HEAD}: differs from the embedding, though config.json ties the two")
    return [name for name in names if name != LM_HEAD]
