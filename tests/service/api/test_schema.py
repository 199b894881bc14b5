"""schemathesis against a running server: what the schema allows is answered as the schema says."""

import subprocess
import sys
from pathlib import Path

import pytest

from support import servers

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("seed", [1, 2])
def test_the_server_keeps_to_its_schema(seed):
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
        options = ["--max-examples", "40", "--seed", str(seed), "--generation-database", "none"]
        run = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-1000:]
    assert "9 selected / 9 total" in run.stdout
