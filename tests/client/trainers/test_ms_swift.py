"""The plugin file for ms-swift, loaded and called as ms-swift does. `make test-trainers` runs ms-swift itself."""

import asyncio
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import jrm_client.trainers
from client.scripted_server import ScriptedServer, reward_of
from jrm_client import ScoreError

Serve = Callable[..., ScriptedServer]
PLUGIN = Path(jrm_client.trainers.__file__).with_name("ms_swift.py")


def picture(text: str) -> bytes | None:
    return text.encode() or None


class AsyncORM:
    """ms-swift's base class."""

    def __init__(self, args: Any = None, **kwargs: Any) -> None:
        self.args = args


@pytest.fixture
def orms(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """ms-swift's table, after ``--external_plugins`` has been read."""
    rewards: Any = types.ModuleType("swift.rewards")
    rewards.AsyncORM, rewards.orms = AsyncORM, {}
    monkeypatch.setitem(sys.modules, "swift", types.ModuleType("swift"))
    monkeypatch.setitem(sys.modules, "swift.rewards", rewards)
    monkeypatch.setattr(sys, "path", [str(PLUGIN.parent), *sys.path])
    spec = importlib.util.spec_from_file_location("_swift_external_plugin", PLUGIN)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    table: dict[str, Any] = rewards.orms
    return table


def call(reward: Any, *completions: str) -> Any:
    rows = {"source": [b"S"] * len(completions), "instruction": ["red"] * len(completions)}
    return asyncio.run(reward(list(completions), trainer_state=None, messages=[[]] * len(completions), **rows))


def test_rewards(serve: Serve, orms: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JRM_URL", serve().url)
    monkeypatch.setenv("JRM_EDITED", f"{__name__}:picture")
    reward = orms["jrm"](args="args")
    assert isinstance(reward, AsyncORM)
    assert reward.args == "args"
    for _ in range(2):  # ms-swift makes an event loop for each step
        assert call(reward, "A", "B") == [reward_of(b"A"), reward_of(b"B")]
    with pytest.raises(ScoreError):
        call(reward, "A", "BAD")
    with pytest.raises(ValueError, match=r"completions\[1\]: edited gave None"):
        call(reward, "A", "")


def test_edited_is_asked_for_at_the_first_call(orms: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JRM_URL", "http://localhost:8000")
    with pytest.raises(ValueError, match=r"edited: not given.*JRM_EDITED"):
        call(orms["jrm"](), "A")


def test_our_files_hide_no_trainer(orms: dict[str, Any]) -> None:
    assert str(PLUGIN.parent) not in sys.path
