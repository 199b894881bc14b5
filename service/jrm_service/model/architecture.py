"""Validates a ``config.json``: what cannot be built or run as an architecture is reported as a problem by key.

transformers checks little before the first forward pass, and then raises whatever the first wrong value leads to.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from .checkpoint_files import one_line
from .families import FAMILIES, Config, Family, family_of, text_head_dim
from .weights import expected_tensors

# The server decides these itself: a file's values for them are ignored, even invalid ones.
_OURS = ("attn_implementation", "_attn_implementation", "dtype", "torch_dtype", "auto_map", "use_cache")

_TEXT_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings"),
)
_VISION_SIZES = (
    *("depth", "hidden_size", "num_heads", "in_channels", "patch_size", "spatial_merge_size", "temporal_patch_size"),
)
_TOKEN_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
_LARGEST = 10**9
_MOST_LAYERS = 1000  # each is built, if only on the meta device


def read_architecture(raw: Mapping[str, Any], label: str, problems: list[str]) -> Config | None:
    """The configuration of a whole ``config.json``, built once on the meta device; None when it has problems.

    No weight is allocated and no code of the checkpoint runs. ``label`` is what problems call the file.
    """
    own_problems = _key_problems(raw)
    config = None
    if not own_problems:
        try:
            config = FAMILIES[raw["model_type"]].config_class.from_dict(copy.deepcopy(_without_ours(raw)))
            own_problems = _relation_problems(config)
            if not own_problems:
                expected_tensors(config)
        except Exception as error:  # transformers and torch raise many types here; all mean the same to a user
            own_problems = [f"transformers refuses it ({one_line(error)})"]
    problems += [f"{label}: {problem}" for problem in own_problems]
    return None if own_problems else config


def _without_ours(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_ours(value) if key in ("text_config", "vision_config") else value
        for key, value in raw.items()
        if key not in _OURS
    }


def _key_problems(raw: Mapping[str, Any]) -> list[str]:
    """Problems that can be found before transformers sees the file, with the file's own keys."""
    family = FAMILIES.get(raw["model_type"]) if isinstance(raw.get("model_type"), str) else None
    if family is None:
        served = ", ".join(f"{model_type!r} ({family.name})" for model_type, family in FAMILIES.items())
        return [f"model_type is {_shown(raw.get('model_type'))}, must be one of {served}"]
    halves = [key for key in ("text_config", "vision_config") if key in raw or not _may_lack(key, family)]
    wrong = [key for key in halves if not isinstance(raw.get(key), dict)]
    if wrong:
        return [f"{key}: {'must be an object' if raw.get(key) is not None else 'missing'}" for key in wrong]
    others = [model_type for model_type in FAMILIES if model_type != family.model_type]
    problems = [
        f"{key}.model_type is {_shown(raw[key]['model_type'])}, model_type is {family.model_type!r}"
        for key in halves
        if str(raw[key].get("model_type")).startswith(tuple(others))
    ]
    for prefix, part in (("", raw), *((f"{key}.", raw[key]) for key in halves)):
        if part.get("quantization_config") is not None:
            problems.append(f"{prefix}quantization_config: quantized weights are not served; use the unquantized model")
        if not isinstance(part.get("tie_word_embeddings", False), bool):
            problems.append(f"{prefix}tie_word_embeddings is {part['tie_word_embeddings']!r}, must be true or false")
    for prefix, part, keys in (
        *([("text_config.", raw["text_config"], _TEXT_SIZES)] if "text_config" in halves else []),
        *([("", raw, _TEXT_SIZES)] if family.flat_text else []),
        ("vision_config.", raw["vision_config"], (*_VISION_SIZES, *family.vision_sizes)),
    ):
        for key in keys:
            most = _MOST_LAYERS if key in ("num_hidden_layers", "depth") else _LARGEST
            # num_key_value_heads may be null, which is as many as there are heads.
            if part.get(key) is not None and not _is_whole(part[key], 1, most):
                problems.append(f"{prefix}{key} is {_shown(part[key])}, must be a whole number from 1 to {most:,}")
    problems += [
        f"{key} is {_shown(raw[key])}, must be the id of a token"
        for key in _TOKEN_IDS
        if key in raw and not _is_whole(raw[key], 0, _LARGEST)
    ]
    return problems


def _may_lack(key: str, family: Family) -> bool:
    return family.flat_text and key == "text_config"


def _relation_problems(config: Config) -> list[str]:
    """Problems that let the model be built, but make it fail or compute something else in the first forward pass."""
    text, vision, family = config.text_config, config.vision_config, family_of(config)
    head_dim, width = text_head_dim(config), family.vision_width(vision)
    problems = []
    if text.num_attention_heads % text.num_key_value_heads:
        problems.append(
            f"text_config: {text.num_attention_heads} attention heads are not a multiple of "
            f"{text.num_key_value_heads} key-value heads"
        )
    if head_dim % 2:
        problems.append(f"text_config.head_dim is {head_dim}, must be even")
    if width % (4 * vision.num_heads):
        problems.append(
            f"vision_config.{family.width_key} is {width}, must be a multiple of 4 times num_heads ({vision.num_heads})"
        )
    features = getattr(vision, family.feature_key)
    if features != text.hidden_size:
        problems.append(
            f"vision_config.{family.feature_key} is {features}, must be text_config.hidden_size ({text.hidden_size})"
        )
    problems += family.problems(config)
    rope = text.rope_parameters or {}
    section = rope.get("mrope_section")
    if section is not None and not _is_section(section, head_dim // 2):
        problems.append(
            f"text_config.rope_scaling.mrope_section is {_shown(section)}, must be three whole numbers that add up to "
            f"half of head_dim ({head_dim // 2})"
        )
    for key, value in (("rope_theta", rope.get("rope_theta")), ("rms_norm_eps", text.rms_norm_eps)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            problems.append(f"text_config.{key} is {_shown(value)}, must be a positive number")
    return problems


def _is_whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_section(value: object, total: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(_is_whole(size, 0, total) for size in value)
        and sum(value) == total
    )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
