"""Several replicas over real sockets. Which one is next is tested in test_replicas.py, without any."""

import asyncio
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from client.conftest import FAST
from client.scripted_server import Drop, Hang, Reply, Request, ScriptedServer, Step, refusal, reward_of, score_all
from jrm_client import APIConnectionError, APIStatusError, APITimeoutError, Backoff, JRMClient, wire
from jrm_client.deadline import deadline_of
from jrm_client.fleet import Fleet
from jrm_client.tls import context as tls_context
from jrm_client.transport import Transport

Serve = Callable[..., ScriptedServer]
Connect = Callable[..., JRMClient]

NAME = "fleet.test"
PEM = Path(__file__).with_name("fleet_test.pem")  # a key and its self-signed certificate, for fleet.test only
FOREVER = Backoff(3600.0, 3600.0)
OK = Reply(json={"fingerprint": "f00d"})


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def ask(urls: list[str], times: int = 1, **options: Any) -> list[Any]:
    """Ask for ``GET /v1/info`` so many times in a row, as one client."""

    async def run() -> list[Any]:
        transport = Transport(tuple(urls), None, 3, FAST, **options)
        try:
            async with deadline_of(60) as deadline:
                return [
                    await transport.call("GET", "/v1/info", lambda _: {}, wire.read_object, deadline)
                    for _ in range(times)
                ]
        finally:
            await transport.close()

    return asyncio.run(run())


# --- several URLs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step",
    [Drop(), refusal(503, "draining"), refusal(503, "not_ready"), *(Reply(s, body=b"<html>") for s in (502, 503, 504))],
)
def test_a_replica_that_fails_is_ejected_and_its_request_goes_to_another(serve: Serve, step: Step) -> None:
    bad, good = serve(then=step), serve(then=OK)
    assert ask([bad.url, good.url], 6, ejection=FOREVER) == [OK.json] * 6
    assert (len(bad.requests), len(good.requests)) == (1, 6)


def test_a_request_that_breaks_connections_is_not_carried_through_the_fleet(serve: Serve) -> None:
    fleet = [serve(then=Drop()) for _ in range(7)]
    with pytest.raises(APIConnectionError):
        ask([server.url for server in fleet])
    asked = [len(server.requests) for server in fleet if server.requests]
    assert len(asked) == 4
    assert sum(asked) == 7


def test_servers_that_are_not_there_keep_a_request_from_nobody(serve: Serve) -> None:
    fleet = [serve() for _ in range(6)]
    for server in fleet:
        server.close()
    good = serve(then=OK)
    assert ask([*(server.url for server in fleet), good.url]) == [OK.json]


def test_a_replica_that_was_ejected_is_tried_again(serve: Serve) -> None:
    restarted, other = serve(refusal(503, "draining"), then=OK), serve(then=OK)
    ask([restarted.url, other.url], 6, ejection=Backoff(0.0, 0.0))
    assert len(restarted.requests) >= 3


def test_a_replica_that_let_a_call_run_out_of_time_gets_no_request_before_a_sign_of_life(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jrm_client.replicas.SILENCE", 0.0)
    monkeypatch.setattr("jrm_client.attempts.GREETING_TIMEOUT", 0.05)
    silent, good = serve(then=Hang()), serve(then=OK)

    async def run() -> list[str]:
        transport = Transport((silent.url, good.url), None, 3, FAST, ejection=Backoff(0.0, 0.0))
        outcomes = []
        for _ in range(6):
            try:
                async with deadline_of(2) as deadline:
                    await transport.call("GET", "/v1/info", lambda _: {}, wire.read_object, deadline)
            except APITimeoutError:
                outcomes.append("too late")
            else:
                outcomes.append("answered")
        await transport.close()
        return outcomes

    assert sorted(asyncio.run(run())) == ["answered"] * 5 + ["too late"]
    asked = [request.path for request in silent.requests]
    assert asked == ["/v1/info", *["/health/live"] * (len(asked) - 1)]
    assert len(asked) > 1


@pytest.mark.parametrize(
    "step", [refusal(429, "overloaded"), refusal(500, "internal"), refusal(503, "explain_disabled")]
)
def test_a_refusal_of_one_request_ejects_nobody(serve: Serve, step: Step) -> None:
    once, other = serve(step, then=OK), serve(then=OK)
    ask([once.url, other.url], 6, ejection=FOREVER)
    assert len(once.requests) >= 3


def test_a_verdict_on_the_deadline_is_final_everywhere(serve: Serve) -> None:
    servers = [serve(then=refusal(504, "deadline_exceeded")) for _ in range(2)]
    with pytest.raises(APIStatusError, match="deadline_exceeded"):
        ask([server.url for server in servers])
    assert sum(len(server.requests) for server in servers) == 1


def test_when_every_replica_fails_the_attempts_are_bounded(serve: Serve) -> None:
    servers = [serve(then=refusal(503, "draining")) for _ in range(2)]
    with pytest.raises(APIStatusError, match="draining"):
        ask([server.url for server in servers])
    assert sum(len(server.requests) for server in servers) == 2 + 3


def test_a_busy_replica_gets_fewer_requests(serve: Serve, connect: Connect) -> None:
    held, release = threading.Event(), threading.Event()
    first = iter([True])

    def hold_the_first(request: Request) -> Reply:
        if next(first, False):
            held.set()
            release.wait()
        return score_all(request)

    servers = [serve(then=hold_the_first), serve(then=hold_the_first)]
    client = connect(*servers)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(client.score, b"S", b"A", "red")
        held.wait()
        for _ in range(3):
            assert client.score(b"S", b"B", "red").reward == reward_of(b"B")
        release.set()
        assert future.result().reward == reward_of(b"A")
    assert sorted(len(server.requests) for server in servers) == [1, 3]


# --- one name with several addresses ----------------------------------------------------------------------------------


class Names:
    """A name service with one name, whose addresses a test can change."""

    def __init__(self, *found: str) -> None:
        self.found = list(found)
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append((host, port))
        if not self.found:
            raise OSError("no such name")
        return self.found


def pair(serve: Serve, **options: Any) -> tuple[ScriptedServer, ScriptedServer]:
    """Servers at two addresses, on one port."""
    first = serve(host="127.0.0.1", **options)
    return first, serve(host="127.0.0.2", port=first.port, **options)


def test_every_address_of_a_name_is_a_replica(serve: Serve) -> None:
    servers = pair(serve, then=OK)
    names = Names("127.0.0.1", "127.0.0.2")
    ask([f"http://{NAME}:{servers[0].port}"], 6, resolve=names)
    assert [len(server.requests) for server in servers] == [3, 3]
    assert {request.headers["host"] for server in servers for request in server.requests} == {
        f"{NAME}:{servers[0].port}"
    }
    assert names.asked[0] == (NAME, servers[0].port)


def test_an_address_that_is_down_is_left_out(serve: Serve) -> None:
    down, up = pair(serve, then=OK)
    down.close()
    url = f"http://{NAME}:{up.port}"
    assert ask([url], 4, resolve=Names("127.0.0.1", "127.0.0.2"), ejection=FOREVER) == [OK.json] * 4


def test_an_error_names_the_address(serve: Serve) -> None:
    servers = pair(serve)
    for server in servers:
        server.close()
    url = f"http://{NAME}:{servers[0].port}"
    with pytest.raises(APIConnectionError, match=rf"no reply from {url}/v1/info at 127\.0\.0\.[12] "):
        ask([url], resolve=Names("127.0.0.1", "127.0.0.2"))


def test_a_name_that_nobody_knows_is_a_connection_error() -> None:
    with pytest.raises(APIConnectionError, match=r"no reply from http://jrm\.invalid:9/v1/info"):
        ask(["http://jrm.invalid:9"], resolve=Names())


def test_addresses_come_and_go() -> None:
    async def run() -> list[set[str]]:
        names = Names()
        fleet = Fleet({f"http://{NAME}": None}, tls_context(needed=False), {}, Fraction(0), names, look_up_every=0.0)
        seen = []
        for names.found in (["10.0.0.1", "10.0.0.2"], ["10.0.0.2", "10.0.0.3"], [], ["10.0.0.4"]):
            await fleet.refresh()
            await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})  # a look beside the requests
            seen.append({name.removeprefix(f"http://{NAME} at ") for name in fleet.replicas.names})
        await fleet.close()
        return seen

    both = {"10.0.0.2", "10.0.0.3"}
    # A look that fails changes nothing; a name with one address is asked by its name.
    assert asyncio.run(run()) == [{"10.0.0.1", "10.0.0.2"}, both, both, {f"http://{NAME}"}]


def test_names_are_not_looked_up_for_every_request() -> None:
    async def run() -> int:
        names = Names("10.0.0.1", "10.0.0.2")
        fleet = Fleet({f"http://{NAME}": None}, tls_context(needed=False), {}, Fraction(0), names, look_up_every=3600.0)
        for _ in range(3):
            await fleet.refresh()
        await fleet.close()
        return len(names.asked)

    assert asyncio.run(run()) == 1


@pytest.fixture
def tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(PEM)
    return context


def test_the_certificate_is_that_of_the_name(
    serve: Serve, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(PEM))
    asked_for: list[str | None] = []
    tls.sni_callback = lambda _socket, name, _context: asked_for.append(name)  # type: ignore[assignment,misc]
    servers = pair(serve, then=OK, tls=tls)
    ask([f"https://{NAME}:{servers[0].port}"], 2, resolve=Names("127.0.0.1", "127.0.0.2"))
    assert [len(server.requests) for server in servers] == [1, 1]
    assert asked_for == [NAME, NAME]


def test_a_certificate_of_another_name_is_refused(
    serve: Serve, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(PEM))
    servers = pair(serve, then=OK, tls=tls)
    with pytest.raises(APIConnectionError, match=r"Hostname mismatch.*other\.test"):
        ask([f"https://other.test:{servers[0].port}"], resolve=Names("127.0.0.1", "127.0.0.2"))
    assert not any(server.requests for server in servers)
