"""A Dockerfile as the tests read it: stages of instructions, continued lines joined, comments gone."""

import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass
class Stage:
    """``FROM base AS name`` and what follows."""

    base: str
    name: str
    instructions: list[str] = field(default_factory=list)

    def of(self, keyword: str) -> list[str]:
        """The arguments of each instruction of one kind."""
        return [rest for word, _, rest in (line.partition(" ") for line in self.instructions) if word == keyword]


@dataclass
class Dockerfile:
    """``arguments``: those before the first stage, with their defaults."""

    arguments: dict[str, str]
    stages: dict[str, Stage]


def read(path: Path = ROOT / "Dockerfile") -> Dockerfile:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    instructions = [re.sub(r"\s+", " ", line).strip() for line in joined.splitlines() if line.strip()]
    parsed = Dockerfile({}, {})
    stage = None
    for line in instructions:
        if match := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            stage = parsed.stages[match[2]] = Stage(match[1], match[2])
        elif stage is None:
            name, _, value = line.removeprefix("ARG ").partition("=")
            parsed.arguments[name] = value
        else:
            stage.instructions.append(line)
    return parsed
