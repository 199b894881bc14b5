"""A JRM checkpoint on disk: a stock Hugging Face folder of a family that is served, plus ``reward/``.

``open_checkpoint`` reads headers only, cross-checks all files and reports *every* problem with its file and key;
``load_model`` then brings the weights to a device.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from jrm_service.errors import CheckpointError
from jrm_service.images.preprocess import ImageSpec
from jrm_service.scoring.preparing import SequenceBuilder

from .architecture import read_architecture
from .checkpoint_files import (
    TOKENIZER_FILES,
    image_size_problems,
    one_line,
    read_chat_template,
    read_json,
    resample_name,
    three_numbers,
    tokenizer_files_are_plain,
)
from .devices import use_full_float32
from .families import Config, Family, family_of
from .heads import RewardHeads, head_shapes
from .manifest import Manifest, read_manifest
from .preprocessing_version import PIPELINE_VERSION, identity
from .prompts import IMAGE_TOKEN, TemplateError, sequence_builder
from .weights import (
    LM_HEAD,
    TensorHeader,
    compare_tensors,
    expected_tensors,
    load_backbone,
    read_headers,
    read_sharded_headers,
    read_tensors,
    tensor_digests,
)

# Keys of config.json that no score depends on: the version that saved it, and the attention, which the server replaces.
_IRRELEVANT = frozenset({"transformers_version", "attn_implementation", "_attn_implementation"})


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are complete and consistent; no weight has been read yet."""

    path: Path
    manifest: Manifest
    config: Config
    image_spec: ImageSpec
    builder: SequenceBuilder
    chat_template: str
    weights: Mapping[str, TensorHeader]
    heads: Mapping[str, TensorHeader]

    @property
    def family(self) -> Family:
        """The family of its backbone."""
        return family_of(self.config)

    @property
    def hidden_size(self) -> int:
        """The width H of the hidden state **h**."""
        return int(self.config.text_config.hidden_size)

    @property
    def parameters(self) -> int:
        """Number of weights on disk, heads included."""
        return sum(torch.Size(header.shape).numel() for header in [*self.weights.values(), *self.heads.values()])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (32 hex digits) over weights, heads, manifest, tokenizer, chat template and preprocessing.

        Tensors are hashed by name and content, so sharding does not matter; manifest and ``config.json`` by meaning, so
        formatting does not; the tokenizer's files byte by byte. Preprocessing is a version number, plus a digest of
        pixels and token ids if the installed libraries produce others than that version stands for.
        """
        return self._fingerprint(identity())

    @cached_property
    def pinned_fingerprint(self) -> str:
        """The fingerprint with the pixels and token ids that PIPELINE_VERSION stands for."""
        return self._fingerprint(PIPELINE_VERSION)

    @cached_property
    def _tensors(self) -> tuple[dict[str, str], dict[str, str]]:
        return tensor_digests(self.weights), tensor_digests(self.heads)

    def _fingerprint(self, pipeline: object) -> str:
        weights, heads = self._tensors
        parts: dict[str, Any] = {
            "pipeline": pipeline,
            "manifest": self.manifest.canonical_json(),
            "config": _without(json.loads((self.path / "config.json").read_bytes()), _IRRELEVANT),
            "image": repr(self.image_spec),
            "chat_template": self.chat_template,
            "tokenizer": {
                name: hashlib.sha256((self.path / name).read_bytes()).hexdigest()
                for name in TOKENIZER_FILES
                if (self.path / name).exists()
            },
            "weights": weights,
            "heads": heads,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def open_checkpoint(path: str | Path, *, weights: bool = True) -> Checkpoint:
    """Open and cross-check a checkpoint folder. Raises CheckpointError naming every problem by file and key.

    Without ``weights`` no file of tensors is read, and none has to exist: ``weights`` and ``heads`` are then empty.
    """
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError([f"{path}: not a folder"])
    manifest, problems = read_manifest(path / "reward" / "manifest.json")
    raw = read_json(path / "config.json", problems)
    config = None if raw is None else read_architecture(raw, "config.json", problems)
    spec = _read_image_spec(path, manifest, config, problems)
    backbone = _read_weight_headers(path, problems) if weights else {}
    heads = read_headers(path / "reward" / "heads.safetensors", path, problems) if weights else {}
    if config is not None and backbone:
        optional = frozenset({LM_HEAD} if config.tie_word_embeddings else ())
        expected = expected_tensors(config)
        problems += compare_tensors(backbone, expected, optional=optional, source="config.json", root=path)
    if config is not None and manifest is not None and heads:
        shapes = head_shapes(manifest, config.text_config.hidden_size)
        problems += compare_tensors(heads, shapes, source="reward/manifest.json", root=path)
    template = read_chat_template(path, problems)
    builder = None
    if manifest is not None and config is not None and template is not None:
        builder = _read_tokenizer(path, manifest, config, template, problems)
    if problems or manifest is None or config is None or spec is None or template is None or builder is None:
        raise CheckpointError(problems)
    return Checkpoint(path, manifest, config, spec, builder, template, backbone, heads)


def load_model(
    checkpoint: Checkpoint, device: str | torch.device, dtype: torch.dtype
) -> tuple[PreTrainedModel, RewardHeads]:
    """Bring the backbone to ``device`` in ``dtype`` and the heads to ``device`` in float32, both in eval mode.

    Raises CheckpointError when a tensor holds NaN or infinity.
    """
    device = torch.device(device)
    use_full_float32()
    model, problems = load_backbone(checkpoint.config, checkpoint.weights, device, dtype)
    heads = RewardHeads(checkpoint.manifest, checkpoint.hidden_size).to(device)
    heads.load(dict(read_tensors(checkpoint.heads, device, torch.float32, problems)))
    if problems:
        raise CheckpointError(problems)
    return model, heads.eval().requires_grad_(False)


# --- reading the parts: each adds its problems to the list -----------------------------------------------------------


def _read_image_spec(
    path: Path, manifest: Manifest | None, config: Config | None, problems: list[str]
) -> ImageSpec | None:
    """The image rules of the manifest, with which ``preprocessor_config.json``, which vLLM reads, must agree."""
    raw = read_json(path / "preprocessor_config.json", problems)
    if manifest is None or config is None or raw is None:
        return None
    # Without these, Qwen's image processor falls back to the numbers of an older family.
    missing = [key for key in ("image_mean", "image_std", "patch_size") if raw.get(key) is None]
    if missing:
        problems += [f"preprocessor_config.json: {key}: missing" for key in missing]
        return None
    ambiguous = [
        *image_size_problems(raw),
        *(
            f"{key} is {raw[key]!r}, must be a list of three numbers"
            for key in ("image_mean", "image_std")
            if not three_numbers(raw[key])
        ),
    ]
    if ambiguous:
        problems += [f"preprocessor_config.json: {problem}" for problem in ambiguous]
        return None
    vision = config.vision_config
    try:
        spec = ImageSpec(
            min_pixels=manifest.image.min_pixels,
            max_pixels=manifest.image.max_pixels,
            resample=manifest.image.resample,
            patch_size=vision.patch_size,
            merge_size=vision.spatial_merge_size,
            temporal_patch_size=vision.temporal_patch_size,
            mean=tuple(raw["image_mean"]),
            std=tuple(raw["image_std"]),
        )
    except (TypeError, ValueError) as error:
        problems.append(f"preprocessor_config.json: {error}")
        return None
    for key, ours, theirs in _image_rules(spec, raw):
        if theirs is not None and (theirs != ours or (isinstance(theirs, bool) and not isinstance(ours, bool))):
            problems.append(f"preprocessor_config.json: {key} is {theirs}, the manifest and config.json say {ours}")
    return spec


def _image_rules(spec: ImageSpec, raw: dict[str, Any]) -> list[tuple[str, object, object]]:
    """(key, our value, the file's value): areas in pixels, which the file may spell in two ways."""
    size = raw["size"] if isinstance(raw.get("size"), dict) else {}
    smallest, largest = raw.get("min_pixels"), raw.get("max_pixels")
    return [
        (
            "size.shortest_edge",
            spec.min_pixels,
            size.get("shortest_edge", "not given") if smallest is None else smallest,
        ),
        ("size.longest_edge", spec.max_pixels, size.get("longest_edge", "not given") if largest is None else largest),
        ("patch_size", spec.patch_size, raw.get("patch_size")),
        # If they are left out, Qwen's image processor has these defaults.
        ("merge_size", spec.merge_size, 2 if raw.get("merge_size") is None else raw["merge_size"]),
        (
            "temporal_patch_size",
            spec.temporal_patch_size,
            2 if raw.get("temporal_patch_size") is None else raw["temporal_patch_size"],
        ),
        ("resample", spec.resample, "bicubic" if raw.get("resample") is None else resample_name(raw["resample"])),
        ("rescale_factor", 1 / 255, raw.get("rescale_factor")),
        *[(key, True, raw.get(key)) for key in ("do_resize", "do_rescale", "do_normalize")],
    ]


def _read_weight_headers(path: Path, problems: list[str]) -> dict[str, TensorHeader]:
    """Headers of ``model.safetensors``, or of the shards that ``model.safetensors.index.json`` names."""
    if (path / "model.safetensors").exists():
        return read_headers(path / "model.safetensors", path, problems)
    index_file = path / "model.safetensors.index.json"
    if not index_file.exists():
        pickled = next((file.name for file in sorted(path.glob("*.bin")) + sorted(path.glob("*.pth"))), None)
        hint = f" ({pickled} is a pickle: convert it to safetensors)" if pickled else ""
        problems.append(f"model.safetensors: missing, and no model.safetensors.index.json{hint}")
        return {}
    index = read_json(index_file, problems)
    if index is None:
        return {}
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        problems.append(f"{index_file.name}: weight_map: must map tensor names to files")
        return {}
    return read_sharded_headers(path, weight_map, problems)


def _read_tokenizer(
    path: Path, manifest: Manifest, config: Config, chat_template: str, problems: list[str]
) -> SequenceBuilder | None:
    if not tokenizer_files_are_plain(path, problems):
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # see read_architecture
        problems.append(f"tokenizer.json: transformers cannot load the tokenizer ({one_line(error)})")
        return None
    _compare_token_ids(tokenizer, manifest, config, problems)
    try:
        max_tokens = int(config.text_config.max_position_embeddings)
        return sequence_builder(manifest, tokenizer, chat_template, max_tokens=max_tokens)
    except TemplateError as error:
        problems += str(error).splitlines()
    except Exception as error:  # a chat template is a program: jinja may raise anything
        problems.append(f"chat_template.jinja: cannot render a turn of two images and a text ({one_line(error)})")
    return None


def _compare_token_ids(
    tokenizer: PreTrainedTokenizerBase, manifest: Manifest, config: Config, problems: list[str]
) -> None:
    ids = tokenizer.get_vocab()
    image_id = ids.get(IMAGE_TOKEN)
    if image_id != config.image_token_id:
        problems.append(f"config.json: image_token_id is {config.image_token_id}, the tokenizer says {image_id}")
    rows = config.text_config.vocab_size
    over = sorted(token for token, number in ids.items() if number >= rows)
    if over:
        problems.append(f"tokenizer.json: {over[0]} has id {ids[over[0]]}, the embedding has {rows} rows")


def _without(value: dict[str, Any], keys: frozenset[str]) -> dict[str, Any]:
    """Without these keys at any depth."""
    kept = {key: item for key, item in value.items() if key not in keys}
    return {key: _without(item, keys) if isinstance(item, dict) else item for key, item in kept.items()}
