"""How tests run side by side, and the server that explains, which is started once.

`make test` calls `pytest -n 2 --dist loadfile -m "not heavy"`, and `make test-all` the same without `-m`.
"""

from __future__ import annotations

import functools
import os
import ssl
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from support import processes

if TYPE_CHECKING:
    from xdist.scheduler import LoadFileScheduling

# The files whose tests use the fixture `explaining`: one worker runs them, so that vLLM is started once.
EXPLAINING = {
    "tests/docs/test_replies.py",
    "tests/monitoring/test_exported.py",
    "tests/monitoring/test_live.py",
    "tests/service/api/test_explain.py",
}

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported: threads of a tiny model only wait for each other while other tests use the cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@functools.cache
def _default_context(trust_env: bool, _environment: tuple) -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=trust_env)


def _ssl_context(*, verify: Any = True, cert: Any = None, trust_env: bool = True) -> ssl.SSLContext:
    """Each ``httpx.get`` reads all root certificates, which takes 20 ms. Here they are read once, while the environment
    names the same ones."""
    if verify is not True or cert is not None:
        return httpx.create_ssl_context(verify, cert, trust_env)
    named = tuple(map(os.environ.get, ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")))
    return _default_context(trust_env, named)


httpx._transports.default.create_ssl_context = _ssl_context


@pytest.fixture(scope="session")
def explaining() -> Iterator[processes.Served]:
    """The one server with vLLM behind it, which takes most of a minute to start. It scores too, without a cache."""
    with processes.serving("--serve", "score,explain", "--cache-entries", "0") as server:
        server.wait_until_ready()
        yield server


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs vLLM as heavy, and begin with the heavy tests, so that no worker is left with them at the end."""
    for item in items:
        if "explaining" in getattr(item, "fixturenames", ()):
            file = item.nodeid.partition("::")[0]
            assert file in EXPLAINING, f"{file} uses `explaining` and is not listed in tests/conftest.py"
            item.add_marker("heavy")
            item.add_marker(pytest.mark.timeout(600))
    items.sort(key=lambda item: item.get_closest_marker("heavy") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    """With ``--dist loadfile``, the tests of a file stay together, and so do those that share the server."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class FilesTogether(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "explaining" if file in EXPLAINING else file

    return FilesTogether(config, log)
