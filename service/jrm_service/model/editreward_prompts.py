"""The templates that an imported EditReward checkpoint is asked with: the user's own, or the paper's (appendix C)."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from .editreward_heads import HEADS
from .files import read_json
from .manifest import INSTRUCTION

REWARD_TOKEN = "<|Reward|>"  # noqa: S105 - a vocabulary entry

_THEIR_PLACEHOLDER = "{text_prompt}"


def default_prompts() -> dict[str, str]:
    """Dimension -> the paper's C.1 or C.2 up to the line of the instruction, then a line that asks for the rating.

    The paper's words; typesetting undone: straight quotes, two asterisks for bold.
    """
    folder = resources.files("jrm_service.model") / "templates"
    return {name: (folder / f"{name}.txt").read_text(encoding="utf-8") for name in HEADS}


def read_prompts(file: Path, problems: list[str], notes: list[str]) -> dict[str, str] | None:
    """A JSON object, dimension -> template with one ``{instruction}`` and, after it, one ``<|Reward|>``; None if wrong.

    A template is plain text: every brace but the placeholder's is itself.
    """
    raw = read_json(file, problems)
    if raw is None:
        return None
    found = [f"{file.name}: {name}: missing" for name in HEADS if name not in raw]
    known = ", ".join(HEADS)
    found += [f"{file.name}: {name}: not a dimension of EditReward ({known})" for name in raw if name not in HEADS]
    for name in HEADS:
        if name in raw:
            found += [f"{file.name}: {name}: {problem}" for problem in _template_problems(raw[name])]
    problems += found
    if found:
        return None
    # Left over from a template for str.format: allowed, for braces may be meant, but the model would see both.
    notes += [f"{file.name}: {name}: holds '{{{{', which stays two braces" for name in HEADS if "{{" in raw[name]]
    return {name: raw[name] for name in HEADS}


def _template_problems(template: object) -> list[str]:
    if not isinstance(template, str):
        return ["must be a text"]
    problems = []
    if (count := template.count(REWARD_TOKEN)) != 1:
        problems.append(f"holds {REWARD_TOKEN} {count} times, must be exactly once")
    if (count := template.count(INSTRUCTION)) != 1:
        problems.append(f"holds {INSTRUCTION} {count} times, must be exactly once")
    if _THEIR_PLACEHOLDER in template:
        problems.append(f"holds {_THEIR_PLACEHOLDER}, EditReward's placeholder; ours is {INSTRUCTION}")
    if not problems and template.index(INSTRUCTION) > template.index(REWARD_TOKEN):
        problems.append(f"{INSTRUCTION} stands after {REWARD_TOKEN}, which cannot see it")
    return problems
