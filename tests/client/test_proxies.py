import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from client.scripted_server import Drop, Reply, ScriptedServer, reward_of
from jrm_client import APIConnectionError, APIStatusError, AsyncJRMClient, JRMClient
from jrm_client.proxies import proxy_of

Serve = Callable[..., ScriptedServer]
PROXY = "http://proxy.test:3128"


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_the_proxy_of_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "user:secret@one.test:1")
    monkeypatch.setenv("ALL_PROXY", "https://two.test")
    first, second = proxy_of("http://a.test"), proxy_of("https://a.test")
    assert first
    assert second
    assert (first.url, first.name) == ("http://user:secret@one.test:1", "http://one.test:1 (HTTP_PROXY)")
    assert (second.url, second.name) == ("https://two.test", "https://two.test (ALL_PROXY)")
    monkeypatch.setenv("http_proxy", "http://three.test")
    assert proxy_of("http://a.test").name == "http://three.test (http_proxy)"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("no_proxy", "direct", "proxied"),
    [
        ("*", ["http://a.test", "http://[::1]"], []),
        ("a.test", ["http://a.test", "http://x.A.test:99"], ["http://ba.test", "http://test"]),
        (".a.test, *.b.test", ["http://x.a.test", "http://a.test", "http://x.b.test"], ["http://c.test"]),
        ("a.test:8000", ["http://a.test:8000"], ["http://a.test", "http://a.test:8001"]),
        ("a.test:80", ["http://a.test"], ["http://a.test:8000"]),
        ("http://a.test", ["http://a.test"], ["http://b.test"]),
        ("localhost,127.0.0.0/8,::1/128", ["http://localhost", "http://127.9.9.9", "http://[::1]"], ["http://[::2]"]),
        ("[::1]", ["http://[::1]:8000"], ["http://[::2]:8000"]),
        ("[::1]:8000", ["http://[::1]:8000"], ["http://[::1]:8001"]),
        ("0:0:0:0:0:0:0:1", ["http://[::1]"], ["http://127.0.0.1"]),
        ("fd00::/8 10.0.0.0/255.0.0.0", ["http://[fd12::1]", "http://10.1.2.3"], ["http://11.1.2.3"]),
        ("10.0.0.7:9", ["http://10.0.0.7:9"], ["http://10.0.0.7"]),
        (",, ,::::,[,10.0.0.0/99,a b/c,:80,.,é.test,a.test", ["http://a.test"], ["http://10.0.0.1", "http://b.test"]),
    ],
)
def test_exceptions(no_proxy: str, direct: list[str], proxied: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", PROXY)
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert [url for url in direct if proxy_of(url)] == []
    assert [url for url in proxied if not proxy_of(url)] == []


@pytest.mark.parametrize("client", [JRMClient, AsyncJRMClient])
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
@pytest.mark.parametrize(
    "proxy",
    [
        "ftp://p.test",
        "socks4://p.test",
        "http://",
        "http://user:secret@",
        "http://user:secret@p.test:0",
        "http://user:secret@p.test:99999",
        "user:secret@p.test:abc",
        "http://[::1",
        "http://p .test",
        "http://a..b",
        "::",
    ],
)
def test_a_proxy_that_cannot_be_used_is_named_at_once(
    client: Any, variable: str, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, proxy)
    with pytest.raises(ValueError, match=rf"^{variable}: not the URL of a proxy: ") as caught:
        client("http://a.test")
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("no_proxy", "a.test")
    client("http://a.test")


def test_socks_needs_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://p.test:1080")
    with pytest.raises(ValueError, match=r"^ALL_PROXY: a SOCKS proxy needs the package socksio"):
        JRMClient("http://a.test")


def test_a_proxy_that_no_url_uses_does_not_matter(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://p.test:1080")
    monkeypatch.setenv("FTP_PROXY", "nonsense")
    with JRMClient(serve().url) as client:
        assert client.score(b"S", b"A", "red").reward == reward_of(b"A")


def test_requests_go_through_the_proxy_unless_excepted(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy, server = serve(), serve()
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    with JRMClient(["http://reward.test", f"{server.url}"]) as client:
        client.score(b"S", b"A", "red")
        client.score(b"S", b"A", "red")
    assert {request.path for request in proxy.requests} == {"http://reward.test/v1/score", f"{server.url}/v1/score"}
    assert not server.requests
    monkeypatch.setenv("NO_PROXY", "127.0.0.0/8,::1/128")
    with JRMClient(server.url) as client:
        client.score(b"S", b"A", "red")
    assert [request.path for request in server.requests] == ["/v1/score"]


def test_failures_name_the_proxy(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = serve(Drop(), Reply(407, body=b"<h1>who are you"))
    monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("//", "//user:secret@"))
    through = f"http://reward.test/v1/score through the proxy {proxy.url} (HTTP_PROXY)"
    with JRMClient("http://reward.test", max_retries=0) as client:
        with pytest.raises(APIConnectionError) as dropped:
            client.score(b"S", b"A", "red")
        with pytest.raises(APIStatusError, match="but 'who are you'") as refused:
            client.score(b"S", b"A", "red")
    proxy.close()
    with JRMClient("http://reward.test", max_retries=0) as client, pytest.raises(APIConnectionError) as unreachable:
        client.score(b"S", b"A", "red")
    for error in (refused.value, dropped.value, unreachable.value):
        assert through in str(error)
        assert "secret" not in str(error)


def test_redirects_name_both_ends(serve: Serve) -> None:
    server = serve(
        Reply(308, headers={"location": "https://secure.test/v1/score"}, body=b""),
        Reply(302, headers={"location": "http://[not-an-address"}, body=b""),
    )
    with JRMClient(server.url, max_retries=0) as client:
        for status, location in ((308, "https://secure.test/v1/score"), (302, "http://[not-an-address")):
            with pytest.raises(APIStatusError) as caught:
                client.score(b"S", b"A", "red")
            assert caught.value.status == status
            for part in (f"HTTP {status}", f"{server.url}/v1/score", location):
                assert part in str(caught.value)


# --- certificates -----------------------------------------------------------------------------------------------------


@pytest.fixture
def stale(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "garbage.pem").write_text("no certificate")
    (tmp_path / "folder").mkdir()
    return {
        "nothing": str(tmp_path / "moved" / "cacert.pem"),
        "a folder": str(tmp_path / "folder"),
        "garbage": str(tmp_path / "garbage.pem"),
    }


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE"])
def test_certificates_that_cannot_be_read_are_named_where_they_are_needed(
    variable: str, stale: dict[str, str], serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    for what, path in stale.items():
        monkeypatch.setenv(variable, path)
        if variable != "SSLKEYLOGFILE" or what != "garbage":  # any file can be written to
            for client in (JRMClient, AsyncJRMClient):
                with pytest.raises(ValueError, match=rf"^{variable}='{path}': "):
                    client("https://a.test")
        with JRMClient(server.url) as client:
            assert client.score(b"S", b"A", "red").reward == reward_of(b"A"), what


def test_a_file_of_certificates_is_enough(stale: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(Path(__file__).with_name("fleet_test.pem")))
    monkeypatch.setenv("SSL_CERT_DIR", stale["nothing"])
    JRMClient("https://a.test").close()


def test_no_context_of_certificates_for_http(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("certificates were read")

    monkeypatch.setattr("httpx._transports.default.create_ssl_context", httpx.create_ssl_context)  # not conftest's
    monkeypatch.setattr("ssl.create_default_context", refuse)
    with ScriptedServer() as server:

        async def ask() -> float:
            async with AsyncJRMClient(server.url) as client:
                return (await client.score(b"S", b"A", "red")).reward

        assert asyncio.run(ask()) == reward_of(b"A")


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "url", "message"),
    [
        ({"HTTP_PROXY": "socks5://127.0.0.1:9"}, "http://a.test", "jrm score: HTTP_PROXY: a SOCKS proxy"),
        ({"HTTP_PROXY": "http://p:x"}, "http://a.test", "jrm score: HTTP_PROXY: not the URL of a proxy"),
        ({"SSL_CERT_FILE": "/nowhere.pem"}, "https://a.test", "jrm score: SSL_CERT_FILE='/nowhere.pem'"),
        ({"NO_PROXY": "[::1],::1/128,x:y:z"}, "http://127.0.0.1:1", "jrm score: no reply from http://127.0.0.1:1"),
        ({}, "http://a.test:99999", "jrm score: base_url: 'http://a.test:99999' cannot be read"),
        ({}, "http://a..b", "jrm score: base_url: 'http://a..b' has an invalid host"),
        ({"JRM_API_KEY": "a\nb"}, "http://a.test", "jrm score: api_key"),
    ],
)
def test_what_a_user_set_is_an_error_and_no_traceback(
    environment: dict[str, str], url: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "a.ppm"
    image.write_bytes(b"P6\n1 1\n255\n\0\0\0")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code = "from jrm_client.cli import main; main()"
    options = ["-i", "red", "--url", url, "--timeout", "1"]
    done = subprocess.run(
        [sys.executable, "-c", code, "score", image, image, *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith(message)
    assert "Traceback" not in done.stderr
