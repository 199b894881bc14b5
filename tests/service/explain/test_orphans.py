"""A server with vLLM behind it that is killed while critiques are written: nothing of it is left."""

from __future__ import annotations

import base64
import os
import re
import select
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from jrm_training.world import World
from support import processes
from support.pictures import encode


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_nothing_outlives_a_server_that_is_killed_while_it_writes_not_even_what_is_stopped() -> None:
    with processes.serving("--serve", "explain") as server:
        server.wait_until_ready()
        assert "libtorch" not in Path(f"/proc/{server.process.pid}/maps").read_text()
        [worker], [core] = server.children("jrm_service.model.explain_main"), server.children("VLLM::EngineCore")
        family = server.children("")
        assert len(family) > 2  # vLLM has more
        assert "libtorch" in Path(f"/proc/{worker}/maps").read_text()
        shared = {name for pid in family for name in shared_memory(pid)}
        assert shared
        watched = {pid: os.pidfd_open(pid) for pid in family}
        begun = threading.Barrier(5)
        with ThreadPoolExecutor(4) as pool:
            for number in range(4):
                pool.submit(keep_asking, server.url, number, begun)
            begun.wait(120)
            os.kill(core, signal.SIGSTOP)
            os.kill(worker, signal.SIGSTOP)
            server.process.kill()
            server.process.wait()
        deadline = time.monotonic() + 60
        left = []
        for pid, descriptor in watched.items():
            ended, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ended:
                left.append(Path(f"/proc/{pid}/cmdline").read_bytes())
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            os.close(descriptor)
        assert left == []
        assert [name for name in shared if Path(name).exists()] == []


def keep_asking(url: str, number: int, begun: threading.Barrier) -> None:
    group = World(4, seed=7, split="test", edits=1)[number]
    body = {
        "source": base64.b64encode(encode(group.source)).decode(),
        "edited": base64.b64encode(encode(group.edits[0].image)).decode(),
        "instruction": group.instruction,
        "stream": True,
    }
    first = True
    with suppress(httpx.TransportError):
        while True:
            with httpx.stream("POST", f"{url}/v1/explain", json=body, timeout=60) as reply:
                for _ in reply.iter_lines():
                    if first:
                        begun.wait(120)
                        first = False


def shared_memory(pid: int) -> set[str]:
    """Named segments and semaphores that a process has mapped."""
    return set(re.findall(r"/dev/shm/\S+", Path(f"/proc/{pid}/maps").read_text()))
