import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from client.scripted_server import Reply, Request, ScriptedServer, refusal, reward_of, score_all, score_entry, scores
from jrm_client.cli import app
from support.pictures import encode, photo

Serve = Callable[..., ScriptedServer]


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("S", "A", "B", "BAD"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def jrm(*arguments: object, **environment: str) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)


# --- one group --------------------------------------------------------------------------------------------------------


def test_a_table_for_people(serve: Serve, folder: Path) -> None:
    done = jrm("score", folder / "S", folder / "A", folder / "B", "-i", "red", "--url", serve().url)
    assert done.exit_code == 0, done.output
    assert all(heading in done.stdout for heading in ("edited", "reward", "instruction_following", "visual_quality"))
    assert f"{reward_of(b'A'):.4f} ± 0.2500" in done.stdout
    assert f"{reward_of(b'B') - 1:.4f} ± 0.5000" in done.stdout
    assert "scripted · f00d" in done.stdout


def test_json_for_programs(serve: Serve, folder: Path) -> None:
    done = jrm("score", folder / "S", folder / "A", "-i", "red", "--url", serve().url, "--json")
    printed = json.loads(done.stdout)
    assert (printed["source"], printed["instruction"]) == (str(folder / "S"), "red")
    [row] = printed["scores"]
    assert (row["edited"], row["status"], row["reward"]) == (str(folder / "A"), "ok", reward_of(b"A"))
    assert row["dimensions"]["visual_quality"] == {"mean": reward_of(b"A") - 1, "std": 0.5}


def test_no_source_and_several(serve: Serve, folder: Path) -> None:
    server = serve()
    sent = []
    for options in (["--no-source"], ["--source", folder / "S"], ["--source", folder / "S", "--source", folder / "B"]):
        done = jrm("score", *options, folder / "A", folder / "B", "-i", "red", "--url", server.url, "--json")
        assert done.exit_code == 0, done.output
        printed = json.loads(done.stdout)
        assert [Path(row["edited"]).name for row in printed["scores"]] == ["A", "B"]
        [group] = server.requests[-1].json["groups"]
        sent.append((printed["source"], group.get("source")))
    assert sent == [
        (None, None),
        (str(folder / "S"), "part:image-0"),
        ([str(folder / "S"), str(folder / "B")], ["part:image-0", "part:image-1"]),
    ]


def test_a_failed_edit_is_shown_beside_the_others(serve: Serve, folder: Path) -> None:
    done = jrm("score", folder / "S", folder / "A", folder / "BAD", "-i", "red", "--url", serve().url)
    assert done.exit_code == 1
    assert f"{reward_of(b'A'):.4f}" in done.stdout
    assert "invalid_image: edits[1]: not an image" in done.stdout


def test_a_failed_edit_has_no_number_in_json(serve: Serve, folder: Path) -> None:
    done = jrm("score", folder / "S", folder / "BAD", "-i", "red", "--url", serve().url, "--json")
    assert done.exit_code == 1
    [row] = json.loads(done.stdout)["scores"]
    assert set(row) == {"edited", "status", "error"}


def test_url_and_key_from_the_environment(serve: Serve, folder: Path) -> None:
    server = serve()
    done = jrm("score", folder / "S", folder / "A", "-i", "red", JRM_URL=server.url, JRM_API_KEY="sk-1")
    assert done.exit_code == 0, done.output
    assert server.requests[0].headers["authorization"] == "Bearer sk-1"


@pytest.mark.parametrize("form", ["{},{}", "{}, {}", "{} {}"])
def test_several_urls_in_the_environment(serve: Serve, folder: Path, form: str) -> None:
    down, up = serve(), serve()
    down.close()
    done = jrm("score", folder / "S", folder / "A", "-i", "red", JRM_URL=form.format(down.url, up.url))
    assert done.exit_code == 0, done.output


def test_a_failure_of_the_call_is_one_line(serve: Serve, folder: Path) -> None:
    done = jrm("score", folder / "S", folder / "A", "-i", "red", "--url", serve(refusal(401, "unauthorized")).url)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr.startswith("jrm score: HTTP 401 (unauthorized)")
    assert len(done.stderr.splitlines()) == 1


def test_a_missing_file(serve: Serve, folder: Path) -> None:
    done = jrm("score", folder / "S", folder / "nothing", "-i", "red", "--url", serve().url)
    assert done.exit_code == 1
    assert "edits[0]: No such file" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["S"],
        ["S", "A"],
        ["S", "-i", "red"],
        ["S", "A", "-i", "red", "--output", "o"],
        ["--jsonl", "rows"],
        ["--jsonl", "rows", "--output", "o", "-i", "red"],
        ["S", "--jsonl", "rows", "--output", "o"],
        ["--no-source", "--jsonl", "rows", "--output", "o"],
        ["--source", "S", "-i", "red"],
        ["--source", "S", "--no-source", "A", "-i", "red"],
    ],
)
def test_wrong_usage(arguments: list[str]) -> None:
    assert jrm("score", *arguments).exit_code == 2


def test_version() -> None:
    assert jrm("--version").stdout == f"jrm-serve {version('jrm-serve')}\n"


# --- JSONL ------------------------------------------------------------------------------------------------------------


class Job:
    """A JSONL file of pairs, where its scores go, and the command that gets them there."""

    def __init__(self, folder: Path, server: ScriptedServer) -> None:
        self.server, self.input, self.output = server, folder / "pairs.jsonl", folder / "scores.jsonl"

    def write(self, *rows: object) -> None:
        self.input.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))

    def run(self, *arguments: object) -> Any:
        return jrm(
            "score", "--jsonl", self.input, "--output", self.output, "--url", self.server.url, "--json", *arguments
        )

    def written(self) -> dict[int, dict[str, Any]]:
        rows = [json.loads(line) for line in self.output.read_bytes().splitlines()]
        assert len({row["line"] for row in rows}) == len(rows)
        return {row["line"]: row for row in rows}


@pytest.fixture
def job(serve: Serve, folder: Path) -> Job:
    return Job(folder, serve())


def pair(edited: str, **more: object) -> dict[str, object]:
    return {"source": "S", "edited": edited, "instruction": "red", **more}


def test_rows_are_scored_in_order(job: Job) -> None:
    job.write(pair("A", id="x-1"), pair("B"))
    done = job.run()
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"rows": 2, "scored": 2, "skipped": 0, "failed": []}
    first, second = job.written().values()
    assert (first["line"], first["id"], first["edited"], first["reward"]) == (1, "x-1", "A", reward_of(b"A"))
    assert (second["line"], second["reward"], second["fingerprint"]) == (2, reward_of(b"B"), "f00d")


def test_rows_have_a_path_a_list_of_paths_or_no_source(job: Job) -> None:
    job.write(pair("A", source=["S", "B"]), pair("A", source=None), {"edited": "B", "instruction": "red"}, pair("B"))
    job.write(
        *job.input.read_text().splitlines(), pair("A", source=[]), pair("A", source=["S", None]), pair("A", source=5)
    )
    done = job.run()
    assert [failure["line"] for failure in json.loads(done.stdout)["failed"]] == [5, 6, 7]
    assert all("source" in failure["reason"] for failure in json.loads(done.stdout)["failed"])
    assert [row.get("source", "absent") for row in job.written().values()] == [["S", "B"], None, "absent", "S"]
    sources = [group.get("source") for group in job.server.requests[0].json["groups"]]
    assert sources == [["part:image-0", "part:image-1"], None, "part:image-0"]
    assert json.loads(job.run().stdout)["skipped"] == 4  # and they are found again


def test_many_rows_go_in_several_requests(job: Job) -> None:
    job.write(*[pair("AB"[k % 2]) for k in range(150)])
    assert job.run().exit_code == 0
    assert [row["reward"] for row in job.written().values()] == [reward_of(b"A"), reward_of(b"B")] * 75
    assert len(job.server.requests) == 3


def test_finished_rows_are_not_scored_again(job: Job) -> None:
    job.write(pair("A"))
    job.run()
    job.write(pair("A"), pair("B"))
    assert json.loads(job.run().stdout) == {"rows": 2, "scored": 1, "skipped": 1, "failed": []}
    assert json.loads(job.run().stdout) == {"rows": 2, "scored": 0, "skipped": 2, "failed": []}
    assert list(job.written()) == [1, 2]
    assert len(job.server.requests) == 2


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_a_torn_last_line_is_repaired(job: Job, cut: int) -> None:
    job.write(pair("A"), pair("B"))
    job.run()
    whole = job.output.read_bytes()
    job.output.write_bytes(whole[:-cut])
    assert json.loads(job.run().stdout)["scored"] == 1
    assert job.output.read_bytes() == whole


def test_an_interrupted_run_keeps_what_it_had(job: Job) -> None:
    job.write(*[pair("A") for _ in range(100)])
    job.server.script = [score_all, refusal(401, "unauthorized")]
    assert job.run().exit_code == 1
    assert len(job.written()) == 64
    assert job.run().exit_code == 0
    assert len(job.written()) == 100


def test_bad_rows_are_reported_and_the_rest_is_scored(job: Job) -> None:
    job.write(
        pair("A"),
        "{not json",
        "",
        pair("nothing"),
        {"source": "S", "instruction": "red"},
        pair("BAD"),
        pair("B", instruction=" "),
        "[1]",
        pair("B"),
        pair("B", instruction=7),
        '{"source": "S", "edited": "A", "instruction": "\\ud800"}',
        '{"id": NaN, "source": "S", "edited": "A", "instruction": "red"}',
        "[" * 100_000,
    )
    done = job.run()
    assert done.exit_code == 1
    failed = {row["line"]: row["reason"] for row in json.loads(done.stdout)["failed"]}
    assert list(failed) == [2, 4, 5, 6, 7, 8, 10, 11, 12, 13]
    assert "not JSON" in failed[2]
    assert "No such file" in failed[4]
    assert failed[5] == "edited: missing, empty or not a string"
    assert failed[6].startswith("invalid_image: ")
    assert "not a JSON object" in failed[8]
    assert f"{job.input}:4: " in done.stderr
    assert list(job.written()) == [1, 9]


def test_one_poisoned_row_fails_alone(job: Job, folder: Path) -> None:
    """Whatever could not be read, sent or written again: the rows beside it are scored, and the output is strict."""
    row = json.dumps(pair("A"))
    (folder / "empty").write_bytes(b"")
    (folder / "sub").mkdir()
    os.mkfifo(folder / "pipe")
    deep = "[" * 900 + "]" * 900
    poison = {
        "a surrogate in the id": (json.dumps(pair("A", id="\ud83d")), "id has a lone surrogate"),
        "a surrogate in a key of the id": (json.dumps(pair("A", id={"\ud83d": 1})), "a key has a lone surrogate"),
        "a name that is not UTF-8": (json.dumps(pair("caf\udce9.png")), "edited has a lone surrogate"),
        "an id beyond float64": ('{"id": 1e999, ' + row[1:], "the number 1e999 is too large"),
        "a field that is not used": ('{"note": [-1e999], ' + row[1:], "the number -1e999 is too large"),
        "an endless id": ('{"id": ' + "9" * 5000 + ", " + row[1:], "is too large"),
        "a key twice": ('{"edited": "B", ' + row[1:], "the key 'edited' is there twice"),
        "an infinity": ('{"id": Infinity, ' + row[1:], "Infinity is not a JSON number"),
        "not an object": ("null", "not a JSON object but null"),
        "a null character": (json.dumps(pair("A\0")), "null"),
        "a long name": (json.dumps(pair("x" * 5000)), "too long"),
        "a folder": (json.dumps(pair("sub")), "not a regular file"),
        "a pipe": (json.dumps(pair("pipe")), "not a regular file"),
        "a device": (json.dumps(pair("/dev/zero")), "not a regular file"),
    }
    for kind, (text, reason) in poison.items():
        job.output.unlink(missing_ok=True)
        job.write(row, text, pair("B", id=10**400))
        done = job.run()
        assert done.exit_code == 1, kind
        [failed] = json.loads(done.stdout)["failed"]
        assert failed["line"] == 2, kind
        assert reason in failed["reason"], (kind, failed)
        assert f"{job.input}:2: " in done.stderr, kind
        assert list(job.written()) == [1, 3], kind
    job.output.unlink()
    job.write(row, pair("A", id=json.loads(deep)), pair("B"))
    job.run()
    assert {1, 3} <= set(job.written())  # the row between them is written whole, or refused


def test_a_file_from_any_editor_is_read(job: Job) -> None:
    for kind, data in {
        "a byte order mark": "\ufeff" + json.dumps(pair("A")) + "\n",
        "CRLF": json.dumps(pair("A")) + "\r\n",
        "no line end": json.dumps(pair("A")),
        "a line separator": json.dumps(pair("A", id="x\u2028y"), ensure_ascii=False) + "\n",
    }.items():
        job.output.unlink(missing_ok=True)
        job.input.write_bytes(data.encode())
        done = job.run()
        assert done.exit_code == 0, (kind, done.stderr)
        assert list(job.written()) == [1], kind


def test_failed_rows_are_tried_again(job: Job, folder: Path) -> None:
    job.write(pair("BAD"), pair("A"))
    assert job.run().exit_code == 1
    (folder / "BAD").write_bytes(b"repaired")
    assert job.run().exit_code == 0
    assert job.written()[1]["reward"] == reward_of(b"repaired")


def test_a_row_that_the_server_refuses_does_not_take_its_neighbours_along(job: Job) -> None:
    def picky(request: Request) -> Reply:
        return refusal(413, "payload_too_large") if b"B" in request.images.values() else score_all(request)

    job.server.then = picky
    job.write(pair("A"), pair("B"), pair("A"))
    done = job.run()
    assert [row["line"] for row in json.loads(done.stdout)["failed"]] == [2]
    assert list(job.written()) == [1, 3]


def test_scores_of_two_checkpoints_are_not_mixed(job: Job) -> None:
    job.write(pair("A"))
    job.run()
    job.write(pair("A"), pair("B"))
    job.server.script = [lambda request: scores([[score_entry(0, b"B")]], fingerprint="beef")]
    done = job.run()
    assert done.exit_code == 1
    assert "another output file" in done.stderr
    assert list(job.written()) == [1]


def test_an_output_of_another_input_is_refused(job: Job) -> None:
    job.write(pair("A"))
    job.run()
    job.write(pair("B"))
    done = job.run()
    assert done.exit_code == 1
    assert "line 1" in done.stderr


@pytest.mark.parametrize("foreign", ["hello\n", "notes", "{}\n", '{"line": 1}\n', "[1]\n", "[" * 100_000 + "\n"])
def test_an_output_that_is_something_else_is_left_alone(job: Job, foreign: str) -> None:
    job.write(pair("A"))
    job.output.write_text(foreign)
    assert job.run().exit_code == 1
    assert job.output.read_text() == foreign


def test_the_input_is_never_the_output(job: Job) -> None:
    """Not even its last row, when that has no line end."""
    job.input.write_text(json.dumps(pair("A")) + "\n" + json.dumps(pair("B")))
    before = job.input.read_text()
    job.output = job.input
    assert job.run().exit_code == 1
    assert job.input.read_text() == before


def test_an_output_that_cannot_be_read_back_is_refused(job: Job) -> None:
    job.write(pair("A"))
    job.output = Path("/dev/null")
    done = job.run()
    assert done.exit_code == 1
    assert "must be a regular file" in done.stderr


def test_relative_paths_can_start_elsewhere(job: Job, folder: Path) -> None:
    images = folder / "images"
    images.mkdir()
    for name in ("S", "A"):
        (folder / name).rename(images / name)
    job.write(pair("A"))
    assert job.run().exit_code == 1
    assert job.run("--root", images).exit_code == 0


def test_people_get_a_summary(serve: Serve, folder: Path) -> None:
    (folder / "pairs.jsonl").write_text(json.dumps(pair("A")) + "\n")
    done = jrm("score", "--jsonl", folder / "pairs.jsonl", "-o", folder / "out.jsonl", "--url", serve().url)
    assert "1 scored, 0 had a score already, 0 failed" in done.stdout
    assert "1/1" in done.stderr


# --- as a page --------------------------------------------------------------------------------------------------------


def test_a_page_beside_the_table(serve: Serve, tmp_path: Path) -> None:
    names = {"source": 1, "first": 2, "<b>second": 3}
    for name, seed in names.items():
        (tmp_path / f"{name}.png").write_bytes(encode(photo(600, 400, seed=seed)))
    (tmp_path / "BAD").write_bytes(b"BAD")
    edits = [tmp_path / "first.png", tmp_path / "<b>second.png", tmp_path / "BAD"]
    html = tmp_path / "scores.html"
    done = jrm("score", tmp_path / "source.png", *edits, "-i", "<i>red", "--url", serve().url, "--html", html)
    assert done.exit_code == 1, done.output  # one has no score
    assert "reward" in done.stdout
    text = html.read_text(encoding="utf-8")
    assert text.count("<img ") == 3
    assert "&lt;b&gt;second.png" in text
    assert "&lt;i&gt;red" in text
    assert "invalid_image" in text
    assert "<i>" not in text


def test_a_page_of_a_group_without_a_source_and_beside_json(serve: Serve, folder: Path) -> None:
    html = folder / "scores.html"
    options = ["--no-source", folder / "A", "-i", "red", "--url", serve().url, "--json", "--html", html]
    done = jrm("score", *options)
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)["scores"]) == 1
    assert "<table>" in html.read_text(encoding="utf-8")


def test_a_page_is_of_one_group_and_never_over_an_image(serve: Serve, folder: Path) -> None:
    url = serve().url
    many = jrm("score", "--jsonl", folder / "x", "--output", folder / "y", "--html", folder / "z", "--url", url)
    over = jrm("score", folder / "S", folder / "A", "-i", "red", "--html", folder / "A", "--url", url)
    assert (many.exit_code, over.exit_code) == (2, 2)
    assert "--html" in many.output
    assert "written over" in over.output
    assert (folder / "A").read_bytes() == b"A"


def test_a_page_that_cannot_be_written_loses_no_score(serve: Serve, folder: Path) -> None:
    done = jrm("score", folder / "S", folder / "A", "-i", "red", "--url", serve().url, "--html", folder / "no" / "x")
    assert done.exit_code == 1
    assert f"{reward_of(b'A'):.4f}" in done.stdout
    assert done.stderr.startswith("jrm score: ")
