"""What becomes of a worker process that cannot be started, or understood."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jrm_service.device.child import Child

TESTS = str(Path(__file__).parents[2])


def test_a_message_that_cannot_be_read_ends_the_process(monkeypatch, caplog):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([TESTS, os.environ.get("PYTHONPATH", "")]))
    ended = []

    async def main() -> None:
        child = Child("support.garbled_worker", lambda _message: None, ended.append)
        await child.lost
        await child.end()  # returns, although nobody listens any more
        with pytest.raises(ProcessLookupError):
            os.kill(child.pid, 0)

    asyncio.run(asyncio.wait_for(main(), 60))
    assert ended == ["was ended by SIGKILL"]
    assert "cannot be read" in caplog.text


def test_a_machine_without_room_for_a_process_is_a_failed_start():
    """Whoever waits for the process tries again then, and tells somebody in the end."""
    program = """
import asyncio, os, resource
from jrm_service.device.child import Child
from jrm_service.scoring.backend import StartFailed

async def main():
    most = len(os.listdir("/proc/self/fd")) + {room}
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        Child("no_module", print, print)
    except StartFailed as error:
        print(error)

asyncio.run(main())
"""
    for room, message in ((0, "its channel could not be opened: "), (2, "its process could not be started: ")):
        command = [sys.executable, "-c", program.format(room=room)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout.startswith(message), (room, done.stdout, done.stderr)
