"""A `jrm serve` with the bundled checkpoint, which runs in the service's own environment."""

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SCENE = Path(__file__).resolve().parents[2] / "examples" / "scene"
SOURCE = SCENE / "source.png"
INSTRUCTION = "make the red square blue"
EDITS = [SCENE / f"{name}.png" for name in ("recoloured", "green-instead", "blurred", "unchanged")]
BROKEN = b"not an image"


@dataclass(frozen=True)
class RewardServer:
    url: str
    process: subprocess.Popen[str]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def serving() -> Iterator[RewardServer]:
    """A server that is ready, on a port of its own. The environment variable JRM names the `jrm` to start."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JRM_", "PYTHON"))}
    command = [os.environ["JRM"], "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            lines = iter(process.stdout.readline, "")
            ready = next((match for line in lines if (match := re.match(r"ready: .* at (http://\S+),", line))), None)
            assert ready, f"the server ended with status {process.wait()} before it was ready"
            yield RewardServer(ready[1], process)
        finally:
            process.kill()
