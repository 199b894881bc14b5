"""The reward file for OpenRLHF, loaded and called as its executor does."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import jrm_client.trainers
from client.scripted_server import ScriptedServer, reward_of
from jrm_client import ScoreError

Serve = Callable[..., ScriptedServer]
REWARD_FILE = Path(jrm_client.trainers.__file__).with_name("openrlhf.py")


def picture(text: str) -> bytes:
    return text.removesuffix("</s>").encode()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.png"
    path.write_bytes(b"S")
    return path


@pytest.fixture
def reward_func(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("JRM_URL", serve().url)
    monkeypatch.setenv("JRM_EDITED", f"{__name__}:picture")
    spec = importlib.util.spec_from_file_location("reward_func", REWARD_FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.reward_func


def test_rewards(reward_func: Any, source: Path) -> None:
    label = {"source": str(source), "instruction": "red"}
    for labels in ([label, label], [json.dumps(label)] * 2):
        reply = reward_func(["draw: A</s>", "draw: B</s>"], ["draw: "] * 2, labels)
        expected = torch.tensor([reward_of(b"A"), reward_of(b"B")])
        torch.testing.assert_close(reply["rewards"], expected)
        torch.testing.assert_close(reply["scores"], expected)
        torch.testing.assert_close(reply["extra_logs"]["visual_quality"], expected - 1)


def test_failures_raise(reward_func: Any, source: Path) -> None:
    label = {"source": str(source), "instruction": "red"}
    with pytest.raises(ScoreError):
        reward_func(["draw: BAD</s>"], ["draw: "], [label])
    with pytest.raises(ValueError, match="does not begin with its prompt"):
        reward_func(["A</s>"], ["draw: "], [label])
    for wrong in ("red", "", "[1]", None, "{"):
        with pytest.raises(ValueError, match=r"labels\[0\]: expected a JSON object"):
            reward_func(["draw: A</s>"], ["draw: "], [wrong])
    with pytest.raises(ValueError, match='source: no column "source"'):
        reward_func(["draw: A</s>"], ["draw: "], [{"instruction": "red"}])
