"""What a run measured, by layout, as a JSON file: a layout can be measured again without the others."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from jrm_service.bench.rounds import Rates
from jrm_service.bench.server import Load


@dataclass(frozen=True)
class Measured:
    """One layout: the ways to score, the engine by tokens of a row and by edits of a group, the service by callers."""

    compared: Rates
    rows: Rates
    sizes: Rates
    loads: list[Load]


def save(results: dict[str, Measured], file: Path) -> None:
    """Write the results; layouts that the file has and ``results`` has not stay in it."""
    kept = {layout: one for layout, one in read(file).items() if layout not in results} if file.exists() else {}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({layout: asdict(one) for layout, one in (kept | results).items()}, indent=1) + "\n")


def read(file: Path) -> dict[str, Measured]:
    """The results of a file that ``save`` wrote."""
    return {
        layout: Measured(
            compared=Rates(**one["compared"]),
            rows=Rates(**one["rows"]),
            sizes=Rates(**one["sizes"]),
            loads=[Load(**level) for level in one["loads"]],
        )
        for layout, one in json.loads(file.read_text()).items()
    }
