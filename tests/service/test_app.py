"""Start-up through the real application: ready after the self-test, or never."""

import shutil
import threading

import httpx
import pytest

from jrm_service.errors import CheckpointError
from jrm_service.model import golden, golden_recording
from jrm_service.model.checkpoint import open_checkpoint
from jrm_service.settings import Settings
from support import checkpoints, servers
from support.servers import error_of


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    path = checkpoints.write(tmp_path_factory.mktemp("recorded") / "checkpoint", checkpoints.one_pass())
    golden_recording.record(open_checkpoint(path), golden_recording.drawn_examples())
    return path


@pytest.fixture(scope="module")
def off(recorded, tmp_path_factory):
    """A checkpoint whose golden scores nothing here reproduces."""
    path = shutil.copytree(recorded, tmp_path_factory.mktemp("off") / "checkpoint")
    document = golden.read(open_checkpoint(path)).model_dump()
    document["cases"][1]["dimensions"]["visual_quality"]["mean"] += 0.5
    (path / golden.FILE).write_text(golden.Golden.model_validate(document).model_dump_json())
    return path


def test_a_server_that_passed_shows_it(recorded):
    with servers.serving(Settings(checkpoint=recorded, device="cpu,cpu")) as url:
        result = httpx.get(f"{url}/v1/info").json()["self_test"]
    assert (result["cases"], result["tolerance"]) == (4, 1e-3)
    assert 0 <= result["max_deviation"] < 1e-4


def test_a_server_that_is_off_never_becomes_ready(off):
    told: list[BaseException] = []
    heard = threading.Event()

    def failed(error: BaseException) -> None:
        told.append(error)
        heard.set()

    with servers.starting(load=lambda: servers.parts_of(off), on_failed=failed) as url:
        assert heard.wait(60)
        reply = httpx.get(f"{url}/health/ready")
        assert error_of(reply) == (503, "not_ready")
        assert "failed" in reply.text
        assert error_of(httpx.post(f"{url}/v1/score", json={})) == (503, "not_ready")
    [error] = told
    assert isinstance(error, CheckpointError)
    assert "cases.1: visual_quality.mean: got " in error.problems[1]
    assert error.problems[1].endswith("off by 0.5, tolerance 0.001")


def test_switched_off_it_serves(off):
    with servers.serving(Settings(checkpoint=off, device="cpu", self_test=False)) as url:
        assert httpx.get(f"{url}/v1/info").json()["self_test"] is None
