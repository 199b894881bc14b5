"""``python -m studies``: measured once, drawn again from the document."""

import pytest
import typer
from studies.__main__ import study
from studies.study import FILE, write_study
from studies.table import BEGIN, END, render
from typer.testing import CliRunner

from support import studies

app = typer.Typer()
app.command()(study)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def measured(tmp_path):
    document = studies.document(0.7, 0.0)
    write_study(tmp_path / FILE, document)
    return document


def test_a_run_is_measured_and_drawn(tmp_path):
    folder = studies.run_folder(tmp_path / "run", 0.7)
    out = tmp_path / "docs"
    done = run(folder, "--out", out, "--groups", 2, "--edits", 3, "--critiques", 1, "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert sorted(file.name for file in out.iterdir()) == [
        "study-accuracy.png",
        "study-curves.png",
        "study-representation.png",
        "study.json",
    ]
    assert "| **Test split, 2 groups of 3 edits** |" in done.stdout


def test_without_runs_the_document_is_drawn_again(tmp_path, measured):
    page = tmp_path / "training.md"
    page.write_text(f"above\n{BEGIN}\n{END}\nbelow\n")
    before = (tmp_path / FILE).read_bytes()
    done = run("--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert done.stdout == render(measured) + "\n"
    assert page.read_text() == f"above\n{BEGIN}\n{render(measured)}{END}\nbelow\n"
    assert (tmp_path / FILE).read_bytes() == before


def test_a_page_without_the_marks_is_left_alone(tmp_path, measured):
    page = tmp_path / "training.md"
    page.write_text("mine\n")
    assert run("--out", tmp_path).exit_code == 0
    assert page.read_text() == "mine\n"


def test_edits_without_a_score_fail_the_command(tmp_path, measured):
    measured["runs"][0]["splits"]["unseen"] |= {"failed": {"count": 1, "codes": {"internal": 1}}}
    write_study(tmp_path / FILE, measured)
    assert run("--out", tmp_path).exit_code == 1


def test_problems_are_told(tmp_path):
    done = run("--out", tmp_path)
    assert (done.exit_code, "study.json" in done.stderr) == (1, True)
    done = run(tmp_path / "nothing", "--out", tmp_path)
    assert (done.exit_code, "not a folder" in done.stderr) == (1, True)
