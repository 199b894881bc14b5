"""Commands of other packages, found by entry point: real files on the path, real metadata, a real process."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PLUGIN = """
from __future__ import annotations
from typing import Annotated
import typer

def paint(colour: Annotated[str, typer.Argument(help="which")], coats: Annotated[int, typer.Option()] = 1) -> None:
    \"\"\"Paint it.\"\"\"
    print(colour * coats)

group = typer.Typer(help="Do things to it.")

@group.command()
def dry() -> None:
    \"\"\"Dry it.\"\"\"
    print("dry")

@group.command()
def wash() -> None:
    \"\"\"Wash it.\"\"\"
    print("washed")

def broken() -> None:
    \"\"\"Needs something.\"\"\"
    import a_module_that_nobody_has.inside

def explaining() -> None:
    \"\"\"Needs vllm.\"\"\"
    raise ModuleNotFoundError("No module named 'vllm'", name="vllm.engine")

def failing() -> None:
    \"\"\"Fails otherwise.\"\"\"
    raise typer.Exit(3)
"""

ENTRY_POINTS = """
[jrm.commands]
paint = jrm_training:paint
thing = jrm_training:group
broken = jrm_training:broken
explaining = jrm_training:explaining
failing = jrm_training:failing
absent = a_module_that_nobody_has:run
"""


@pytest.fixture
def jrm(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    (tmp_path / "jrm_training.py").write_text(PLUGIN)
    metadata = tmp_path / "plugin-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv[0] = 'jrm'\n"
        "import atexit; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n"
        "from jrm_client.cli import main; main()"
    )

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)

    return run


def test_a_command_keeps_its_arguments_and_options(jrm: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = jrm("paint", "red", "--coats", "2")
    assert (done.returncode, done.stdout) == (0, "redred\n")


def test_a_group_has_commands_of_its_own(jrm: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    assert jrm("thing", "wash").stdout == "washed\n"
    assert "Dry it." in jrm("thing", "--help").stdout


def test_help_lists_every_command_without_torch(jrm: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = jrm("--help")
    names = ("score", "paint", "Paint it.", "Do things to it.", "broken", "absent", "Not installed.")
    assert all(name in done.stdout for name in names)
    assert done.stderr == "False\n"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("broken", "jrm broken needs a_module_that_nobody_has: pip install 'jrm-serve[train]'"),
        ("explaining", "jrm explaining needs vllm: pip install 'jrm-serve[explain]'"),
        ("absent", "jrm absent needs the Python module a_module_that_nobody_has, which is not installed"),
    ],
)
def test_a_missing_module_names_its_extra(
    jrm: Callable[..., subprocess.CompletedProcess[str]], command: str, message: str
) -> None:
    done = jrm(command)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == message
    assert "Traceback" not in done.stderr


def test_a_missing_command_takes_any_option(jrm: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    assert jrm("absent", "--checkpoint", "x", "y").returncode == 1


def test_an_exit_status_passes_through(jrm: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    assert jrm("failing").returncode == 3


def test_an_unknown_command_is_wrong_usage(jrm: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    assert jrm("nonsense").returncode == 2
