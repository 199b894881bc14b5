"""The reward functions for TRL, called as its GRPOTrainer calls them. `make test-trainers` runs the trainer itself."""

import asyncio
import inspect
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from client.scripted_server import Hang, ScriptedServer, refusal, reward_of
from jrm_client import APIStatusError, APITimeoutError, ScoreError
from jrm_client.trainers.trl import async_jrm_reward, jrm_reward
from support.cases import each

Serve = Callable[..., ScriptedServer]
both = pytest.mark.parametrize("make", [jrm_reward, async_jrm_reward])


class Log:
    """TRL's two callbacks."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.extra: dict[str, list[Any]] = {}

    def columns(self) -> dict[str, Any]:
        return {"log_metric": self.metrics.__setitem__, "log_extra": self.extra.__setitem__}


def call(function: Any, *completions: Any, **columns: Any) -> Any:
    """What a trainer does with a step, for both kinds of function."""
    rewards = function(
        prompts=["draw"] * len(completions),
        completions=list(completions),
        completion_ids=[[1]] * len(completions),
        source=[b"S"] * len(completions),
        instruction=["red"] * len(completions),
        trainer_state=None,
        **columns,
    )
    return asyncio.run(rewards) if inspect.iscoroutine(rewards) else rewards


@both
def test_a_reward_for_each_completion(serve: Serve, make: Any) -> None:
    log = Log()
    function = make(serve().url, edited=str.encode)
    assert inspect.iscoroutinefunction(function) == (make is async_jrm_reward)
    assert call(function, "A", "B", "A", **log.columns()) == [reward_of(b"A"), reward_of(b"B"), reward_of(b"A")]
    mean = (2 * reward_of(b"A") + reward_of(b"B")) / 3
    expected = {"jrm/without_reward": 0, "jrm/instruction_following": mean + 1, "jrm/visual_quality": mean - 1}
    assert log.metrics == pytest.approx(expected)
    assert log.extra == {"jrm/error": ["", "", ""]}


@both
def test_a_failed_candidate_is_none_and_the_reason_is_logged(serve: Serve, make: Any) -> None:
    log = Log()
    function = make(serve().url, edited=lambda text: text.encode() or None)
    assert call(function, "A", "BAD", "", **log.columns()) == [reward_of(b"A"), None, None]
    assert log.metrics["jrm/without_reward"] == pytest.approx(2 / 3)
    assert log.metrics["jrm/visual_quality"] == pytest.approx(reward_of(b"A") - 1)
    [fine, failed, undrawn] = log.extra["jrm/error"]
    assert (fine, undrawn) == ("", "no picture")
    assert failed.startswith("invalid_image: ")


@both
def test_all_may_fail(serve: Serve, make: Any) -> None:
    log = Log()
    assert call(make(serve().url, edited=str.encode), "BAD", "BAD", **log.columns()) == [None, None]
    assert log.metrics == {"jrm/without_reward": 1}


@both
def test_on_error_raise(serve: Serve, make: Any) -> None:
    function = make(serve().url, edited=lambda text: text.encode() or None, on_error="raise")
    with pytest.raises(ScoreError):
        call(function, "A", "BAD")
    with pytest.raises(ValueError, match=r"completions\[1\]: edited gave None"):
        call(function, "A", "")


@both
def test_what_is_no_verdict_on_a_candidate_raises(serve: Serve, make: Any) -> None:
    with pytest.raises(APIStatusError):
        call(make(serve(refusal(401, "unauthorized")).url, edited=str.encode), "A")
    with pytest.raises(APITimeoutError):
        call(make(serve(Hang()).url, edited=str.encode, timeout=0.1), "A")


@both
def test_edited_is_asked_for_at_the_first_call(serve: Serve, make: Any) -> None:
    server = serve()
    with pytest.raises(ValueError, match="edited: not given"):
        call(make(server.url), "A")
    assert server.requests == []


@both
def test_a_misspelt_option_is_named(make: Any) -> None:
    with pytest.raises(TypeError, match="no option is called 'sources'; there are edited, source, instruction"):
        make("http://localhost:8000", edited=str.encode, sources="image")


def test_conversations_reach_the_function_as_they_are(serve: Serve) -> None:
    function = jrm_reward(serve().url, edited=lambda messages: messages[0]["content"].encode())
    assert call(function, [{"role": "assistant", "content": "A"}]) == [reward_of(b"A")]


def test_a_function_can_be_pickled(serve: Serve) -> None:
    function = pickle.loads(pickle.dumps(jrm_reward(serve().url, edited=str.encode)))
    assert call(function, "A") == [reward_of(b"A")]


@each(
    "version, refused",
    [("0.24.0", True), ("1.5.1", True), ("1.6.0", False), ("1.10.0.dev0", False), ("1.6rc1", False), ("2.0", False)],
)
def test_a_trl_that_makes_zero_of_none_is_refused(tmp_path: Path, version: str, refused: bool) -> None:
    installed = tmp_path / version / f"trl-{version}.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: trl\nVersion: {version}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(installed.parent)
        jrm_reward("http://localhost:8000", on_error="raise")
        with pytest.raises(RuntimeError, match="counts None as a reward of 0") if refused else nullcontext():
            jrm_reward("http://localhost:8000")
