"""Server processes of ours, each on a port that it keeps: started, stopped, killed and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

ROOT = Path(__file__).parents[1]


class CPUSeconds(NamedTuple):
    """Of a whole process, and of its main thread, which runs the event loop."""

    process: float
    main_thread: float


class Replica:
    """A process of ``benchmarks.paced``. As a context manager it is ready inside, and killed at the end.

    Args:
        settings: of the server, by name.
        arguments: flags of ``benchmarks.paced``.
        log: file that its log lines are appended to.
        port: a free one where none is given.
        module: the Python module that the process runs, with the flags of ``benchmarks.paced``.
    """

    def __init__(
        self,
        settings: Mapping[str, object],
        arguments: Sequence[object],
        log: Path,
        port: int | None = None,
        *,
        module: str = "benchmarks.paced",
    ) -> None:
        self._port = port or free_port()
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("JRM_")}
        self._environment |= {f"JRM_{name.upper()}": str(value) for name, value in settings.items()}
        self._environment["JRM_PORT"] = str(self._port)
        self._command = [sys.executable, "-m", module, *map(str, arguments)]
        self._log = log
        self._process: subprocess.Popen[str] | None = None
        self.url = f"http://127.0.0.1:{self._port}"

    def launch(self) -> None:
        """Start the process, and return before it is ready. One that ended by itself is forgotten."""
        if self._process is not None:
            self.wait()
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, env=self._environment, stdout=subprocess.PIPE, stderr=log, text=True
            )

    def wait_ready(self) -> None:
        """Block until it serves. Raises RuntimeError if it ends instead."""
        stdout = self._running.stdout
        assert stdout is not None
        for line in stdout:
            if line.startswith("ready: "):
                return
        raise RuntimeError(f"a replica ended with {self._running.wait()} before it was ready; see {self._log}")

    def start(self) -> None:
        """Start the process, and wait until it serves."""
        self.launch()
        self.wait_ready()

    def stop(self, timeout_s: float = 60.0) -> int:
        """Ask it to end, as an orchestrator does (SIGTERM); its exit status. Raises subprocess.TimeoutExpired."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def kill(self) -> None:
        """End it without a word (SIGKILL)."""
        self.signal(signal.SIGKILL)
        self.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._running.send_signal(number)

    def wait(self, timeout_s: float = 60.0) -> int:
        """The exit status, once it has ended. Raises subprocess.TimeoutExpired."""
        status = self._running.wait(timeout_s)
        if self._running.stdout is not None:
            self._running.stdout.close()
        return status

    @property
    def ended(self) -> bool:
        """Whether there is no process any more."""
        return self._process is None or self._process.poll() is not None

    @property
    def resident_bytes(self) -> int:
        """Memory of the process that is in use (Linux)."""
        pages = int(Path(f"/proc/{self._running.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    @property
    def cpu_seconds(self) -> CPUSeconds:
        """What its threads have computed so far (Linux); those that have ended are not in it."""
        tasks = Path(f"/proc/{self._running.pid}/task")
        threads = {int(task.name): int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()}
        return CPUSeconds(sum(threads.values()) / 1e9, threads[self._running.pid] / 1e9)

    @property
    def _running(self) -> subprocess.Popen[str]:
        assert self._process is not None, "it was never started"
        return self._process

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self.ended:
            self.kill()


def free_port() -> int:
    """A port of the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
