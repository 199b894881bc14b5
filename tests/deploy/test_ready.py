"""The health check of the images, run as the container runs it."""

import os
import socket
import subprocess
import sys
import threading

from deploy.dockerfile import ROOT
from support import servers


def check(port: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"JRM_PORT": port, "http_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, "-I", ROOT / "deploy/image/ready.py"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def port_of(url: str) -> str:
    return url.rpartition(":")[2]


def test_a_ready_server_is_healthy_whatever_the_proxy():
    with servers.serving() as url:
        assert check(port_of(url)).returncode == 0


def test_a_server_that_loads_is_not_healthy():
    asked = threading.Event()
    try:
        with servers.starting(load=lambda: asked.wait() and servers.fake_parts()) as url:
            assert check(port_of(url)).returncode == 1
    finally:
        asked.set()


def test_no_server_is_not_healthy():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        done = check(str(free.getsockname()[1]))
    assert done.returncode == 1
    assert "no answer" in done.stderr
