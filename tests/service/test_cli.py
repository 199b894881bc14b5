"""The commands as a user runs them; a server, and what ends before one is there, in processes of their own."""

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
from click.testing import Result
from typer.testing import CliRunner

from jrm_client.cli import app
from jrm_service.model import golden_recording
from jrm_service.model.checkpoint import open_checkpoint
from support import checkpoints, processes
from support.cases import each

JRM = [str(Path(sys.executable).parent / "jrm")]


def jrm(*arguments: str, **options) -> subprocess.CompletedProcess:
    """For `jrm serve`, which decides about the logging of its process, and for what depends on the environment."""
    return subprocess.run([*JRM, *arguments], capture_output=True, text=True, check=False, timeout=120, **options)


def invoke(*arguments: str) -> Result:
    """For the other commands, and settings that are refused: in this process, which has imported torch already."""
    return CliRunner().invoke(app, arguments)


@contextlib.contextmanager
def served(*arguments: str, **options) -> Iterator[tuple[subprocess.Popen, str, str]]:
    """A server process, its URL and everything it printed until it was ready."""
    command = [*JRM, "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options) as process:
        printed = ""
        try:
            for line in process.stdout:
                printed += line
                if line.startswith("curl "):
                    break
            assert "ready: " in printed, f"the server ended with {process.wait()} before it was ready:\n{printed}"
            yield process, re.search(r"http://[\d.]+:\d+", printed)[0], printed
        finally:
            process.kill()


def test_serve_prints_a_curl_line_that_works_and_ends_cleanly(tiny_checkpoint):
    """Torch is in the workers alone."""
    with served("--checkpoint", str(tiny_checkpoint), "--device", "cpu,cpu") as (process, url, printed):
        assert "ready: jrm-tiny-untrained" in printed
        (line,) = [line for line in printed.splitlines() if line.startswith("curl ")]
        reply = subprocess.run(shlex.split(line), capture_output=True, text=True, check=True, timeout=60)
        assert json.loads(reply.stdout)["groups"][0]["scores"][0]["status"] == "ok"
        assert url in line
        workers = processes.children(process.pid, "jrm_service.model.main")
        maps = {pid: Path(f"/proc/{pid}/maps").read_text() for pid in (process.pid, *workers)}
        assert [pid for pid in maps if "libtorch" in maps[pid]] == workers
        assert len(workers) == 2
        assert "jrm_workers_alive 2.0" in httpx.get(f"{url}/metrics").text
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_the_fake_backend_needs_no_torch_and_ends_cleanly_when_it_is_interrupted():
    with served("--backend", "fake") as (process, url, _):
        assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
        assert httpx.get(f"{url}/v1/info").json()["model"] == "jrm-fake"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_json_logs_are_json_line_by_line(tmp_path):
    with (tmp_path / "log").open("w+") as log:
        command = [*JRM, "serve", "--backend", "fake", "--port", "0", "--log-format", "json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process:
            line = next(line for line in process.stdout if line.startswith("curl "))
            subprocess.run(shlex.split(line), capture_output=True, check=True, timeout=60)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        log.seek(0)
        records = [json.loads(line) for line in log]
    [access] = [record for record in records if record["logger"] == "jrm.access"]
    assert (access["route"], access["status"], access["candidates"]) == ("/score", 200, 1)
    assert access["time"] < "9999"


def test_a_broken_keys_file_is_told_before_anything_starts(tmp_path):
    (tmp_path / "keys").write_text("trainer-a my-password\n")
    run = jrm("serve", "--backend", "fake", "--port", "0", "--api-keys-file", str(tmp_path / "keys"))
    assert run.returncode == 1
    assert "keys: line 1: " in run.stderr
    assert "my-password" not in run.stderr


def test_a_broken_checkpoint_is_told_before_anything_starts(tmp_path):
    path = checkpoints.write(tmp_path / "broken", checkpoints.one_pass())
    (path / "config.json").unlink()
    (path / "reward" / "heads.safetensors").unlink()
    problems = ["error: config.json: missing", "error: reward/heads.safetensors: missing"]
    run = jrm("serve", "--port", "0", "--checkpoint", str(path))
    assert (run.returncode, run.stderr.splitlines()) == (1, problems)
    run = invoke("inspect", str(path))
    assert (run.exit_code, run.stderr.splitlines()) == (1, problems)


def test_a_failed_self_test_ends_the_server_and_says_by_how_much(tmp_path):
    path = checkpoints.write(tmp_path / "off", checkpoints.one_pass())
    golden_recording.record(open_checkpoint(path), golden_recording.drawn_examples())
    file = path / "reward" / "golden.json"
    document = json.loads(file.read_text())
    document["cases"][3]["reward"] += 0.5
    file.write_text(json.dumps(document))
    run = jrm("serve", "--port", "0", "--checkpoint", str(path), "--device", "cpu")
    assert run.returncode == 1
    assert "ready: " not in run.stdout
    assert "error: reward/golden.json: self-test on cpu in float32: 1 of 24 numbers are off by up to 0.5" in run.stderr
    assert "off by 0.5, tolerance 0.001" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_device_that_is_not_there_is_told(tiny_checkpoint):
    run = jrm("serve", "--port", "0", "--checkpoint", str(tiny_checkpoint), "--device", "cuda:0")
    assert run.returncode == 1
    assert "torch sees 0 GPUs here" in run.stderr


def test_a_port_that_is_taken_is_told():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        run = jrm("serve", "--backend", "fake", "--port", str(port))
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == f"error: cannot listen on port {port} of 127.0.0.1: Address already in use"


def test_what_cannot_be_used_is_told_in_a_line(tmp_path):
    """No traceback for what a user typed or set."""
    (tmp_path / "bytes").write_bytes(b"a\xff\xfe sha256:\0")
    strange = os.fsdecode(b"strange\xff")
    settings = [
        (["--port", "http"], "error: port: "),
        (["--log-format", "TEXT"], "error: log_format: "),
        (["--grace-s", "1e300"], "error: grace_s: "),
        (["--api-keys-file", ""], "error: api_keys_file: is empty"),
        (["--redis-url", "http://x"], "error: redis_url: must be redis://"),
        (["--otlp-endpoint", "http://[::1"], "error: otlp_endpoint: must be "),
    ]
    for flags, told in settings:
        run = invoke("serve", "--backend", "fake", "--port", "0", *flags)
        assert run.exit_code == 2, flags
        assert run.stderr.splitlines()[-1].startswith(told), run.stderr
        assert isinstance(run.exception, SystemExit), flags
    cases = [
        (["--host", "nosuchhost.invalid"], {}, "error: the host nosuchhost.invalid has no address here: "),
        (["--host", "a" * 300], {}, "error: the host aaa"),
        (["--host", "192.0.2.1"], {}, "error: cannot listen on port 0 of 192.0.2.1: "),
        (["--api-keys-file", str(tmp_path)], {}, f"error: {tmp_path}: Is a directory"),
        (["--api-keys-file", str(tmp_path / "bytes")], {}, f"error: {tmp_path}/bytes: not UTF-8"),
        ([], {"JRM_API_KEYS_FILE": strange}, "error: strange"),
        ([], {"JRM_HOST": strange}, "error: host: "),
        ([], {"JRM_" + strange: "1"}, "error: unknown environment variable JRM_strange"),
        (
            ["--otlp-endpoint", "http://127.0.0.1:1"],
            {"OTEL_ATTRIBUTE_COUNT_LIMIT": "many"},
            "error: otlp_endpoint: OpenTelemetry refuses its environment variables (OTEL_…)",
        ),
    ]
    for flags, variables, told in cases:
        run = jrm("serve", "--backend", "fake", "--port", "0", *flags, env=os.environ | variables)
        assert run.returncode in (1, 2), (flags, variables)
        assert run.stderr.splitlines()[-1].startswith(told), run.stderr
        assert "Traceback" not in run.stderr, (flags, variables)


def test_variables_of_the_platform_keep_no_server_from_starting(tmp_path):
    """A Service called jrm, and what hosting platforms and process managers set for others."""
    variables = {
        "JRM_PORT": "tcp://10.0.0.1:8000",
        "JRM_SERVICE_HOST": "10.0.0.1",
        "JRM_PORT_8000_TCP_ADDR": "10.0.0.1",
        "WEB_CONCURRENCY": "many",
        "FORWARDED_ALLOW_IPS": "nonsense",
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "nothing"),
        "NO_PROXY": "::1/128",
        "HTTP_PROXY": "socks9://x:y",
    }
    with served("--backend", "fake", env=os.environ | variables) as (_, url, printed):
        assert httpx.get(f"{url}/health/live", trust_env=False).status_code == 200
    told = "ignored, because Kubernetes or Docker sets them for services of such names: "
    assert f"INFO: {told}JRM_PORT, JRM_PORT_8000_TCP_ADDR, JRM_SERVICE_HOST\n" in printed
    run = jrm("settings", env=os.environ | variables)
    assert json.loads(run.stdout)["port"] == 8000
    assert run.stderr == f"note: {told}JRM_PORT, JRM_PORT_8000_TCP_ADDR, JRM_SERVICE_HOST\n"


def test_settings_prints_a_path_that_is_no_text():
    strange = os.fsdecode(b"strange\xff")
    run = jrm("settings", env=os.environ | {"JRM_API_KEYS_FILE": strange})
    assert json.loads(run.stdout)["api_keys_file"] == strange


def test_wrong_settings_are_told_by_name():
    run = invoke("serve", "--port", "99999", "--dtype", "int8")
    assert run.exit_code == 2
    assert "port: " in run.stderr
    assert "dtype: " in run.stderr


def test_settings_prints_what_is_in_force(monkeypatch):
    monkeypatch.setenv("JRM_MAX_QUEUE", "5000")
    printed = json.loads(invoke("settings", "--port", "8123", "--self-test", "false").stdout)
    assert (printed["port"], printed["max_queue"], printed["self_test"]) == (8123, 5000, False)


def test_inspect_names_everything(tiny_checkpoint):
    facts = json.loads(invoke("inspect", str(tiny_checkpoint), "--json").stdout)
    assert facts["name"] == "jrm-tiny-untrained"
    expected = {
        "fingerprint",
        "backbone",
        "dimensions",
        "passes",
        "heads",
        "reward",
        "reward_token",
        "image",
        "provenance",
        "golden",
    }
    assert expected <= set(facts)
    table = invoke("inspect", str(tiny_checkpoint)).stdout
    assert facts["fingerprint"] in table
    assert "instruction_following" in table


def test_inspect_holds_a_checkpoint_to_the_fingerprint_that_is_expected(tiny_checkpoint):
    fingerprint = open_checkpoint(tiny_checkpoint).fingerprint
    assert invoke("inspect", "--expect", fingerprint, str(tiny_checkpoint)).exit_code == 0
    run = invoke("inspect", "--expect", "0" * 32, str(tiny_checkpoint))
    assert run.exit_code == 1
    assert run.stderr == f"error: {tiny_checkpoint}: the fingerprint is {fingerprint}, expected {'0' * 32}\n"


def test_help_lists_every_command():
    run = invoke("--help")
    assert run.exit_code == 0
    for command in ("score", "serve", "settings", "inspect", "golden", "key"):
        assert command in run.stdout


@each("command", ["serve", "settings", "inspect", "golden", "key"])
def test_every_command_has_help(command):
    assert invoke(command, "--help").exit_code == 0
