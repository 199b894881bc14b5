"""The page at /docs stands alone."""

import re

import httpx


def test_it_lists_the_routes_and_loads_nothing(fake_server):
    reply = httpx.get(f"{fake_server}/docs")
    assert reply.headers["content-type"].startswith("text/html")
    for path, methods in httpx.get(f"{fake_server}/openapi.json").json()["paths"].items():
        for method in methods:
            assert f"{method.upper()} {path}<" in reply.text
    assert re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?([^\"' >)]+)", reply.text) == ["openapi.json"]
    assert "<script" not in reply.text
    assert "default-src 'none'" in reply.headers["content-security-policy"]


def test_the_frameworks_own_pages_are_off(fake_server):
    for path in ("/redoc", "/docs/oauth2-redirect"):
        assert httpx.get(f"{fake_server}{path}").status_code == 404
