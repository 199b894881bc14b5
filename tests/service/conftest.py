"""Servers shared by the tests of the service."""

import pytest

from jrm_service.settings import Settings
from support import checkpoints, servers


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    return checkpoints.write(tmp_path_factory.mktemp("tiny"), checkpoints.one_pass())


@pytest.fixture(scope="session")
def tiny_server(tiny_checkpoint):
    """A server with real weights, on the CPU in float32."""
    with servers.serving(load=lambda: servers.parts_of(tiny_checkpoint)) as url:
        yield url


@pytest.fixture(scope="session")
def fake_server():
    """A server with the fake backend and small limits."""
    with servers.serving(
        Settings(backend="fake", max_body_bytes=4_000_000, max_candidates=64, body_timeout_s=0.5)
    ) as url:
        yield url
