"""The environment variables that configure a reward which the trainer loads by path or name, with few options or none.

===================  ===================================================================================================
``JRM_URL``          the server; several with commas
``JRM_API_KEY``      sent as a bearer token
``JRM_EDITED``       the column of the edited images, or ``module:function``, which turns a completion into an image
``JRM_SOURCE``       the column of the source images; ``none`` for a text-to-image checkpoint
``JRM_INSTRUCTION``  the column of the instructions
``JRM_SOURCE_ROOT``  where relative paths of images begin
``JRM_TIMEOUT``      seconds for a call
``JRM_FINGERPRINT``  the checkpoint that the run is pinned to; by default that of the first reply
===================  ===================================================================================================
"""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

_OPTIONS = {
    "JRM_EDITED": "edited",
    "JRM_SOURCE": "source",
    "JRM_INSTRUCTION": "instruction",
    "JRM_SOURCE_ROOT": "source_root",
    "JRM_TIMEOUT": "timeout",
    "JRM_FINGERPRINT": "pin_fingerprint",
}


def url() -> str:
    """Return ``JRM_URL``. Raises ValueError if it is not set: a run must not use just any server that listens."""
    value = os.environ.get("JRM_URL", "").strip()
    if not value:
        raise ValueError("JRM_URL: not set; it is the URL of the reward server, such as http://reward-server:8000")
    return value


def options(settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the options of a ``Scorer`` from ``settings``, by their names, or else from the environment.

    Raises ValueError, TypeError or ImportError that names the variable or the option at fault.
    """
    values: dict[str, Any] = {}
    for variable, name in _OPTIONS.items():
        value = (settings or {}).get(name)
        if value is None:
            value = os.environ.get(variable) or None
        if value is not None:
            read = _READ.get(name)
            values[name] = read(value, f"{name} (or {variable})") if read else value
    return values


def _edited(value: Any, name: str) -> Any:
    if not isinstance(value, str) or ":" not in value:
        return value
    try:
        function = pkgutil.resolve_name(value)
    except (ImportError, AttributeError, ValueError) as error:
        raise ImportError(f"{name}: {value}: {error}; expected module:function, the module on PYTHONPATH") from error
    if not callable(function):
        raise TypeError(f"{name}: {value} is a {type(function).__name__}; expected a function")
    return function


def _source(value: Any, _: str) -> Any:
    return None if value == "none" else value


def _timeout(value: Any, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name}={value!r}: expected seconds") from None


_READ: Mapping[str, Callable[[Any, str], Any]] = {"edited": _edited, "source": _source, "timeout": _timeout}
