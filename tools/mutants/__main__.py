"""``make mutants``: changes the pure core in small ways, and counts the changes that its tests notice.

``python -m tools.mutants [NAME ...]`` prints killed of total by module: of all in ``modules.toml``, or of those named
(``planner``, ``queue``, …). It fails below 90 % in a module, and when a change that went unnoticed is not in
``survivors.toml`` or the other way round.
"""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime

from .tables import Module, Survivor, modules, survivors
from .work import Mutant, run

LEAST = 0.9


def main(names: list[str]) -> int:
    """Run and report; 1 if anything is amiss."""
    chosen = [module for module in modules() if not names or module.name in names]
    if unknown := set(names) - {module.name for module in chosen}:
        print(f"not in modules.toml: {', '.join(sorted(unknown))}")
        return 1
    known = survivors()
    lines, faults = [], []
    for module in chosen:
        began = time.monotonic()
        line, wrong = _judged(module, run(module), [each for each in known if each.module == module.path])
        lines.append(f"{line}  {time.monotonic() - began:.0f} s")
        faults += wrong
        print(f"\n{lines[-1]}", flush=True)
    print(f"\n{datetime.now(UTC):%Y-%m-%d}: killed of total, without equivalent ones", *lines, "", *faults, sep="\n")
    return bool(faults)


def _judged(module: Module, mutants: list[Mutant], known: list[Survivor]) -> tuple[str, list[str]]:
    """A line of the table, and what is wrong."""
    alive = [mutant for mutant in mutants if not mutant.failed and not mutant.hung]
    listed = {survivor.change: survivor for survivor in known}
    equivalent = sum(mutant.change in listed and listed[mutant.change].equivalent for mutant in alive)
    total, killed = len(mutants) - equivalent, len(mutants) - len(alive)
    faults = [
        f"{module.path}, {mutant.function}: no test notices\n  - {mutant.line}\n  + {mutant.changed}"
        for mutant in alive
        if mutant.change not in listed
    ]
    unseen = listed.keys() - {mutant.change for mutant in alive}
    faults += [f"survivors.toml: {module.path}, {' / '.join(change)}: killed, or no such mutant" for change in unseen]
    if killed < LEAST * total:
        faults.append(f"{module.path}: {killed} of {total} are fewer than {LEAST:.0%}")
    hung = sum(mutant.hung for mutant in mutants)
    share = f"{killed:4} of {total:3}  {killed / total:6.1%}"
    return f"{module.path:42}{share}  {hung:3} of them hung  {equivalent:3} equivalent", faults


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
