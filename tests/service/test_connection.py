"""Connections that ask for another protocol, say nothing, or stop half-way: answered or closed, never in the way."""

import contextlib
import logging
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from jrm_service.api.keys import Key, digest
from jrm_service.settings import Settings
from support import processes, servers

HEAD = b"Host: x\r\nContent-Type: application/json\r\n"
UPGRADES = {
    "websocket": b"Upgrade: websocket\r\nConnection: Upgrade\r\n",
    "websocket, whole handshake": b"Upgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    "HTTP/2": b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
    "TLS": b"Upgrade: TLS/1.0\r\nConnection: Upgrade\r\n",
    "none": b"",
}
REQUESTS = {
    "a body": (b"POST /score HTTP/1.1\r\n", b"Content-Length: 2\r\n\r\n{}", 400),
    "a chunked body": (b"POST /score HTTP/1.1\r\n", b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 400),
    "no body": (b"GET /health/live HTTP/1.1\r\n", b"\r\n", 200),
    "another method": (b"PUT /score HTTP/1.1\r\n", b"Content-Length: 2\r\n\r\n{}", 405),
    "another path": (b"POST /nothing HTTP/1.1\r\n", b"Content-Length: 2\r\n\r\n{}", 404),
    "many headers": (
        b"GET /health/live HTTP/1.1\r\n",
        b"".join(b"x-%d: y\r\n" % n for n in range(200)) + b"\r\n",
        200,
    ),
    "a long header": (b"GET /health/live HTTP/1.1\r\n", b"x: " + b"y" * 9000 + b"\r\n\r\n", 200),
    "a body that stops": (b"POST /score HTTP/1.1\r\n", b"Content-Length: 9\r\n\r\n{", 408),
}


def connected(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def status(url: str, request: bytes) -> int:
    with connected(url) as connection:
        connection.sendall(request)
        return int(connection.recv(65536).split()[1])


def test_an_offered_upgrade_changes_nothing(fake_server):
    for kind, (line, rest, expected) in REQUESTS.items():
        with ThreadPoolExecutor(len(UPGRADES)) as pool:  # at once: some wait until their time is up
            asked = {
                offer: pool.submit(status, fake_server, line + HEAD + headers + rest)
                for offer, headers in UPGRADES.items()
            }
        assert {offer: reply.result() for offer, reply in asked.items()} == dict.fromkeys(UPGRADES, expected), kind


def test_it_is_no_way_around_keys_and_limits(tmp_path):
    (tmp_path / "keys").write_text(Key("alice", digest(b"secret")).line())
    settings = Settings(backend="fake", api_keys_file=tmp_path / "keys")
    request = b"POST /score HTTP/1.1\r\n" + HEAD + UPGRADES["websocket"] + b"Content-Length: 2\r\n\r\n{}"
    with servers.serving(settings) as url:
        assert status(url, request) == 401
        text = httpx.get(f"{url}/metrics").text
        assert 'jrm_http_requests_total{method="POST",route="/score",status="401"} 1.0' in text


def test_it_is_not_logged(fake_server, caplog):
    """Java's client offers HTTP/2 with every request."""
    with caplog.at_level(logging.WARNING):
        assert status(fake_server, b"GET /health/live HTTP/1.1\r\n" + HEAD + UPGRADES["HTTP/2"] + b"\r\n") == 200
    assert caplog.records == []


UNFINISHED = {
    "nothing": b"",
    "half a head": b"GET /health/live HTTP/1.1\r\nHost:",
    "after an answer": b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n",
    "a body that goes on after the answer": b"GET /health/live HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx",
    "half of a second head": b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\nGET /health",
}


@pytest.mark.parametrize("kind", UNFINISHED)
def test_a_connection_without_a_request_is_closed_in_time(kind):
    exposed: list = []
    with servers.starting(expose=exposed) as url:
        exposed[0].config.timeout_keep_alive = 0.2
        with connected(url) as connection:
            connection.sendall(UNFINISHED[kind])
            while connection.recv(65536):  # until the server hangs up; the socket's own timeout would raise
                pass


def test_a_request_that_is_being_answered_is_not_cut_off():
    """The time limit is that of the body, although nothing arrives."""
    exposed: list = []
    with servers.serving(Settings(backend="fake", body_timeout_s=0.5), expose=exposed) as url:
        exposed[0].config.timeout_keep_alive = 0.05
        assert status(url, b"POST /score HTTP/1.1\r\n" + HEAD + b"Content-Length: 9\r\n\r\n{") == 408


def test_nonsense_after_an_answer_has_begun_ends_the_connection_quietly(tmp_path, caplog):
    (tmp_path / "keys").write_text(Key("alice", digest(b"secret")).line())
    refused = b"POST /score HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"
    with servers.serving(Settings(backend="fake", api_keys_file=tmp_path / "keys")) as url:
        with caplog.at_level(logging.WARNING), connected(url) as connection:
            connection.sendall(refused)
            reply = connection.recv(65536)
            connection.sendall(b"no chunk\r\n")
            with contextlib.suppress(ConnectionError):
                while connection.recv(65536):
                    pass
        assert reply.startswith(b"HTTP/1.1 401 ")
        assert httpx.get(f"{url}/health/live").status_code == 200
    assert not [record for record in caplog.records if record.exc_info]


def test_it_stops_with_status_0_whatever_is_connected():
    """``processes.serving`` asks for the status."""
    odd = [
        line + HEAD + headers + rest for headers in UPGRADES.values() for line, rest, _ in list(REQUESTS.values())
    ] + list(UNFINISHED.values())
    with processes.serving("--backend", "fake", "--grace-s", "1") as served, contextlib.ExitStack() as connections:
        served.wait_until_ready()
        for request in odd:
            connections.enter_context(connected(served.url)).sendall(request)
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(60) == 0, "".join(served.log)
        assert "Traceback" not in "".join(served.log)
