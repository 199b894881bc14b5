"""Real checkpoints in real worker processes: put to sleep, woken, killed in their sleep, and replaced."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from jrm_client import APIStatusError, FingerprintMismatch, JRMClient
from support import checkpoints, processes

WORKER = "jrm_service.model.main"
FLAGS = ("--admin", "true", "--cache-entries", "0")

pytestmark = pytest.mark.heavy


def images(count: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (48, 48, 3), np.uint8) for _ in range(count)]


def alone(client: JRMClient, source: np.ndarray, edits: list[np.ndarray]) -> bytes:
    """Rewards to the last bit: one at a time, for company changes the rounding."""
    return np.array([client.score(source, edit, "make it blue").reward for edit in edits]).tobytes()


def most_sources(server) -> int:
    """As the API's own description says."""
    schemas = httpx.get(f"{server.url}/openapi.json").json()["components"]["schemas"]
    return schemas["ScoreForm"]["properties"]["source"]["maxItems"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A reload root with a first and a second checkpoint, a link out of it, and one that fails its self-test."""
    outside = tmp_path_factory.mktemp("outside")
    root = tmp_path_factory.mktemp("root")
    for number, folder in enumerate((root / "first", root / "second", outside / "third")):
        manifest = checkpoints.one_pass() | {"name": f"jrm-{folder.name}"}
        manifest["image"] = manifest["image"] | {"max_sources": 1 + number}
        checkpoints.write(folder, manifest, seed=number)
    (root / "link").symlink_to(outside / "third", target_is_directory=True)
    (root / "inside").symlink_to(root / "second", target_is_directory=True)
    shutil.copytree(root / "second", root / "broken")
    with (root / "broken" / "model.safetensors").open("r+b") as weights:
        weights.seek(-64, os.SEEK_END)
        weights.write(b"\xff" * 64)  # NaN
    (root / "file").write_text("no folder")
    return root


def test_scores_are_bitwise_the_same_after_either_sleep():
    source, *edits = images(5)
    with processes.serving(*FLAGS) as server:
        server.wait_until_ready()
        with JRMClient(server.url, timeout=120) as client:
            before = alone(client, source, edits)
            [worker] = server.children(WORKER)
            client.sleep("host")
            assert server.children(WORKER) == [worker]
            client.wake()
            after_host = alone(client, source, edits)
            client.sleep("drop")
            assert server.children(WORKER) == []
            client.wake()
            assert before == after_host == alone(client, source, edits)


def test_a_worker_that_is_killed_in_its_sleep_is_back_after_the_wake():
    source, *edits = images(3)
    with processes.serving(*FLAGS, "--device", "cpu,cpu") as server:
        server.wait_until_ready()
        with JRMClient(server.url, timeout=120) as client:
            before = alone(client, source, edits)
            client.sleep("host")
            os.kill(server.children(WORKER)[0], signal.SIGKILL)
            time.sleep(1)
            client.wake()
            assert len(server.children(WORKER)) == 2
            assert alone(client, source, edits) == before


def test_another_checkpoint_takes_over_at_one_point(root):
    source, *edits = images(3)
    flags = (*FLAGS, "--checkpoint", str(root / "first"), "--reload-root", str(root))
    with processes.serving(*flags) as server:
        server.wait_until_ready()
        with (
            JRMClient(server.url, timeout=120, pin_fingerprint=True) as pinned,
            JRMClient(server.url, timeout=120) as client,
        ):
            first = pinned.score_group(source, "make it blue", edits)
            assert most_sources(server) == 1
            fingerprint = first.scores[0].fingerprint
            seen, failed, done = [], [], threading.Event()

            def ask() -> None:
                while not done.is_set():
                    try:
                        seen.append(client.score(source, edits[0], "make it blue"))
                    except Exception as error:
                        failed.append(error)

            caller = threading.Thread(target=ask)
            caller.start()
            second = client.reload("second")
            done.set()
            caller.join()
            assert failed == []
            prints = [score.fingerprint for score in seen]
            assert prints == sorted(prints, key=(fingerprint, second).index)  # never back again
            assert client.score(source, edits[0], "make it blue").fingerprint == second != fingerprint
            assert most_sources(server) == 2
            with pytest.raises(FingerprintMismatch):
                pinned.score_group(source, "make it blue", edits)
            assert client.reload("first", load="after") == fingerprint
            np.testing.assert_allclose(
                client.score_group(source, "make it blue", edits).rewards, first.rewards, atol=1e-5
            )
            assert client.reload(str(root / "inside")) == second  # a link that stays inside
            deadline = time.monotonic() + 30
            while len(server.children(WORKER)) > 1:  # those that were replaced end once they are done
                assert time.monotonic() < deadline
                time.sleep(0.1)
            info = client.info()
            assert (info["model"], info["fingerprint"]) == ("jrm-second", second)


def test_a_worker_that_is_stopped_in_its_sleep_does_not_keep_the_server_asleep():
    source, *edits = images(2)
    with processes.serving(*FLAGS, "--start-timeout-s", "20") as server:
        server.wait_until_ready()
        with JRMClient(server.url, timeout=180) as client:
            before = alone(client, source, edits)
            client.sleep()
            os.kill(server.children(WORKER)[0], signal.SIGSTOP)
            client.wake()
            assert alone(client, source, edits) == before


def test_weights_that_changed_in_the_sleep_are_not_taken_for_the_old_ones(root, tmp_path):
    source, *edits = images(2)
    shutil.copytree(root / "first", tmp_path / "step")
    flags = (*FLAGS, "--checkpoint", str(tmp_path / "step"), "--reload-root", str(tmp_path))
    with processes.serving(*flags) as server:
        server.wait_until_ready()
        with JRMClient(server.url, timeout=120) as client, ThreadPoolExecutor(1) as pool:
            first = client.score(source, edits[0], "make it blue").fingerprint
            client.sleep("drop")
            shutil.rmtree(tmp_path / "step")
            shutil.copytree(root / "second", tmp_path / "step")
            with pytest.raises(APIStatusError) as refused:
                client.wake()
            assert (refused.value.status, refused.value.code) == (400, "invalid_checkpoint")
            waiting = pool.submit(client.score, source, edits[0], "make it blue")
            second = client.reload("step")  # which wakes it
            assert waiting.result(60).fingerprint == second != first
            assert client.score(source, edits[0], "make it blue").fingerprint == second


def test_a_server_that_is_stopped_in_its_sleep_says_so_to_those_who_wait():
    source, *edits = images(2)
    with processes.serving("--backend", "fake", "--admin", "true") as server, ThreadPoolExecutor(1) as pool:
        server.wait_until_ready()
        with JRMClient(server.url, timeout=60, max_retries=0) as client:
            client.sleep()
            waiting = pool.submit(client.score, source, edits[0], "make it blue")
            time.sleep(0.5)
            server.process.send_signal(signal.SIGTERM)
            with pytest.raises(APIStatusError) as told:
                waiting.result(30)
            assert (told.value.status, told.value.code) == (503, "draining")
        assert server.process.wait(30) == 0


@pytest.mark.parametrize("load", ["beside", "after"])
def test_what_cannot_be_served_changes_nothing(root, load):
    source, *edits = images(3)
    flags = (*FLAGS, "--checkpoint", str(root / "first"), "--reload-root", str(root))
    with processes.serving(*flags) as server:
        server.wait_until_ready()
        with JRMClient(server.url, timeout=120, max_retries=0) as client:
            first = client.score_group(source, "make it blue", edits)
            for name, status, code in (
                ("broken", 400, "invalid_checkpoint"),
                ("file", 400, "invalid_request"),
                ("link", 400, "invalid_request"),
                ("../", 400, "invalid_request"),
                ("/", 400, "invalid_request"),
                ("no\0where", 400, "invalid_request"),
            ):
                with pytest.raises(APIStatusError) as refused:
                    client.reload(name, load=load)
                assert (refused.value.status, refused.value.code) == (status, code), name
                again = client.score_group(source, "make it blue", edits)
                assert again.scores[0].fingerprint == first.scores[0].fingerprint, name
                np.testing.assert_allclose(again.rewards, first.rewards, atol=1e-5)
            client.sleep("drop")
            with pytest.raises(APIStatusError):
                client.reload("broken", load=load)
            assert httpx.get(f"{server.url}/health").json()["status"] == "sleeping"
            client.wake()
            assert client.info()["fingerprint"] == first.scores[0].fingerprint


def test_a_server_without_a_root_loads_nothing():
    with processes.serving(*FLAGS) as server:
        server.wait_until_ready()
        with JRMClient(server.url, max_retries=0) as client, pytest.raises(APIStatusError) as refused:
            client.reload("anything")
        assert (refused.value.status, refused.value.code) == (400, "invalid_request")
