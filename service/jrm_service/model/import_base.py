"""What an imported reward model takes from the folder of its base model: config, tokenizer and image processor.

Each reader adds its problems, with the file at fault, to the list it is given, and returns None if it cannot go on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .architecture import read_architecture
from .checkpoint_files import (
    RESAMPLE_NAMES,
    image_size_problems,
    one_line,
    read_json,
    resample_name,
    three_numbers,
    tokenizer_files_are_plain,
    write_json,
)
from .families import Config, family_of
from .prompts import IMAGE_TOKEN

PREPROCESSOR = "preprocessor_config.json"
_BICUBIC = 3  # the default of Qwen's image processor
_LOADING_FLAGS = ("is_local", "local_files_only", "trust_remote_code")  # arguments of our call that transformers saves


def read_config(base: Path, rows: int | None, problems: list[str]) -> tuple[dict[str, Any], Config] | None:
    """``config.json`` as (JSON, config), with a vocabulary of ``rows`` embedding rows.

    Training resized the embedding, so its rows count, not the base's ``vocab_size``. ``architectures`` is set to the
    stock class, whichever class saved the file.
    """
    file = base / "config.json"
    raw = read_json(file, problems, label=_where(file))
    if raw is None:
        return None
    config = read_architecture(_resized(raw, rows), _where(file), problems)
    if config is None:
        return None
    return _resized(raw, rows) | {"architectures": [family_of(config).architecture]}, config


def _resized(raw: dict[str, Any], rows: int | None) -> dict[str, Any]:
    """The same configuration with a vocabulary of ``rows``; unchanged for None."""
    if rows is None:
        return raw
    text = raw.get("text_config")
    nested = {"text_config": text | {"vocab_size": rows}} if isinstance(text, dict) else {}
    return raw | nested | ({"vocab_size": rows} if "vocab_size" in raw or not nested else {})


def read_tokenizer(
    base: Path, token: str, rows: int | None, config: Config | None, problems: list[str], notes: list[str]
) -> PreTrainedTokenizerBase | None:
    """The base's tokenizer with ``token`` as a special token: at the next free id, or where it is already.

    The embedding must have a row for every token. Further ``rows`` are padding; they are noted, because they may also
    mean that the weights were trained with another tokenizer.
    """
    if not (base / "tokenizer.json").exists() and not (base / "vocab.json").exists():
        problems.append(f"{base.name}/tokenizer.json: missing, and no vocab.json")
        return None
    if not tokenizer_files_are_plain(base, problems, prefix=f"{base.name}/"):
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # see read_architecture
        problems.append(f"{base.name}/tokenizer.json: transformers cannot load the tokenizer ({one_line(error)})")
        return None
    before = len(tokenizer)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False)], special_tokens=True)
    ids = tokenizer.get_vocab()
    if before != len(tokenizer) and ids[token] != before:
        problems.append(f"{base.name}/tokenizer.json: {token} gets id {ids[token]}, not {before}: its ids have gaps")
    if config is not None and ids.get(IMAGE_TOKEN) != config.image_token_id:
        problems.append(
            f"{base.name}/config.json: image_token_id is {config.image_token_id}, the tokenizer has {IMAGE_TOKEN} at "
            f"{ids.get(IMAGE_TOKEN)}"
        )
    if rows is not None:
        _compare_rows(base, token, before, len(tokenizer), rows, problems, notes)
    return tokenizer


def _compare_rows(
    base: Path, token: str, before: int, after: int, rows: int, problems: list[str], notes: list[str]
) -> None:
    size = f"{before} tokens" if before == after else f"{before} tokens, {after} with {token}"
    if rows < after:
        problems.append(
            f"{base.name}/tokenizer.json: has {size}, the embedding of the weights has only {rows} rows: they were "
            "trained with another tokenizer"
        )
    elif rows > after:
        notes.append(
            f"the embedding has {rows} rows, the tokenizer {size}: the rest was taken for padding; EditReward's own "
            f"training leaves exactly {after}"
        )


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, chat_template: str, folder: Path) -> None:
    """Write ``tokenizer.json``, ``tokenizer_config.json`` and ``chat_template.jinja``."""
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    config = {key: value for key, value in json.loads(file.read_bytes()).items() if key not in _LOADING_FLAGS}
    write_json(file, config)


def read_preprocessor(
    base: Path,
    min_pixels: int | None,
    max_pixels: int | None,
    config: Config | None,
    problems: list[str],
) -> dict[str, Any] | None:
    """``preprocessor_config.json`` with explicit size rules, which ``min_pixels`` and ``max_pixels`` override.

    ``size.shortest_edge`` and ``size.longest_edge`` are areas in pixels, as Qwen's image processor means them.
    """
    file = base / PREPROCESSOR
    raw = read_json(file, problems, label=_where(file))
    if raw is None:
        return None
    size = raw["size"] if isinstance(raw.get("size"), dict) else {}
    smallest = _first_given(min_pixels, raw.get("min_pixels"), size.get("shortest_edge"))
    largest = _first_given(max_pixels, raw.get("max_pixels"), size.get("longest_edge"))
    preprocessor = {key: value for key, value in raw.items() if key not in ("min_pixels", "max_pixels")}
    preprocessor["size"] = {"shortest_edge": smallest, "longest_edge": largest}
    preprocessor.setdefault("resample", _BICUBIC)
    own_problems = [
        f"{_where(file)}: {problem}"
        for problem in (
            *image_size_problems(raw),
            *_size_problems(smallest, largest),
            *_other_problems(preprocessor),
        )
    ]
    if config is not None:
        vision = config.vision_config
        rules = {"patch_size": vision.patch_size, "merge_size": vision.spatial_merge_size}
        rules["temporal_patch_size"] = vision.temporal_patch_size
        own_problems += [
            f"{_where(file)}: {key} is {raw.get(key)}, config.json says {value}"
            for key, value in rules.items()
            if raw.get(key) != value
        ]
    problems += own_problems
    return None if own_problems else preprocessor


def read_limits(base: Path) -> tuple[int, int] | None:
    """The smallest and the largest area of the base's image processor; None unless it states both."""
    raw = read_json(base / PREPROCESSOR, []) or {}
    size = raw["size"] if isinstance(raw.get("size"), dict) else {}
    smallest = _first_given(raw.get("min_pixels"), size.get("shortest_edge"))
    largest = _first_given(raw.get("max_pixels"), size.get("longest_edge"))
    return (smallest, largest) if type(smallest) is int and type(largest) is int else None


def video_preprocessor(preprocessor: dict[str, Any], kind: str) -> dict[str, Any]:
    """A ``video_preprocessor_config.json`` for a base without one: vLLM requires it, and no score depends on it."""
    keys = ("patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std", "processor_class", "size")
    return {key: preprocessor[key] for key in keys if key in preprocessor} | {"video_processor_type": kind}


def _first_given(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _size_problems(smallest: object, largest: object) -> list[str]:
    if type(smallest) is int and type(largest) is int and smallest > largest:
        return [f"min_pixels {smallest} is above max_pixels {largest}"]
    return [
        f"size.{edge} is {value}, must be an area in pixels; {flag} sets it"
        for edge, flag, value in (
            ("shortest_edge", "--min-pixels", smallest),
            ("longest_edge", "--max-pixels", largest),
        )
        if type(value) is not int or value < 1
    ]


def _other_problems(preprocessor: dict[str, Any]) -> list[str]:
    problems = []
    if resample_name(preprocessor["resample"]) not in RESAMPLE_NAMES.values():
        problems.append(f"resample is {preprocessor['resample']}, must be one of {list(RESAMPLE_NAMES)}")
    # Without these, Qwen's image processor falls back to the numbers of an older family.
    for key in ("image_mean", "image_std"):
        if key not in preprocessor:
            problems.append(f"{key}: missing")
        elif not three_numbers(preprocessor[key]):
            problems.append(f"{key} is {preprocessor[key]!r}, must be a list of three numbers")
    return problems


def image_rules(preprocessor: dict[str, Any]) -> dict[str, Any]:
    """The manifest's ``image`` for the result of ``read_preprocessor``."""
    size = preprocessor["size"]
    return {
        "min_pixels": size["shortest_edge"],
        "max_pixels": size["longest_edge"],
        "resample": resample_name(preprocessor["resample"]),
    }


def _where(file: Path) -> str:
    return f"{file.parent.name}/{file.name}"
