"""What plugin files read of the environment."""

import os
from typing import Any

import pytest

from jrm_client.trainers import environment
from jrm_service.settings import Settings
from support.cases import each


def test_nothing_is_set() -> None:
    assert environment.options() == {}
    with pytest.raises(ValueError, match="JRM_URL: not set"):
        environment.url()


@each(
    "variable, value, expected",
    [
        ("JRM_EDITED", "edit", {"edited": "edit"}),
        ("JRM_EDITED", "os.path:join", {"edited": os.path.join}),
        ("JRM_SOURCE", "images", {"source": "images"}),
        ("JRM_SOURCE", "none", {"source": None}),
        ("JRM_INSTRUCTION", "prompt", {"instruction": "prompt"}),
        ("JRM_SOURCE_ROOT", "/data", {"source_root": "/data"}),
        ("JRM_TIMEOUT", "90", {"timeout": 90.0}),
        ("JRM_FINGERPRINT", "f00d", {"pin_fingerprint": "f00d"}),
        ("JRM_FINGERPRINT", "", {}),
    ],
)
def test_a_variable(variable: str, value: str, expected: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(variable, value)
        assert environment.options() == expected


def test_what_a_configuration_gives_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JRM_SOURCE", "images")
    monkeypatch.setenv("JRM_TIMEOUT", "90")
    assert environment.options({"source": "picture", "timeout": None}) == {"source": "picture", "timeout": 90.0}


@each(
    "variable, value, error, message",
    [
        ("JRM_EDITED", "no_such_module:draw", ImportError, "JRM_EDITED.*no_such_module.*expected module:function"),
        ("JRM_EDITED", "os.path:no_such_function", ImportError, "no_such_function.*expected module:function"),
        ("JRM_EDITED", "os:sep", TypeError, "JRM_EDITED.*os:sep is a str; expected a function"),
        ("JRM_TIMEOUT", "soon", ValueError, "JRM_TIMEOUT.*'soon': expected seconds"),
    ],
)
def test_wrong_values_are_named(variable: str, value: str, error: type[Exception], message: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(variable, value)
        with pytest.raises(error, match=message):
            environment.options()


def test_the_server_leaves_them_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in environment.__doc__.split("``")[1::2]:
        if variable.startswith("JRM_"):
            monkeypatch.setenv(variable, "x")
    assert Settings().port == 8000
