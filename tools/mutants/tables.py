"""What is mutated and by which tests it is judged (``modules.toml``), and what may survive (``survivors.toml``)."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

Change = tuple[str, str, str]
"""The function, its line, and what the line became: tells mutants of a module apart wherever the line stands."""

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Module:
    """A module to mutate, ``functions`` of it or all, and the test files that are run; paths from the root."""

    path: str
    tests: list[str]
    functions: list[str]

    @property
    def name(self) -> str:
        """What it is called on the command line."""
        return Path(self.path).stem


@dataclass(frozen=True)
class Survivor:
    """A change that no test notices, and why not. If ``equivalent``, none can."""

    module: str
    change: Change
    equivalent: bool
    reason: str


def modules() -> list[Module]:
    """The rows of ``modules.toml``."""
    table = tomllib.loads((_HERE / "modules.toml").read_text())
    return [Module(row["path"], row["tests"], row.get("functions", [])) for row in table["module"]]


def survivors() -> list[Survivor]:
    """The rows of ``survivors.toml``."""
    table = tomllib.loads((_HERE / "survivors.toml").read_text())
    return [
        Survivor(row["module"], (row["function"], row["line"], row["mutant"]), kind == "equivalent", row["reason"])
        for kind in ("equivalent", "unnoticed")
        for row in table.get(kind, [])
    ]
