"""The installed version of a package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed(package: str) -> str | None:
    """Return a package's version, or None if it is not installed. Imports nothing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
