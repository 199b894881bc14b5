"""Fetches `prometheus` and `promtool` for the tests, unless they are on PATH: unpacks Debian's package beside Python.

Nothing is installed: apt downloads the package, and it is unpacked into this interpreter's own environment, which needs
no root. If apt has no package lists, they are fetched into a temporary folder. Running it again is harmless.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

PACKAGE = "prometheus"
PROGRAMS = ("prometheus", "promtool")
ADVICE = "install Prometheus 2.42 or later, which brings promtool, on PATH (Debian: apt-get install prometheus)"

_UNPACKED = Path(sys.prefix) / PACKAGE


def find(program: str) -> Path:
    """Return the program on PATH, or the fetched one. Raises FileNotFoundError, which says what to install."""
    path = shutil.which(program) or shutil.which(program, path=str(_UNPACKED / "usr/bin"))
    if path is None:
        raise FileNotFoundError(f"{program} is not here: {ADVICE}")
    return Path(path)


def fetch(into: Path) -> None:
    """Unpack Debian's package into a folder. Raises CalledProcessError or OSError when it cannot be fetched."""
    with tempfile.TemporaryDirectory(dir=into.parent) as folder:
        work = Path(folder)
        try:
            _apt("download", PACKAGE, cwd=work)
        except subprocess.CalledProcessError:  # no package lists, or stale ones: try with fresh lists
            own = [f"Dir::State::Lists={work}/lists", f"Dir::Cache={work}/cache"]
            for name in ("lists/partial", "cache/archives/partial"):
                (work / name).mkdir(parents=True)
            _apt("update", cwd=work, options=own)
            _apt("download", PACKAGE, cwd=work, options=own)
        [package] = work.glob("*.deb")
        unpacked = work / "unpacked"
        _run("dpkg-deb", "--extract", str(package), str(unpacked), cwd=work)
        shutil.rmtree(into, ignore_errors=True)
        unpacked.rename(into)


def _apt(*words: str, cwd: Path, options: Sequence[str] = ()) -> None:
    # As root, apt would download as another user, who may not write here. For other users, the option has no effect.
    flags = [part for option in ("APT::Sandbox::User=root", *options) for part in ("-o", option)]
    _run("apt-get", *flags, *words, cwd=cwd)


def _run(*command: str, cwd: Path) -> None:
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True)  # noqa: S603 - no word is a caller's


def main() -> None:
    """Fetch the programs if they are missing. Failing to is reported but is no error: only some tests need them."""
    try:
        for program in PROGRAMS:
            find(program)
    except FileNotFoundError:
        print(f"fetching {PACKAGE} for the tests of rules and dashboard (once)")
        try:
            fetch(_UNPACKED)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", None) or error
            print(f"it could not be fetched: {reason}\n{ADVICE}", file=sys.stderr)


if __name__ == "__main__":
    main()
