"""Which version of a package is installed here."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed(package: str) -> str | None:
    """Its version, or None when it is not installed. Imports nothing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
