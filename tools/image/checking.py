"""Checks a built image: starts it as in production, and requests rewards from outside."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from jrm_client import JRMClient

from .building import ROOT
from .engine import Engine

SCENE = ROOT / "examples/scene"
EDITS = ["recoloured.png", "green-instead.png", "blurred.png"]
INSTRUCTION = "make the red square blue"
TOLERANCE = 1e-4
CANDIDATES_TO_DRAIN = 96  # the SDK sends as many images of this size in one request
READY_S = 300.0
_PROBE = Path(__file__).with_name("probe.py")


class Report:
    """Prints a line for each check, and counts failures."""

    def __init__(self) -> None:
        self.failures = 0

    def expect(self, what: str, actual: object, expected: object) -> None:
        """One line; a failure unless the two are equal."""
        self.check(what, actual == expected, f"{actual!r}, and should be {expected!r}")

    def check(self, what: str, holds: bool, otherwise: object = "") -> None:
        """One line; a failure, with the reason, unless it holds."""
        self.failures += not holds
        print(f"{'ok  ' if holds else 'FAIL'}  {what}{'' if holds else f': {otherwise}'}", flush=True)


def check(engine: Engine, image: str, target: str) -> int:
    """Print a line for each promise of an image; 1 if one is broken, else 0. Raises CalledProcessError."""
    report = Report()
    _configuration(engine, image, report)
    _inside(engine, image, target, report)
    _serving(engine, image, report)
    _size(engine, image)
    return int(report.failures > 0)


def _configuration(engine: Engine, image: str, report: Report) -> None:
    [inspected] = json.loads(engine.run("image", "inspect", image))
    config = inspected["Config"]
    report.expect("user", config["User"], "10001:10001")
    report.expect("entry point", [*config["Entrypoint"], *config["Cmd"]], ["jrm", "serve", "--host", "0.0.0.0"])
    report.expect("stop signal", config["StopSignal"], "SIGTERM")
    report.expect("port", [*config["ExposedPorts"]], ["8000/tcp"])
    health = config.get("Healthcheck") or inspected.get("Healthcheck") or inspected.get("HealthCheck") or {}
    report.expect("health check", health.get("Test"), ["CMD", "python3", "-I", "/opt/jrm/ready.py"])


def _inside(engine: Engine, image: str, target: str, report: Report) -> None:
    rights = _probe(engine, image, "rights")
    report.expect("runs as 10001", rights["user"], [10001, 10001])
    report.expect("has no capabilities", rights["capabilities"], 0)
    report.expect("gets no new privileges", rights["no_new_privileges"], 1)
    report.expect("can write to /tmp and /cache alone", rights["writable"], ["/tmp", "/cache"])
    contents = _probe(engine, image, "contents", "--user=0")
    report.expect("has no caches, tests, pip or leftovers of the build in it", contents["unwanted"], [])
    if target == "cpu":
        report.expect("has no compilers", contents["tools"], [])
    report.check(f"has bytecode for {contents['compiled']:.2%} of its modules", contents["compiled"] > 0.999)
    pins = (ROOT / f"constraints/{target}.txt").read_text(encoding="utf-8")
    pinned = {_plain(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)$", pins, re.MULTILINE)}
    installed = {_plain(name): version.partition("+")[0] for name, version in contents["versions"].items()}
    installed.pop("jrm-serve")
    others = dict(installed.items() - pinned.items())
    report.expect(f"has {len(installed)} packages of the versions in constraints/{target}.txt", others, {})


def _probe(engine: Engine, image: str, question: str, *flags: str) -> dict[str, Any]:
    with _PROBE.open("rb") as program:
        flags = ("--rm", "--interactive", "--entrypoint=python3", *flags)
        answer: dict[str, Any] = json.loads(engine.start(image, *flags, command=["-I", "-", question], stdin=program))
    return answer


def _plain(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _serving(engine: Engine, image: str, report: Report) -> None:
    with _repository_server() as url:
        expected = _rewards(url)
    port = _free_port()
    container = engine.start(image, "--detach", f"--env=JRM_PORT={port}")
    try:
        url = f"http://127.0.0.1:{port}"
        started = time.monotonic()
        _wait_until_ready(url, lambda: engine.run("inspect", "--format={{.State.Running}}", container) == "true")
        report.check(f"ready after {time.monotonic() - started:.1f} s", True)
        report.expect("health check says so", engine.status("exec", container, "python3", "-I", "/opt/jrm/ready.py"), 0)
        rewards = _rewards(url)
        off = float(np.abs(rewards - expected).max())
        figures = ", ".join(f"{reward:.4f}" for reward in rewards)
        report.check(f"rewards {figures}: off by {off:.1g} from `jrm serve` of this repository", off <= TOLERANCE, off)
        _drain(engine, container, url, report)
    except BaseException:
        engine.show("logs", container)
        raise
    finally:
        engine.run("rm", "--force", container)


def _drain(engine: Engine, container: str, url: str, report: Report) -> None:
    """SIGTERM in the middle of a request: it gets its rewards, and the exit status is 0."""
    source = Image.open(SCENE / "source.png").convert("RGB")
    edits = [_with_dot(source, number) for number in range(CANDIDATES_TO_DRAIN)]
    with JRMClient(url, timeout=120) as client, ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.score_group, source, INSTRUCTION, edits)
        deadline = time.monotonic() + 60
        while not _queue_depth(url) and not call.done() and time.monotonic() < deadline:
            time.sleep(0.01)
        under_way = not call.done()
        engine.run("kill", "--signal=TERM", container)
        rewards = call.result().rewards
    report.check("SIGTERM came while candidates were under way", under_way)
    report.expect("each got its reward", int(np.isfinite(rewards).sum()), CANDIDATES_TO_DRAIN)
    report.expect("exit status after SIGTERM", engine.run("wait", container), "0")


def _with_dot(image: Image.Image, number: int) -> Image.Image:
    dotted = image.copy()
    dotted.putpixel((number % image.width, number // image.width), (number, 0, 0))
    return dotted


def _queue_depth(url: str) -> float:
    [depth] = re.findall(r"^jrm_queue_depth (\S+)$", httpx.get(f"{url}/metrics").text, re.MULTILINE)
    return float(depth)


def _rewards(url: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    with JRMClient(url, timeout=120) as client:
        return client.score_group(SCENE / "source.png", INSTRUCTION, [SCENE / edit for edit in EDITS]).rewards


@contextlib.contextmanager
def _repository_server() -> Iterator[str]:
    """The URL of `jrm serve`, as this repository and its environment have it."""
    port = _free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JRM_")}
    command = [str(Path(sys.executable).parent / "jrm"), "serve", "--port", str(port), "--device", "cpu"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            _wait_until_ready(f"http://127.0.0.1:{port}", lambda: process.poll() is None)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def _wait_until_ready(url: str, alive: Callable[[], bool]) -> None:
    """Raises RuntimeError for a server that ended, TimeoutError for one that takes too long."""
    deadline = time.monotonic() + READY_S
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health/ready").status_code == 200:
                return
        if not alive():
            raise RuntimeError(f"the server at {url} ended before it was ready")
        if time.monotonic() > deadline:
            raise TimeoutError(f"the server at {url} was not ready after {READY_S:g} s")
        time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _size(engine: Engine, image: str) -> None:
    [inspected] = json.loads(engine.run("image", "inspect", image))
    print(f"\n{image}: {inspected['Size'] / 2**30:.2f} GiB, not compressed; layers:")
    print(engine.run("history", "--human", "--format={{.Size}}\t{{.CreatedBy}}", image))
