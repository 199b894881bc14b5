"""``jrm annotate`` as a user calls it, against a scripted endpoint: killed, gone on with, and trained on."""

import json
import signal
import subprocess
import sys
import threading

import pytest
import typer
from typer.testing import CliRunner

from jrm_training.annotate_command import annotate
from jrm_training.data import read_groups
from jrm_training.train_commands import train
from jrm_training.trainer import read_log
from support import checkpoints
from support.preferences import both, row, write
from support.scripted_endpoint import Reply, ScriptedEndpoint, critique, good, judgement

KEY = "sk-very-secret"
DIMENSIONS = ("instruction_following", "visual_quality")

app = typer.Typer()
for command in (annotate, train):
    app.command()(command)


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def rows(count):
    return [row(n, both(1 + n % 4, 4), both(4 - n % 4, 1)) for n in range(count)]


def contrary(asked):
    """Wrong about how well edit 1 follows, whatever one says."""
    if asked.instruction == "edit 1" and not asked.reads:
        return Reply(critique(1 if judgement(asked) >= 3 else 4, regions=True))
    return good(asked)


def test_rows_get_their_critiques(tmp_path):
    data, out = write(tmp_path / "data", rows(3)), tmp_path / "annotated.jsonl"
    with ScriptedEndpoint(good).serving() as endpoint:
        done = run("annotate", data, "--out", out, "--model", "m", "--base-url", endpoint.url)
    assert done.exit_code == 0, done.output
    groups = read_groups(out, DIMENSIONS)
    assert len(groups) == 3
    for group, known in zip(groups, read_groups(data, DIMENSIONS), strict=True):
        assert (group.source, group.instruction) == (known.source, known.instruction)
        for edit, before in zip(group.edits, known.edits, strict=True):
            assert (edit.image, edit.labels) == (before.image, before.labels)
            assert list(edit.critiques) == list(DIMENSIONS)
    critiques = json.loads(out.read_text().splitlines()[0])["edits"][0]["critiques"]
    assert critiques["instruction_following"]["edit_region"][0]["bbox_2d"] == [200, 100, 500, 300]
    assert critiques["visual_quality"] == {"reasoning": "The light is flawless."}
    assert f"wrote 3 rows with 12 critiques to {out} (24,000 tokens in, 2,400 out, 0.00)" in done.stdout
    assert not out.with_name("annotated.jsonl.rejects").exists()


def test_what_was_given_up_is_told_and_its_row_is_kept(tmp_path):
    data, out = write(tmp_path, rows(3)), tmp_path / "annotated.jsonl"
    with ScriptedEndpoint(contrary).serving() as endpoint:
        done = run(
            *("annotate", data, "--out", out, "--model", "m", "--base-url", endpoint.url),
            *("--price-in", 2, "--price-out", 10),
        )
    assert done.exit_code == 1
    assert "wrote 3 rows with 10 critiques" in done.stdout
    assert "gave up 2 critiques: 1: the words argue for a score of" in done.stdout
    rejects = [json.loads(line) for line in out.with_name("annotated.jsonl.rejects").read_text().splitlines()]
    assert [(one["line"], one["edit"], one["dimension"]) for one in rejects] == [
        (2, 0, "instruction_following"),
        (2, 1, "instruction_following"),
    ]
    assert all(len(one["reasons"]) == 3 and one["answer"] for one in rejects)
    assert [list(edit.critiques) for edit in read_groups(out, DIMENSIONS)[1].edits] == [["visual_quality"]] * 2
    # 10 critiques in two requests each, 2 in three answers and three readings each: 32 requests
    assert "(32,000 tokens in, 3,200 out, 0.10)" in done.stdout


def test_what_comes_out_trains(tmp_path):
    data, out = write(tmp_path / "data", rows(4)), tmp_path / "annotated.jsonl"
    with ScriptedEndpoint(good).serving() as endpoint:
        assert run("annotate", data, "--out", out, "--model", "m", "--base-url", endpoint.url).exit_code == 0
    recipe = tmp_path / "small.toml"
    recipe.write_text(
        'name = "small"\nbatch = 2\nmicro_batch = 2\nsaved_dtype = "float32"\n'
        '[data]\njsonl = "replaced"\n[optimizer]\nlr = 1e-3\n'
    )
    start = checkpoints.write(tmp_path / "start", checkpoints.two_passes())
    done = run(
        *("train", "--recipe", recipe, "--checkpoint", start, "--data", out, "--out", tmp_path / "run"),
        *("--device", "cpu"),
    )
    assert done.exit_code == 0, done.output
    log = read_log(tmp_path / "run")
    assert len(log) == 2
    assert all(line["language"] > 0 for line in log)


def test_nothing_is_lost_on_a_kill(tmp_path):
    """A process is killed while four critiques are under way: the next one asks for no more than was missing."""
    data, out = write(tmp_path, rows(10)), tmp_path / "annotated.jsonl"
    journal = out.with_name("annotated.jsonl.journal")
    stuck, killed = threading.Semaphore(0), threading.Event()

    def script(asked):
        if not killed.is_set() and not asked.reads and len(endpoint.asked) > 30:
            stuck.release()
            killed.wait(60)
        return good(asked)

    endpoint = ScriptedEndpoint(script)
    with endpoint.serving():
        command = [
            *(sys.executable, "-m", "jrm_training", "annotate", str(data), "--out", str(out), "--model", "m"),
            *("--base-url", endpoint.url, "--concurrency", "4"),
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(4):  # every worker waits for an answer, so whatever was answered before is settled
            assert stuck.acquire(timeout=60), process.communicate(timeout=10)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed.set()
        assert not out.exists()
        settled = len(journal.read_text().splitlines()) - 1
        assert settled > 10
        before = len(endpoint.asked)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert len(endpoint.asked) - before == 2 * (40 - settled)
    assert len(journal.read_text().splitlines()) == 1 + 40
    assert all(
        list(edit.critiques) == list(DIMENSIONS) for group in read_groups(out, DIMENSIONS) for edit in group.edits
    )


def test_ctrl_c_says_how_to_go_on(tmp_path):
    data, out = write(tmp_path, rows(2)), tmp_path / "annotated.jsonl"
    asked, released = threading.Event(), threading.Event()

    def script(request):
        asked.set()
        released.wait(60)
        return good(request)

    with ScriptedEndpoint(script).serving() as endpoint:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "jrm_training", "annotate", str(data), "--out", str(out), "--model", "m"),
                *("--base-url", endpoint.url),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Whoever runs the tests in the background has SIGINT ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert asked.wait(60)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        released.set()
    assert process.returncode == 130
    assert "stopped; the same command continues from" in errors
    assert "Traceback" not in errors


def test_the_progress_has_tokens_and_cost(tmp_path):
    data, out = write(tmp_path, rows(2)), tmp_path / "annotated.jsonl"
    with ScriptedEndpoint(good).serving() as endpoint:
        done = run(
            *("annotate", data, "--out", out, "--model", "m", "--base-url", endpoint.url, "--price-in", 100),
        )
    assert "8/8" in done.stderr
    assert "16,000 tokens in, 1,600 out, 1.60" in done.stderr


def test_a_dry_run_asks_nothing_and_writes_nothing(tmp_path):
    data, out = write(tmp_path, rows(3)), tmp_path / "annotated.jsonl"
    files = sorted(tmp_path.rglob("*"))
    with ScriptedEndpoint(good).serving() as endpoint:
        done = run(
            *("annotate", data, "--out", out, "--model", "m", "--base-url", endpoint.url, "--dry-run"),
            *("--price-in", 1000, "--price-out", 1000),
        )
    assert done.exit_code == 0, done.output
    assert endpoint.asked == []
    assert sorted(tmp_path.rglob("*")) == files
    assert "12 critiques of 3 rows to write, 0 are settled" in done.stdout
    assert "24 requests:" in done.stdout
    assert "counted as 4 characters or 1,024 pixels a token" in done.stdout


def test_a_dry_run_learns_from_what_was_answered(tmp_path):
    data, out = write(tmp_path, rows(8)), tmp_path / "annotated.jsonl"
    with ScriptedEndpoint(good).serving() as endpoint:
        common = ("annotate", data, "--out", out, "--model", "m", "--base-url", endpoint.url)
        assert run(*common, "--limit", 5).exit_code == 0
        done = run(*common, "--dry-run", "--price-in", 10, "--price-out", 100)
    # 12 critiques are left, each of 2,000 tokens to read and 200 to write
    assert "12 critiques of 8 rows to write, 20 are settled" in done.stdout
    assert "24 requests: 24,000 tokens to read, 2,400 to write, about 0.48" in done.stdout
    assert "the mean of 20 critiques" in done.stdout


def test_a_limited_run_goes_on_to_the_whole(tmp_path):
    data, out = write(tmp_path, rows(4)), tmp_path / "annotated.jsonl"
    with ScriptedEndpoint(good).serving() as endpoint:
        common = ("annotate", data, "--out", out, "--model", "m", "--base-url", endpoint.url)
        assert run(*common, "--limit", 1).exit_code == 0
        assert len(read_groups(out, DIMENSIONS)) == 1
        assert len(endpoint.asked) == 8
        assert run(*common).exit_code == 0
    assert len(read_groups(out, DIMENSIONS)) == 4
    assert len(endpoint.asked) == 4 * 8


def test_the_key_is_sent_and_shown_to_nobody(tmp_path):
    data, out = write(tmp_path, rows(1)), tmp_path / "annotated.jsonl"
    with ScriptedEndpoint(lambda _: Reply("no", 401)).serving() as endpoint:
        done = run("annotate", data, "--out", out, "--model", "m", "--base-url", endpoint.url)
    assert endpoint.asked[0].headers["authorization"] == f"Bearer {KEY}"
    assert done.exit_code == 1
    assert "HTTP 401: no" in done.stderr
    assert KEY not in done.output
    assert all(KEY.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_another_variable_and_body(tmp_path, monkeypatch):
    monkeypatch.setenv("OTHER_KEY", "another")
    data, out = write(tmp_path, rows(1)), tmp_path / "annotated.jsonl"
    with ScriptedEndpoint(good).serving() as endpoint:
        done = run(
            *("annotate", data, "--out", out, "--model", "m", "--base-url", endpoint.url, "--api-key-env", "OTHER_KEY"),
            *("--extra-body", '{"skip_special_tokens": false}', "--dimension", "visual_quality=quality"),
        )
    assert done.exit_code == 0, done.output
    assert {asked.headers["authorization"] for asked in endpoint.asked} == {"Bearer another"}
    assert all(asked.body["skip_special_tokens"] is False for asked in endpoint.asked)
    assert all(list(edit.critiques) == ["visual_quality"] for edit in read_groups(out, DIMENSIONS)[0].edits)


def test_prompts_of_ones_own(tmp_path):
    data, out, own = write(tmp_path, rows(1)), tmp_path / "annotated.jsonl", tmp_path / "prompts.json"
    own.write_text(json.dumps({"quality": "Judgement: {judgement} Quality?"}))
    with ScriptedEndpoint(good).serving() as endpoint:
        common = ("annotate", data, "--out", out, "--model", "m", "--base-url", endpoint.url)
        done = run(*common, "--prompts", own)
        assert done.exit_code == 0, done.output
        assert {asked.texts[0] for asked in endpoint.asked if "Quality?" in asked.texts[0]} == {
            "Judgement: 4 of 4. Quality?",
            "Judgement: 1 of 4. Quality?",
        }
        done = run(*common)
    assert "has answers for another prompts; use another --out" in done.stderr


def test_another_model_needs_another_file(tmp_path):
    data, out = write(tmp_path, rows(1)), tmp_path / "annotated.jsonl"
    with ScriptedEndpoint(good).serving() as endpoint:
        common = ("annotate", data, "--out", out, "--base-url", endpoint.url)
        assert run(*common, "--model", "m").exit_code == 0
        done = run(*common, "--model", "n")
    assert done.exit_code == 1
    assert "has answers for another model; use another --out" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "here/out.jsonl"], "expected a file in an existing folder"),
        (["--out", "DATA"], "this is the input file"),
        (["--out", "TAKEN"], "is not overwritten"),
        (["--boxes", "xyxy"], "expected yx or xy"),
        (["--response-format", "xml"], "expected schema, json or none"),
        (["--dimension", "beauty"], "expected NAME=following or NAME=quality"),
        (["--scale", "4:1"], "expected LOW:HIGH"),
        (["--extra-body", "[]"], "expected a JSON object"),
        (["--extra-body", "{"], "not JSON"),
        (["--prompts", "nowhere.json"], "No such file"),
        (["--prompts", "TAKEN"], "not JSON"),
        (["--prompts", "LIST"], "expected an object with texts for following, quality, or both"),
    ],
)
def test_wrong_usage(tmp_path, arguments, message):
    data, taken = write(tmp_path, rows(1)), tmp_path / "taken.jsonl"
    taken.write_text("mine\n")
    (tmp_path / "list.json").write_text('{"beauty": "?"}')
    known = {"DATA": data, "TAKEN": taken, "LIST": tmp_path / "list.json"}
    out = [] if "--out" in arguments else ["--out", tmp_path / "out.jsonl"]
    done = run("annotate", data, "--model", "m", *out, *(known.get(argument, argument) for argument in arguments))
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())
    assert taken.read_text() == "mine\n"
    assert not (tmp_path / "out.jsonl.journal").exists()


def test_bad_data_is_told_before_anything_is_asked(tmp_path):
    data, out = write(tmp_path, [row(1, both(9, 9), both(1, 1))]), tmp_path / "annotated.jsonl"
    with ScriptedEndpoint(good).serving() as endpoint:
        done = run("annotate", data, "--out", out, "--model", "m", "--base-url", endpoint.url)
    assert done.exit_code == 1
    assert "line 1: edits[0].labels.instruction_following: 9 is not on the scale of 1 to 4" in done.stderr
    assert endpoint.asked == []
