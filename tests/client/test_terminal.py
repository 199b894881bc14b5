"""What is printed suits where it goes: no column is cut, no encoding ends a command, JSON is always JSON."""

import io
import json
import os
import subprocess
import sys

import pytest
from rich.table import Table
from rich.text import Text

from jrm_client.terminal import print_json, print_table

LONG = "flux_kontext_lora_r64_step_000500_sample_00001_[bold]x[/bold].png"
NUMBERS = ("0.1234 ± 0.2500", "-1.0000 ± 0.5000")


def table() -> Table:
    grid = Table("edited")
    grid.add_column("reward", justify="right")
    grid.add_column("instruction_following", justify="right")
    grid.add_row(Text(LONG), *NUMBERS)
    grid.add_row(Text("b.png"), Text("invalid_image: not an image that we read, and a long reason why it is not"))
    return grid


def shown(monkeypatch: pytest.MonkeyPatch, *, encoding: str = "utf-8", **environment: str) -> str:
    buffer = io.BytesIO()
    with monkeypatch.context() as patch:
        for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "TERM"):
            patch.delenv(name, raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        stream = io.TextIOWrapper(buffer, encoding=encoding, errors="jrm-spelt-out")
        patch.setattr(sys, "stdout", stream)
        print_table(table())
        stream.flush()
    return buffer.getvalue().decode(encoding)


def test_outside_of_a_terminal_a_table_is_as_wide_as_its_content(monkeypatch: pytest.MonkeyPatch) -> None:
    for environment in ({}, {"TERM": "dumb"}, {"FORCE_COLOR": "1"}, {"NO_COLOR": "1"}, {"COLUMNS": "wide"}):
        printed = shown(monkeypatch, **environment)
        assert LONG in printed, environment
        assert all(number in printed for number in NUMBERS), environment
        assert "a long reason why it is not" in printed, environment
        assert "…" not in printed, environment
        assert ("\x1b" in printed) == ("FORCE_COLOR" in environment), environment


def test_a_narrow_terminal_folds_names_and_keeps_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in ("1", "20", "40", "79"):
        lines = shown(monkeypatch, COLUMNS=columns).splitlines()
        assert all(any(number in line for line in lines) for number in NUMBERS), columns
        names = "".join(line.split("│")[1].strip() for line in lines if line.startswith("│"))
        assert names.startswith(LONG), columns
        assert "…" not in "".join(lines), columns
    assert max(map(len, shown(monkeypatch, COLUMNS="79").splitlines())) <= 79


def test_an_encoding_without_the_characters_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    for encoding in ("ascii", "latin-1", "cp437"):
        printed = shown(monkeypatch, encoding=encoding)
        assert LONG in printed, encoding
        assert "0.1234" in printed, encoding


def test_json_is_json_in_every_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"edited": "café \udce9 ✓"}
    for encoding in ("utf-8", "ascii", "latin-1"):
        buffer = io.BytesIO()
        with monkeypatch.context() as patch:
            stream = io.TextIOWrapper(buffer, encoding=encoding)
            patch.setattr(sys, "stdout", stream)
            print_json(value)
            stream.flush()
        assert json.loads(buffer.getvalue().decode(encoding)) == value, encoding


def run(*arguments: str, stdout: int, **environment: str) -> subprocess.CompletedProcess[bytes]:
    program = [sys.executable, "-c", "from jrm_client.cli import main; main()", *arguments]
    return subprocess.run(
        program, stdout=stdout, stderr=subprocess.PIPE, env={**os.environ, **environment}, check=False
    )


def test_a_closed_pipe_and_a_full_disk_end_a_command_without_a_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = run("--version", stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        done = run("--version", stdout=full)
    finally:
        os.close(full)
    assert (done.returncode, done.stderr) == (1, b"jrm: [Errno 28] No space left on device\n")


def test_what_a_user_typed_is_told_in_any_encoding() -> None:
    done = run("score", "b\udce9.png", "b\udce9.png", "-i", "é", stdout=subprocess.DEVNULL, PYTHONIOENCODING="ascii")
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert b"b\\udce9.png" in done.stderr
