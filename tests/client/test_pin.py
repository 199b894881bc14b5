"""One checkpoint for a whole run, over real sockets."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest

from client.scripted_server import Reply, Request, ScriptedServer, error_entry, refusal, reward_of, score_all
from jrm_client import FingerprintMismatch, JRMClient
from jrm_client.flow_grpo import jrm_reward, jrm_score

Serve = Callable[..., ScriptedServer]
Connect = Callable[..., JRMClient]


def updated(request: Request) -> Reply:
    """What a replica answers after the rolling update has reached it."""
    reply = score_all(request)
    reply.json["fingerprint"] = "beef"
    return reply


def test_the_first_reply_pins_and_a_later_one_of_another_checkpoint_raises(serve: Serve, connect: Connect) -> None:
    server = serve(score_all, then=updated)
    client = connect(server, pin_fingerprint=True)
    assert client.pinned_fingerprint is None
    assert client.score(b"S", b"A", "red").reward == reward_of(b"A")
    assert client.pinned_fingerprint == "f00d"
    for _ in range(2):
        with pytest.raises(FingerprintMismatch) as caught:
            client.score(b"S", b"A", "red", on_error="nan")
        assert (caught.value.replica, caught.value.pinned, caught.value.served) == (server.url, "f00d", "beef")
        assert caught.value.request_id == "req-7"
        assert all(word in str(caught.value) for word in (server.url, "f00d", "beef", "pin_fingerprint=False"))
    assert len(server.requests) == 3  # a mismatch is not retried


def test_a_fingerprint_that_is_given_holds_from_the_first_reply(serve: Serve, connect: Connect) -> None:
    server = serve(then=updated)
    assert connect(server, pin_fingerprint="beef").score(b"S", b"A", "red").fingerprint == "beef"
    with pytest.raises(FingerprintMismatch, match="pinned to f00d: "):
        connect(server, pin_fingerprint="f00d").score(b"S", b"A", "red")


def test_another_replica_is_not_asked_in_silence(serve: Serve, connect: Connect) -> None:
    old, new = serve(), serve(then=updated)
    client = connect(old, new, pin_fingerprint=True)
    client.score(b"S", b"A", "red")
    with pytest.raises(FingerprintMismatch):
        client.score(b"S", b"A", "red")  # equals take turns


def test_replicas_that_differ_within_one_call(serve: Serve, connect: Connect) -> None:
    client = connect(serve(), serve(then=updated), pin_fingerprint=True)
    with pytest.raises(FingerprintMismatch):
        client.score_batch([(b"S", b"A", f"{k}" + "x" * 400_000) for k in range(4)])


def test_without_a_pin_two_calls_may_differ(serve: Serve, connect: Connect) -> None:
    client = connect(serve(score_all, then=updated))
    assert [client.score(b"S", b"A", "red").fingerprint for _ in range(2)] == ["f00d", "beef"]
    assert client.pinned_fingerprint is None


def test_a_reply_without_scores_pins_nothing(serve: Serve, connect: Connect) -> None:
    verdict = refusal(422, "invalid_image", groups=[{"index": 0, "scores": [error_entry(0)]}])
    client = connect(serve(verdict, then=updated), pin_fingerprint=True)
    assert client.score(b"S", b"A", "red", on_error="nan").error is not None
    assert client.score(b"S", b"A", "red").fingerprint == "beef"


def test_a_copy_is_pinned_to_the_same(serve: Serve, connect: Connect) -> None:
    client = connect(serve(score_all, then=updated), pin_fingerprint=True)
    client.score(b"S", b"A", "red")
    with pickle.loads(pickle.dumps(client)) as copy, pytest.raises(FingerprintMismatch):
        copy.score(b"S", b"A", "red")


def test_explanations_are_pinned_too(serve: Serve, connect: Connect) -> None:
    body = {"id": "e", "object": "explanation", "model": "m", "fingerprint": "beef", "explanations": {}}
    client = connect(serve(Reply(json=body)), pin_fingerprint="f00d")
    with pytest.raises(FingerprintMismatch):
        client.explain(b"S", b"A", "red")


CALL: Any = ([b"A"], ["red"], None, [b"S"])


@pytest.mark.parametrize("make", [jrm_score, jrm_reward])
def test_reward_functions_are_pinned_unless_told_otherwise(serve: Serve, make: Callable[..., Any]) -> None:
    function = make(serve(score_all, then=updated).url)
    function(*CALL)
    assert function.pinned_fingerprint == "f00d"
    with pytest.raises(FingerprintMismatch):
        function(*CALL)
    function.close()
    free = make(serve(score_all, then=updated).url, pin_fingerprint=False)
    assert free(*CALL) == free(*CALL)
    free.close()
