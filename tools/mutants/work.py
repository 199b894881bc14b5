"""Runs mutmut on one module, in a folder of its own, and reads what became of the mutants."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from .tables import Change, Module

_ROOT = Path(__file__).parents[2]
_WORK = _ROOT / "out/mutants"
_PLUGINS = ("pytest_timeout", "_hypothesis_pytestplugin", "tools.mutants.pytest_plugin")
_KILLED = {1, 3}  # pytest's exit codes for tests that failed, and for an error of its own
_HUNG = {-24, 24, 36, 152, 255}  # mutmut's for a mutant that it had to stop


@dataclass(frozen=True)
class Mutant:
    """One change: of ``function``, ``line`` became ``changed``; and whether the tests failed, or did not end."""

    function: str
    line: str
    changed: str
    failed: bool
    hung: bool

    @property
    def change(self) -> Change:
        """What ``survivors.toml`` knows it by."""
        return self.function, self.line, self.changed


def run(module: Module) -> list[Mutant]:
    """Try every mutant of a module anew. Raises CalledProcessError when its tests fail without any."""
    top, package, *_ = Path(module.path).parts
    source = Path("src", Path(module.path).relative_to(top))
    dotted = ".".join(source.with_suffix("").parts[1:])
    patterns = [f"{dotted}.x*{function}__mutmut_*" for function in module.functions]
    work = _WORK / module.name
    shutil.rmtree(work, ignore_errors=True)
    (work / "src").mkdir(parents=True)
    # mutmut knows packages under src/. It copies them and the tests to mutants/, beside these links, and works there.
    (work / "src" / package).symlink_to(_ROOT / top / package)
    (work / "tests").symlink_to(_ROOT / "tests")
    settings = {
        "source_paths": [f"src/{package}"],
        "only_mutate": [str(source)],
        "pytest_add_cli_args": ["-p", "no:cacheprovider", *(f"-p{plugin}" for plugin in _PLUGINS), "--timeout=0"],
        "pytest_add_cli_args_test_selection": module.tests,
        "timeout_constant": 3.0,
        "timeout_multiplier": 10.0,
        "use_git_change_detection": False,
    }
    table = "\n".join(f"{key} = {json.dumps(value)}" for key, value in settings.items())
    (work / "pyproject.toml").write_text(f"{(_ROOT / 'pyproject.toml').read_text()}\n[tool.mutmut]\n{table}\n")
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": os.pathsep.join(str(_ROOT / part) for part in ("client", "service", "training", ".")),
    }
    # Three for two cores: what hangs waits for its end without one.
    mutmut = [str(Path(sys.executable).with_name("mutmut")), "run", "--max-children", "3", *patterns]
    subprocess.run(mutmut, cwd=work, env=environment, check=True)  # noqa: S603 - our own arguments
    with contextlib.chdir(work):  # where mutmut looks for its results
        return _read(source, patterns)


def _read(source: Path, patterns: list[str]) -> list[Mutant]:
    from mutmut.mutation.data import SourceFileMutationData
    from mutmut.mutation.diff_apply import get_diff_for_mutant
    from mutmut.utils.format_utils import orig_function_and_class_names_from_key

    data = SourceFileMutationData(path=source)
    data.load()
    mutants = []
    for key, code in data.exit_code_by_key.items():
        if patterns and not any(fnmatch(key, pattern) for pattern in patterns):
            continue
        function, owner = orig_function_and_class_names_from_key(key)
        diff = get_diff_for_mutant(key, path=source).splitlines()[2:]
        line, changed = (" ".join(text[1:].strip() for text in diff if text.startswith(sign)) for sign in "-+")
        mutants.append(
            Mutant(f"{owner}.{function}" if owner else function, line, changed, code in _KILLED, code in _HUNG)
        )
    return mutants
