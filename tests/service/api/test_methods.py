"""The ways to ask that health checks, load balancers and proxies have."""

import socket

import httpx
import pytest

from jrm_service.api.ops import PROBES
from support import servers
from support.servers import Metric, error_of

READS = ["/v1/models", "/v1/info", "/docs", "/openapi.json", *sorted(PROBES)]


def raw(url: str, request: bytes) -> tuple[bytes, bytes]:
    """Head and body of all that comes back until the server closes the connection."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(request)
        head, _, body = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")
    return head, body


def test_head_is_get_without_the_body(fake_server):
    for path in READS:
        get, head = httpx.get(f"{fake_server}{path}"), httpx.head(f"{fake_server}{path}")
        assert (head.status_code, head.content) == (200, b""), path
        assert head.headers["content-type"] == get.headers["content-type"], path
        assert int(head.headers["content-length"]) > 0, path
    assert httpx.head(f"{fake_server}/v1/nothing").status_code == 404
    assert 'method="HEAD",route="/health/live",status="200"' in httpx.get(f"{fake_server}/metrics").text


def test_a_head_is_counted_by_the_route_that_a_get_would_have(fake_server):
    assert httpx.head(f"{fake_server}/page/main.js").status_code == 200
    assert 'method="HEAD",route="/page/{name:path}",status="200"' in httpx.get(f"{fake_server}/metrics").text


def test_a_health_check_sees_the_same_status_however_it_asks():
    failing = servers.starting(load=lambda: (_ for _ in ()).throw(ValueError("no such weights")), on_failed=print)
    with failing as url:
        for method in ("GET", "HEAD", "OPTIONS"):
            assert httpx.request(method, f"{url}/health/ready").status_code == 503, method
            assert httpx.request(method, f"{url}/health/live").status_code == 200, method


def test_other_methods_are_told_what_there_is(fake_server):
    for method in ("POST", "PUT", "PATCH", "DELETE", "TRACE", "PURGE", "OPTIONS"):
        for path in READS:
            if path in PROBES and method == "OPTIONS":
                continue
            reply = httpx.request(method, f"{fake_server}{path}")
            assert error_of(reply) == (405, "method_not_allowed"), (method, path)
            allowed = {"GET", "HEAD", "OPTIONS"} if path in PROBES else {"GET", "HEAD"}
            assert set(reply.headers["allow"].split(", ")) == allowed, (method, path)
    for method in ("GET", "HEAD", "PUT", "TRACE", "PURGE", "OPTIONS"):
        for path in ("/score", "/v1/score", "/explain", "/v1/explain"):
            reply = httpx.request(method, f"{fake_server}{path}")
            assert (reply.status_code, reply.headers["allow"]) == (405, "POST"), (method, path)


def test_a_path_with_a_slash_too_many_is_no_redirect(fake_server):
    for path in ("/score/", "/v1/score/", "/health/ready/", "/metrics/", "/docs/", "/v1//score", "/"):
        for method in ("GET", "POST"):
            reply = httpx.request(method, f"{fake_server}{path}", headers={"host": "elsewhere.example"})
            assert error_of(reply) == (404, "not_found"), (method, path)
            assert "location" not in reply.headers


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://x/health/live", 200),
        ("HTTPS://x:99/health/live?a=b", 200),
        ("http://x", 404),
        ("http://x/v1/nothing", 404),
        ("ftp://x/health/live", 404),
        ("*", 404),
    ],
)
def test_a_target_with_scheme_and_host_is_its_path(fake_server, target, status):
    head, _ = raw(fake_server, f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert head.startswith(f"HTTP/1.1 {status} ".encode())


def test_it_is_counted_under_its_path(fake_server):
    counted = Metric(fake_server)("jrm_http_requests_total")
    raw(fake_server, b"TRACE http://x/score HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    text = httpx.get(f"{fake_server}/metrics").text
    assert Metric(fake_server)("jrm_http_requests_total") > counted
    assert 'route="/score",status="405"' in text


def test_http_1_0_is_answered(fake_server):
    head, body = raw(fake_server, b"GET /health/live HTTP/1.0\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert body == b'{"status":"live"}'
