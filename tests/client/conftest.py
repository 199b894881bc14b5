import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from client.scripted_server import ScriptedServer, Step
from jrm_client import Backoff, JRMClient

FAST = Backoff(first=0.001, most=0.002, uniform=random.uniform)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("JRM_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def serve() -> Iterator[Callable[..., ScriptedServer]]:
    """Start servers that follow a script; they end with the test."""
    servers: list[ScriptedServer] = []

    def start(*script: Step, **options: Any) -> ScriptedServer:
        servers.append(ScriptedServer(*script, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def connect() -> Iterator[Callable[..., JRMClient]]:
    """Make clients that retry within milliseconds; they are closed with the test."""
    clients: list[JRMClient] = []

    def make(*servers: ScriptedServer, **options: object) -> JRMClient:
        clients.append(JRMClient([server.url for server in servers], **{"backoff": FAST, **options}))
        return clients[-1]

    yield make
    for client in clients:
        client.close()
