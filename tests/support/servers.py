"""Real servers on real sockets, in a thread of the test process."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from jrm_service.app import create_app
from jrm_service.score_runtime import Parts
from jrm_service.scoring.fakes import FakeBackend, FakePreparer
from jrm_service.scoring.types import ServedModel
from jrm_service.server import Server
from jrm_service.settings import Settings

FAKE_MODEL = ServedModel("fake", "fake", {})


def fake_parts(*backends, preparer=None) -> Parts:
    """What a server scores with; each backend is a worker of its own, in this process."""
    return Parts(FAKE_MODEL, preparer or FakePreparer(), backends or [FakeBackend()])


def parts_of(checkpoint: Path | None = None) -> Parts:
    """A checkpoint on the CPU in float32, by default the bundled one, in this process, which has torch already."""
    from jrm_service.model.checkpoint_source import open_source

    source = open_source(checkpoint, ["cpu"], "float32", "trie")
    model, backends = source.load()
    return Parts(model, source.preparer, backends, source.cost, source.batch_tokens(backends))


@contextlib.contextmanager
def serving(settings: Settings | None = None, **options) -> Iterator[str]:
    """Base URL of a server that is ready; ``options`` go to ``create_app``."""
    with starting(settings, **options) as url:
        deadline = time.monotonic() + 60
        while (reply := httpx.get(f"{url}/health/ready")).status_code != 200:
            assert "failed" not in reply.text, reply.text
            assert time.monotonic() < deadline, "the server did not become ready"
            time.sleep(0.01)
        yield url


@contextlib.contextmanager
def starting(settings: Settings | None = None, *, expose: list | None = None, **options) -> Iterator[str]:
    """Base URL of a server that listens, ready or not; ``expose`` receives the server, with its ``thread``."""
    settings = settings or Settings(backend="fake")
    app = create_app(settings, **options)
    server = Server(app, host="127.0.0.1", port=0, grace_s=10)
    listener = server.config.bind_socket()
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    if expose is not None:
        server.thread = thread
        expose.append(server)
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
        assert not thread.is_alive(), "the server did not stop"


@dataclass(frozen=True)
class Metric:
    """Reads one server's metrics."""

    url: str

    def __call__(self, name: str) -> float:
        """Sum over all label values of one sample name."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def error_of(response: httpx.Response) -> tuple[int, str]:
    """(status, code) of an error reply, checked for the contract's shape."""
    body = response.json()
    assert set(body) <= {"error", "groups"}, json.dumps(body)[:200]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert len(body["error"]["message"]) < 300
    assert response.headers["x-request-id"]
    return response.status_code, body["error"]["code"]
