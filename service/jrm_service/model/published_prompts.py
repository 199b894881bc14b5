"""The prompt templates of an imported checkpoint: the user's own, or those in the package."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from .checkpoint_files import read_json
from .manifest import INSTRUCTION

REWARD_TOKEN = "<|Reward|>"  # noqa: S105 - a vocabulary entry

_THEIR_PLACEHOLDER = "{text_prompt}"


def template_file(dimension: str) -> str:
    """The package's own template of a dimension."""
    folder = resources.files("jrm_service.model") / "templates"
    return (folder / f"{dimension}.txt").read_text(encoding="utf-8")


def read_prompts(
    file: Path, model: str, dimensions: Sequence[str], problems: list[str], notes: list[str]
) -> dict[str, str] | None:
    """The templates of a published ``model``, from a JSON object, dimension -> template; None if it has problems.

    Each has one ``{instruction}`` and, after it, one ``<|Reward|>``. It is plain text: braces other than the
    placeholder's are literal.
    """
    raw = read_json(file, problems)
    if raw is None:
        return None
    own_problems = [f"{file.name}: {name}: missing" for name in dimensions if name not in raw]
    known = ", ".join(dimensions)
    own_problems += [
        f"{file.name}: {name}: not a dimension of {model} ({known})" for name in raw if name not in dimensions
    ]
    for name in dimensions:
        if name in raw:
            own_problems += [f"{file.name}: {name}: {problem}" for problem in _template_problems(raw[name])]
    problems += own_problems
    if own_problems:
        return None
    # Probably left over from a template for str.format. Allowed, as it may be meant, but the model sees both braces.
    notes += [f"{file.name}: {name}: holds '{{{{', which stays two braces" for name in dimensions if "{{" in raw[name]]
    return {name: raw[name] for name in dimensions}


def _template_problems(template: object) -> list[str]:
    if not isinstance(template, str):
        return ["must be a text"]
    problems = []
    if (count := template.count(REWARD_TOKEN)) != 1:
        problems.append(f"holds {REWARD_TOKEN} {count} times, must be exactly once")
    if (count := template.count(INSTRUCTION)) != 1:
        problems.append(f"holds {INSTRUCTION} {count} times, must be exactly once")
    if _THEIR_PLACEHOLDER in template:
        problems.append(f"holds {_THEIR_PLACEHOLDER}, the placeholder of its own code; ours is {INSTRUCTION}")
    if not problems and template.index(INSTRUCTION) > template.index(REWARD_TOKEN):
        problems.append(f"{INSTRUCTION} stands after {REWARD_TOKEN}, which cannot see it")
    return problems
