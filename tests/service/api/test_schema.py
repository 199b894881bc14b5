"""schemathesis against a running server: what the schema allows is answered as the schema says."""

import subprocess
import sys
from pathlib import Path

from support import servers

ROOT = Path(__file__).parents[3]


def test_the_server_keeps_to_its_schema():
    """Every operation, valid and invalid data; settings and image data are in schemathesis.toml."""
    with servers.serving() as url:
        command = [
            sys.executable,
            "-m",
            "schemathesis.cli",
            "run",
            f"{url}/openapi.json",
            "--checks",
            "all",
            "--no-color",
        ]
        options = ["--max-examples", "80", "--seed", "1", "--generation-database", "none"]
        run = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-1000:]
    assert "9 selected / 9 total" in run.stdout
