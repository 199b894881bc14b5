"""`jrm serve` as a process of its own, as users run it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx


@dataclass
class Served:
    """A running server. ``log`` grows while it runs."""

    process: subprocess.Popen[str]
    url: str = ""
    log: list[str] = field(default_factory=list)

    def wait_until_ready(self, seconds: float = 240) -> None:
        """Wait for /health/ready."""
        deadline = time.monotonic() + seconds
        while True:
            assert self.process.poll() is None, "".join(self.log)
            assert time.monotonic() < deadline, "".join(self.log)
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/health/ready").status_code == 200:
                    return
            time.sleep(0.1)

    def children(self, name: str) -> list[int]:
        """Process ids of descendants whose command line has ``name`` in it."""
        return children(self.process.pid, name)


def children(parent: int, name: str) -> list[int]:
    """Process ids of the descendants of a process whose command line has ``name`` in it."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    family, grown = {parent}, True
    while grown:
        found = {int(pid) for pid, its_parent, *_ in rows if int(its_parent) in family}
        grown = not found <= family
        family |= found
    return [int(pid) for pid, _, args in rows if int(pid) in family and int(pid) != parent and name in args]


@contextlib.contextmanager
def serving(*flags: str, **environment: str) -> Iterator[Served]:
    """A server on a free port, not necessarily ready. It is ended by SIGTERM and must exit with 0, unless the test has
    waited for its end."""
    command = [sys.executable, "-c", "from jrm_client.cli import main; main()", "serve", "--port", "0", *flags]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | environment
    )
    served = Served(process)
    known = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            served.log.append(line)
            if match := re.match(r"starting on (\S+)", line):
                served.url = match[1]
                known.set()
        known.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert known.wait(60), "".join(served.log)
        assert served.url, "".join(served.log)
        yield served
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, "".join(served.log)
    finally:
        process.kill()
        process.wait()
        reader.join(10)
        process.stdout.close()
