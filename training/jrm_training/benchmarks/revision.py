"""Detects the revision of a data set from what is found beside its files."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from pathlib import Path

UNKNOWN = "unknown"

_COMMIT = re.compile(r"[0-9a-f]{40}")


def revision(paths: Iterable[Path]) -> str:
    """Return the commit that files were downloaded at, ``"unknown"``, or several, where they do not agree.

    It is found in three places: the hub's cache (``snapshots/COMMIT/…``), the metadata that the hub's client writes
    beside files that it downloads to a folder (``.cache/huggingface/download/….metadata``), and a git checkout.
    """
    found = {_of_cache(path) or _of_download(path) or _of_checkout(path) or UNKNOWN for path in paths}
    return ", ".join(sorted(found)) or UNKNOWN


def _of_cache(path: Path) -> str | None:
    parts = path.absolute().parts  # not resolved: the file there is a link to a blob
    for before, part in itertools.pairwise(parts):
        if before == "snapshots" and _COMMIT.fullmatch(part):
            return part
    return None


def _of_download(path: Path) -> str | None:
    path = path.absolute()
    for folder in path.parents:
        beside = folder / ".cache" / "huggingface" / "download" / f"{path.relative_to(folder)}.metadata"
        commit = _first_line(beside)
        if commit is not None and _COMMIT.fullmatch(commit):
            return commit
    return None


def _of_checkout(path: Path) -> str | None:
    """The commit of HEAD; files may have been changed since."""
    git = next((folder / ".git" for folder in path.absolute().parents if (folder / ".git").is_dir()), None)
    head = None if git is None else _first_line(git / "HEAD")
    if git is None or head is None:
        return None
    if not head.startswith("ref: "):
        return head if _COMMIT.fullmatch(head) else None
    reference = head.removeprefix("ref: ")
    commit = _first_line(git / reference)
    if commit is None:
        try:
            packed = (git / "packed-refs").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        commit = next((line.split()[0] for line in packed.splitlines() if line.endswith(f" {reference}")), None)
    return commit if commit is not None and _COMMIT.fullmatch(commit) else None


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").partition("\n")[0].strip()
    except OSError:
        return None
