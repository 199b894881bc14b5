"""Connections that are kept: for how long, by whom, and what happens when the other end has closed one."""

import asyncio
import contextlib
import gc
import os
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from client.conftest import FAST
from client.scripted_server import Drop, ScriptedServer, reward_of
from jrm_client import APIConnectionError, AsyncJRMClient, JRMClient
from jrm_client.fleet import KEEPALIVE

Serve = Callable[..., ScriptedServer]
Connect = Callable[..., JRMClient]


def test_the_client_lets_go_of_a_connection_before_the_server_does() -> None:
    assert 30 < KEEPALIVE < 75  # timeout_keep_alive of jrm_service.server


def test_connections_are_used_again(serve: Serve, connect: Connect) -> None:
    server = serve()
    client = connect(server)
    for _ in range(5):
        client.score(b"S", b"A", "red")
    assert server.connections == 1


def test_a_connection_that_was_closed_under_the_request_costs_nothing(serve: Serve, connect: Connect) -> None:
    server = serve()
    client = connect(server, max_retries=0)
    client.score(b"S", b"A", "red")
    server.script.append(Drop())
    assert client.score(b"S", b"A", "red").reward == reward_of(b"A")
    assert [request.headers["x-request-id"] for request in server.requests[1:]] == [
        server.requests[1].headers["x-request-id"]
    ] * 2
    assert server.connections == 2


def test_a_new_connection_that_breaks_is_a_failure_at_once(serve: Serve, connect: Connect) -> None:
    server = serve(then=Drop())
    with pytest.raises(APIConnectionError):
        connect(server, max_retries=0).score(b"S", b"A", "red")
    assert len(server.requests) == 1


def test_a_request_that_breaks_kept_connections_is_sent_twice_at_most(serve: Serve, connect: Connect) -> None:
    server = serve()
    client = connect(server, max_retries=0)
    client.score(b"S", b"A", "red")
    server.then = Drop()
    with pytest.raises(APIConnectionError):
        client.score(b"S", b"A", "red")
    assert len(server.requests) == 3


def connections_to(port: int) -> int:
    """Sockets of this process that are connected to a port, whoever has forgotten them."""
    found = 0
    for entry in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):  # the listing's own descriptor is closed by now
            if entry.is_socket():
                with socket.socket(fileno=os.dup(int(entry.name))) as end:
                    found += end.family == socket.AF_INET and end.getpeername()[1] == port
    return found


async def ask(client: AsyncJRMClient) -> float:
    return (await client.score(b"S", b"A", "red")).reward


def in_a_run(client: AsyncJRMClient) -> float:
    return asyncio.run(ask(client))


def in_a_loop_that_is_only_closed(client: AsyncJRMClient) -> float:
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(ask(client))
    finally:
        loop.close()


@pytest.fixture
def _unclosed_transports() -> Iterator[None]:
    """asyncio warns of a loop that was not shut down, when it is collected."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def in_a_thread(client: AsyncJRMClient) -> float:
    found: list[float] = []
    thread = threading.Thread(target=lambda: found.append(in_a_run(client)))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.usefixtures("_unclosed_transports")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_closed_loop_costs_nothing_more(serve: Serve) -> None:
    gc.disable()  # nothing is left to chance
    try:
        for run, left in ((in_a_run, 0), (in_a_thread, 0), (in_a_loop_that_is_only_closed, 1)):
            server = serve()
            client = AsyncJRMClient(server.url, backoff=FAST)
            for _ in range(20):
                assert run(client) == reward_of(b"A")
                # What a loop that was not shut down has left is closed by the next call.
                assert connections_to(server.port) <= left, run.__name__
    finally:
        gc.enable()


@pytest.mark.usefixtures("_unclosed_transports")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_loop_that_is_running_keeps_its_connection_while_others_end(serve: Serve) -> None:
    server = serve()
    client = AsyncJRMClient(server.url, backoff=FAST)

    async def run() -> None:
        await ask(client)
        await asyncio.to_thread(in_a_loop_that_is_only_closed, client)
        await ask(client)

    asyncio.run(run())
    assert server.connections == 2
