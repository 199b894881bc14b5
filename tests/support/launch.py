"""Two real processes, as torchrun starts them."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]


def two_processes(jobs: Sequence[dict[str, Any]], folder: Path) -> None:
    """Run ``support.two_processes`` twice, told apart by the environment, until all jobs are done.

    A job has ``recipe``, ``start`` and ``out``, and may have ``state``. ``folder`` gets their file.
    """
    with ExitStack() as stack:  # ports that are free now, each for one process group
        listening = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in jobs]
        ports = [server.getsockname()[1] for server in listening]
    file = folder / "jobs.json"
    file.write_text(json.dumps([job | {"port": port} for job, port in zip(jobs, ports, strict=True)]))
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    shared = os.environ | {"PYTHONPATH": path, "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "support.two_processes", str(file)]
    processes = [
        subprocess.Popen(command, env=shared | {"RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, text=True)
        for rank in "01"
    ]
    told = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(told)
