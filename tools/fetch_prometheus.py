"""Put `prometheus` and `promtool` within reach of the tests: those on PATH, or Debian's package unpacked beside Python.

Nothing is installed: the package is downloaded by apt and unpacked into this interpreter's own environment, which needs
no root. Where apt has no package lists, they are fetched into a temporary folder. Once is enough; again is harmless.
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
    """The program on PATH, or the one that was fetched. Raises FileNotFoundError, which says what to install."""
    found = shutil.which(program) or shutil.which(program, path=str(_UNPACKED / "usr/bin"))
    if found is None:
        raise FileNotFoundError(f"{program} is not here: {ADVICE}")
    return Path(found)


def fetch(into: Path) -> None:
    """Unpack Debian's package into a folder. Raises CalledProcessError or OSError when it cannot be had."""
    with tempfile.TemporaryDirectory(dir=into.parent) as folder:
        work = Path(folder)
        try:
            _apt("download", PACKAGE, cwd=work)
        except subprocess.CalledProcessError:  # no package lists, or old ones: with lists of our own it may be there
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
    # Root's apt would download as another user, who may not write here; nobody else's changes users at all.
    flags = [part for option in ("APT::Sandbox::User=root", *options) for part in ("-o", option)]
    _run("apt-get", *flags, *words, cwd=cwd)


def _run(*command: str, cwd: Path) -> None:
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True)  # noqa: S603 - no word is a caller's


def main() -> None:
    """Fetch what is not there. What cannot be fetched is said, and is no error: only some tests need it."""
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
