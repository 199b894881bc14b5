"""Deadlines and retries over real sockets. The delays themselves are tested in test_retry.py, without a clock."""

import socket
from collections.abc import Callable

import pytest

from client.scripted_server import (
    Drop,
    Hang,
    Reply,
    ScriptedServer,
    Step,
    Trickle,
    Truncate,
    refusal,
    reward_of,
    score_all,
)
from jrm_client import APIConnectionError, APIResponseError, APIStatusError, APITimeoutError, JRMClient

Serve = Callable[..., ScriptedServer]
Connect = Callable[..., JRMClient]

SHORT = 0.3


@pytest.mark.parametrize("step", [Hang(), Trickle()])
def test_a_server_that_never_finishes_costs_the_timeout(serve: Serve, connect: Connect, step: Step) -> None:
    with pytest.raises(APITimeoutError, match=r"within timeout=0\.3 s"):
        connect(serve(then=step), timeout=SHORT).score(b"S", b"A", "red")


def test_a_server_that_never_accepts_costs_the_timeout() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        JRMClient(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=SHORT) as client,
        pytest.raises(APITimeoutError),
    ):
        client.score(b"S", b"A", "red")


def test_the_client_can_be_used_after_a_timeout(serve: Serve, connect: Connect) -> None:
    server = serve(then=Hang())
    client = connect(server)
    with pytest.raises(APITimeoutError):
        client.score(b"S", b"A", "red", timeout=SHORT)
    server.then = score_all
    assert client.score(b"S", b"A", "red").reward == reward_of(b"A")


def test_a_timeout_after_a_failure_names_the_failure(serve: Serve, connect: Connect) -> None:
    with pytest.raises(APITimeoutError, match="the last attempt failed: HTTP 503") as caught:
        connect(serve(refusal(503, "not_ready"), then=Hang()), timeout=2).score(b"S", b"A", "red")
    assert isinstance(caught.value.__cause__, APIStatusError)


@pytest.mark.parametrize(
    "step",
    [Drop(), Truncate(), *(refusal(status, "x") for status in (408, 429, 500, 502, 503)), Reply(502, body=b"<html>")],
)
def test_what_passes_is_retried(serve: Serve, connect: Connect, step: Step) -> None:
    server = serve(step, step)
    assert connect(server).score(b"S", b"A", "red").reward == reward_of(b"A")
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 415, 422, 501, 504])
def test_what_stays_is_not_retried(serve: Serve, connect: Connect, status: int) -> None:
    server = serve(refusal(status, "x", headers={"retry-after": "0"}))
    with pytest.raises(APIStatusError) as caught:
        connect(server).score(b"S", b"A", "red")
    assert caught.value.status == status
    assert len(server.requests) == 1


def test_a_malformed_reply_is_not_retried(serve: Serve, connect: Connect) -> None:
    server = serve(Reply(body=b"[]"))
    with pytest.raises(APIResponseError):
        connect(server).score(b"S", b"A", "red")
    assert len(server.requests) == 1


def test_a_body_that_cannot_be_decoded(serve: Serve, connect: Connect) -> None:
    server = serve(Reply(body=b"not gzip", headers={"content-encoding": "gzip"}))
    with pytest.raises(APIResponseError, match="cannot be decoded"):
        connect(server).score(b"S", b"A", "red")


@pytest.mark.parametrize("max_retries", [0, 2])
def test_retries_are_bounded(serve: Serve, connect: Connect, max_retries: int) -> None:
    server = serve(then=refusal(503, "draining"))
    with pytest.raises(APIStatusError, match="draining"):
        connect(server, max_retries=max_retries).score(b"S", b"A", "red")
    assert len(server.requests) == 1 + max_retries


@pytest.mark.parametrize("wait", ["3600", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_wait_that_would_pass_the_deadline_fails_at_once(serve: Serve, connect: Connect, wait: str) -> None:
    server = serve(then=refusal(429, "overloaded", headers={"retry-after": wait}))
    with pytest.raises(APIStatusError, match="overloaded") as caught:
        connect(server, timeout=30).score(b"S", b"A", "red")
    assert caught.value.retry_after is not None
    assert caught.value.retry_after > 30
    assert len(server.requests) == 1


def test_a_retried_request_is_the_same_under_one_id(serve: Serve, connect: Connect) -> None:
    server = serve(Drop(), refusal(503, "not_ready"))
    connect(server).score(b"S", b"A", "red")
    assert len({request.headers["x-request-id"] for request in server.requests}) == 1
    assert len({tuple(sorted(request.images.items())) for request in server.requests}) == 1


def test_no_server(connect: Connect, serve: Serve) -> None:
    server = serve()
    server.close()
    with pytest.raises(
        APIConnectionError, match=rf"no reply from {server.url}/v1/score .*is the server running"
    ) as error:
        connect(server, max_retries=1).score(b"S", b"A", "red")
    assert error.value.request_id


def test_the_next_server_is_asked_when_one_is_down(connect: Connect, serve: Serve) -> None:
    down, up = serve(), serve()
    down.close()
    client = connect(down, up, max_retries=0)
    assert [client.score(b"S", b"A", "red").reward for _ in range(4)] == [reward_of(b"A")] * 4


def test_requests_are_spread_over_servers(connect: Connect, serve: Serve) -> None:
    servers = [serve(), serve(), serve()]
    client = connect(*servers)
    pairs = [(b"S", b"%d" % edit, f"{text}") for text in range(6) for edit in range(2)]
    assert [score.reward for score in client.score_batch(pairs)] == [reward_of(edited) for _, edited, _ in pairs]
    assert [len(server.requests) for server in servers] == [1, 1, 1]


def test_an_idle_connection_is_reused(connect: Connect, serve: Serve) -> None:
    server = serve()
    client = connect(server)
    for _ in range(5):
        client.score(b"S", b"A", "red")
    assert server.connections == 1
