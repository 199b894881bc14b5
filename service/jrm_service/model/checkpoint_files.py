"""Readers and writers of a checkpoint's small files, for opening, importing and writing.

A reader adds its problems, with the file at fault, to the list it is given.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jrm_client import strict_json
from jrm_service.errors import one_line as one_line

RESAMPLE_NAMES = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's resampling numbers, as ``preprocessor_config.json`` has them, and the manifest's names."""

IMAGE_PROCESSORS = ("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2VLImageProcessorPil")
"""transformers' classes that do the same as our preprocessing, as ``preprocessor_config.json`` names them."""


def resample_name(value: object) -> object:
    """The manifest's name for a resampling number of ``preprocessor_config.json``; other values stay unchanged."""
    return RESAMPLE_NAMES.get(value, value) if type(value) is int else value


def image_size_problems(raw: dict[str, Any]) -> list[str]:
    """Problems of a ``preprocessor_config.json`` whose sizes or class mean something else than Qwen's smart resize."""
    size = raw.get("size")
    if size is not None and not isinstance(size, dict):
        return [f"size is {size!r}, must be an object with shortest_edge and longest_edge, areas in pixels"]
    size = size or {}
    problems = [f"size.{key}: not a rule of Qwen's image processor" for key in size if key not in _EDGES]
    kind = raw.get("image_processor_type")
    if kind is not None and kind not in IMAGE_PROCESSORS:
        problems.append(f"image_processor_type is {kind!r}, must be one of {', '.join(IMAGE_PROCESSORS)}")
    return problems


def three_numbers(value: object) -> bool:
    """Whether a mean or std is a list with a number for each channel, none of them a boolean."""
    return isinstance(value, list) and len(value) == 3 and all(type(item) in (int, float) for item in value)


_EDGES = ("shortest_edge", "longest_edge")


TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"),
    *("added_tokens.json", "special_tokens_map.json"),
)
"""All files that transformers may take token ids from."""


def read_json(file: Path, problems: list[str], *, label: str | None = None) -> dict[str, Any] | None:
    """Read a JSON object without repeated keys; ``label`` is what problems call the file, by default its name."""
    label = label or file.name or str(file)
    if file.is_char_device() or file.is_block_device():
        problems.append(f"{label}: a device, which may never end")
        return None
    try:
        value = strict_json.loads(file.read_bytes())
    except FileNotFoundError:
        problems.append(f"{label}: missing")
    except OSError as error:
        problems.append(f"{label}: cannot be read ({error.strerror})")
    except ValueError as error:
        problems.append(f"{label}: {error}")
    else:
        if isinstance(value, dict):
            return value
        problems.append(f"{label}: must be a JSON object")
    return None


def read_chat_template(folder: Path, problems: list[str], *, prefix: str = "") -> str | None:
    """Read the chat template from where transformers looks: chat_template.jinja, then .json, tokenizer_config.json."""
    jinja = folder / "chat_template.jinja"
    if jinja.exists():
        try:
            return jinja.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            problems.append(f"{prefix}chat_template.jinja: cannot be read ({one_line(error)})")
            return None
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).exists():
            template = (read_json(folder / name, problems, label=prefix + name) or {}).get("chat_template")
            if isinstance(template, list):  # several by name, of which transformers takes this one
                defaults = [item for item in template if isinstance(item, dict) and item.get("name") == "default"]
                template = defaults[0].get("template") if defaults else None
                if not isinstance(template, str):
                    problems.append(f"{prefix}{name}: no chat_template of its list is called 'default'")
                    return None
            if isinstance(template, str):
                return template
    problems.append(f"{prefix}chat_template.jinja: missing, and no chat_template in tokenizer_config.json")
    return None


def tokenizer_files_are_plain(folder: Path, problems: list[str], *, prefix: str = "") -> bool:
    """Whether the tokenizer's JSON files are unambiguous: of repeated keys transformers silently takes the last."""
    before = len(problems)
    for name in TOKENIZER_FILES:
        if name.endswith(".json") and (folder / name).exists():
            read_json(folder / name, problems, label=prefix + name)
    return len(problems) == before


def validation_problems(label: str, error: ValidationError) -> list[str]:
    """The problems that pydantic found in a file, one line for each key."""
    problems = []
    for item in error.errors(include_url=False):
        key = ".".join(str(piece) for piece in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        problems.append(f"{label}: {key}: {message}" if key else f"{label}: {message}")
    return problems


def write_json(file: Path, value: object) -> None:
    """Write indented UTF-8 JSON, and create the folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
