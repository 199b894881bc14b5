"""``jrm evaluate --benchmark`` on a tiny checkpoint with random weights."""

import json
import sys

import pytest
import typer
from typer.testing import CliRunner

from jrm_training.evaluate_command import evaluate
from support import benchmark_files, checkpoints
from support.pictures import encode, photo

app = typer.Typer()
app.command()(evaluate)


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return checkpoints.write(tmp_path_factory.mktemp("tiny"), checkpoints.one_pass())


@pytest.fixture
def bench(checkpoint, tmp_path):
    """Runs the command on rows of GenAI-Bench; gives the result, and the JSON report if there is one."""

    def run(path, *arguments, name="genai-bench"):
        figures = tmp_path / "figures.json"
        done = CliRunner().invoke(
            app,
            [
                *("--benchmark", name, str(path), "--checkpoint", str(checkpoint), "--device", "cpu"),
                *("--out", str(tmp_path / "scores.jsonl"), "--json", str(figures), *map(str, arguments)),
            ],
        )
        return done, json.loads(figures.read_text()) if figures.exists() else None

    return run


def rows(count):
    votes = ("leftvote", "rightvote", "tievote")
    return [
        benchmark_files.genai_row(
            n,
            votes[n % 3],
            0,
            0,
            source_image=encode(photo(64, 48, seed=n)),
            left_output_image=encode(photo(64, 48, seed=100 + n)),
            right_output_image=encode(photo(64, 48, seed=200 + n)),
        )
        for n in range(count)
    ]


def test_figures_of_every_output(bench, tmp_path):
    done, figures = bench(benchmark_files.write_jsonl(tmp_path / "data", rows(6)), "--revision", "v1")
    assert done.exit_code == 0, done.output
    assert figures["data"]["revision"] == "v1"
    assert figures["model"] == "jrm-tiny-untrained"
    assert list(figures["outputs"]) == ["instruction_following", "visual_quality", "reward"]
    assert figures["outputs"]["reward"]["figures"]["all"]["strict_accuracy"]["count"] == 6
    for words in ("TIGER-Lab/GenAI-Bench", "6 pairs", "2 ties", "as published: with ties", "revision v1"):
        assert words in done.stdout


def test_a_limited_run_goes_on_to_the_whole(bench, tmp_path):
    path = benchmark_files.write_jsonl(tmp_path / "data", rows(5))
    done, figures = bench(path, "--limit", 2)
    assert (done.exit_code, figures["data"]["rows"], figures["data"]["pairs"]) == (0, 5, 2)
    assert "2 of 5 rows" in done.stdout
    assert figures["data"]["revision"] == "unknown"
    scored = (tmp_path / "scores.jsonl").read_text()
    done, figures = bench(path)
    assert (done.exit_code, figures["data"]["pairs"]) == (0, 5)
    assert (tmp_path / "scores.jsonl").read_text().startswith(scored)
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 5


def test_bad_rows_end_it_unless_they_are_to_be_left_out(bench, tmp_path):
    bad = [*rows(3), rows(1)[0] | {"vote_type": "maybe"}]
    path = benchmark_files.write_jsonl(tmp_path / "data", bad)
    done, figures = bench(path)
    assert (done.exit_code, figures) == (1, None)
    assert "rows.jsonl line 4: vote_type" in done.stderr
    done, figures = bench(path, "--skip-bad")
    assert done.exit_code == 0
    assert "left out: rows.jsonl line 4: vote_type" in done.stderr
    assert figures["data"]["left_out"] == [
        "rows.jsonl line 4: vote_type: expected one of leftvote, rightvote, tievote, bothbad_vote, got maybe"
    ]


def test_pairs_that_the_checkpoint_cannot_take_are_counted(bench, tmp_path):
    pairs = [benchmark_files.mmrb2_pair(n, "A", 1, 2, sources=1 + n % 2) for n in range(4)]
    done, figures = bench(benchmark_files.write_mmrb2(tmp_path / "data", pairs).parent, name="mmrb2")
    assert done.exit_code == 1
    assert figures["failed"] == {"count": 4, "codes": {"invalid_request": 4}}
    assert figures["outputs"]["reward"]["figures"]["all/several sources"]["published_accuracy"]["value"] is None
    assert "edits without a score, whose pairs are in no figure: 4 (invalid_request 4)" in done.stdout


def test_parquet_without_pyarrow_says_what_to_install(bench, tmp_path, monkeypatch):
    folder = benchmark_files.write_parquet(tmp_path / "image_edition" / "test_v1-0.parquet", rows(1)).parent
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    done, _ = bench(folder)
    assert done.exit_code == 1
    assert "pip install 'jrm-serve[parquet]'" in done.stderr


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.parquet", b"not Parquet", "not a Parquet file that can be read"),
        ("edit.json", b"{", "not JSON"),
        ("edit.json", b'{"rows": []}', "expected an object with a list 'pairs'"),
        ("rows.jsonl", b"", "no rows to evaluate"),
    ],
)
def test_a_file_that_is_none(bench, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    done, _ = bench(tmp_path / name, name="mmrb2")
    assert done.exit_code == 1
    assert message in done.stderr


def test_a_folder_without_the_benchmark(bench, tmp_path):
    done, _ = bench(tmp_path, name="mmrb2")
    assert done.exit_code == 1
    assert "none of edit.json" in done.stderr
    done, _ = bench(tmp_path / "nowhere")
    assert "no such file or folder" in done.stderr
