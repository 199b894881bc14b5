"""Many cases in one test."""

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest


def each(
    names: str | Sequence[str], cases: Iterable[Any], *, ids: Callable[[Any], str] | Sequence[str] = str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """As ``pytest.mark.parametrize``, but for one test that tries every case and reports each that fails by its name.

    For data that one assertion is checked against. Fixtures of function scope are made once and shared by the cases.
    """
    arguments = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    rows = [(case,) if isinstance(names, str) and len(arguments) == 1 else tuple(case) for case in cases]
    assert rows, "no case, no test"
    labels = [_label(row, ids) for row in rows] if callable(ids) else list(ids)

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(test)
        assert set(arguments) <= set(signature.parameters), f"{test.__name__} does not take {arguments}"
        shared = [parameter for name, parameter in signature.parameters.items() if name not in arguments]

        @functools.wraps(test)
        def tries_each(subtests: pytest.Subtests, **fixtures: Any) -> None:
            for label, row in zip(labels, rows, strict=True):
                with subtests.test(label):
                    test(**fixtures, **dict(zip(arguments, row, strict=True)))

        subtests = inspect.Parameter("subtests", inspect.Parameter.KEYWORD_ONLY)
        tries_each.__signature__ = signature.replace(parameters=[*shared, subtests])  # type: ignore[attr-defined]
        return tries_each

    return decorate


def _label(row: tuple[Any, ...], ids: Callable[[Any], str]) -> str:
    label = ", ".join(ids(value) for value in row)
    return label if len(label) <= 120 else f"{label[:119]}…"
