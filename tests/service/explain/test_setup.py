"""What keeps a server from explaining is said before anything is served, and ends it with status 1."""

import subprocess
import sys
from pathlib import Path

import pytest

from jrm_service.app import create_app
from jrm_service.errors import ExplainSetupError
from jrm_service.settings import Settings
from support import checkpoints

JRM = str(Path(sys.executable).parent / "jrm")


def problems(**settings) -> str:
    with pytest.raises(ExplainSetupError) as raised:
        create_app(Settings(device="cpu", **settings))
    return "\n".join(raised.value.problems)


def test_a_fake_has_no_language_head():
    assert "--backend fake has no language head" in problems(serve="explain", backend="fake")


def test_a_checkpoint_that_explains_nothing(tmp_path):
    path = checkpoints.write(tmp_path, checkpoints.one_pass() | {"explain": {}})
    for serve in ("explain", "score,explain"):
        assert "has no 'explain'" in problems(serve=serve, checkpoint=path)


def test_what_its_worker_finds_ends_the_server():
    small, large = ["--explain-cache-gib", "0.001"], ["--explain-cache-gib", "1000000"]
    for flags, told in (
        (["--serve", "explain", *small], "serve explain: cpu: explain_cache_gib gives 0.00 GiB, one sequence of 2048"),
        (["--serve", "score,explain", *large], "scoring and vLLM each weights"),
    ):
        command = [JRM, "serve", "--port", "0", "--device", "cpu", *flags]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert ended.returncode == 1, flags
        [first, *_] = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
        assert told in ended.stderr, (flags, ended.stderr)
        assert "Traceback" not in ended.stderr
        assert first
