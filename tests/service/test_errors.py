"""The tree in the module's docstring is the tree of the classes."""

import re

from jrm_service import errors


def test_the_docstring_shows_every_error_under_its_base() -> None:
    shown: dict[str, int] = {
        match[2]: len(match[1]) // 4
        for line in (errors.__doc__ or "").splitlines()
        if (match := re.match(r"([│├└─ ]*)([A-Z]\w+)", line)) and match[2] in vars(errors)
    }
    defined = {
        name: len(kind.__mro__) - len(errors.JRMError.__mro__)
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.JRMError)
    }
    assert shown == defined
