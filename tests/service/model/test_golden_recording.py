"""Recording golden scores: from which inputs, and what the file then says."""

import json

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from jrm_client.cli import app
from jrm_service.errors import CheckpointError
from jrm_service.model import golden, golden_recording
from jrm_service.model.checkpoint import open_checkpoint
from support import checkpoints
from support.pictures import encode, photo
from support.reference import Reference


@pytest.fixture
def checkpoint(tmp_path):
    return open_checkpoint(checkpoints.write(tmp_path / "checkpoint", checkpoints.one_pass()))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A checkpoint, and what was recorded for it."""
    path = checkpoints.write(tmp_path_factory.mktemp("recorded") / "checkpoint", checkpoints.one_pass())
    opened = open_checkpoint(path)
    return opened, golden_recording.record(opened, golden_recording.drawn_examples())


def write_pairs(folder, *rows):
    file = folder / "pairs.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def test_what_is_recorded_is_what_the_reference_gives(checkpoint):
    example = golden_recording.Example((photo(90, 70, seed=1),), photo(90, 70, seed=2), "make it blue")
    (case,) = golden_recording.record(checkpoint, [example]).cases
    expected = Reference(checkpoint.path).score(list(example.sources), example.edited, example.instruction)
    assert (case.reward, case.reward_std) == pytest.approx((expected["reward"], expected["reward_std"]), abs=1e-4)
    for name, (mean, std) in expected["dimensions"].items():
        assert (case.dimensions[name].mean, case.dimensions[name].std) == pytest.approx((mean, std), abs=1e-4)


def test_what_is_returned_is_what_is_written(recorded):
    checkpoint, returned = recorded
    assert golden.read(checkpoint) == returned


def test_recording_again_gives_the_same_file(checkpoint):
    files = []
    for _ in range(2):
        golden_recording.record(checkpoint, golden_recording.drawn_examples())
        files.append((checkpoint.path / golden.FILE).read_bytes())
    assert files[0] == files[1]


def test_drawn_examples_have_different_scores(recorded):
    cases = recorded[1].cases
    assert len({case.reward for case in cases}) == len(cases) == 4


def test_tolerances_are_never_below_the_defaults(recorded):
    tolerance, least = recorded[1].tolerance, golden.Tolerance()
    assert tolerance.float32 == least.float32
    assert tolerance.bfloat16 >= least.bfloat16
    assert tolerance.float16 >= least.float16


def test_a_checkpoint_that_rounds_badly_gets_more(tmp_path):
    """Three linear layers, each 32 times as steep: the same rounding of **h** moves the scores much farther."""
    path = checkpoints.write(tmp_path, checkpoints.mean_only(checkpoints.one_pass()))
    heads = load_file(path / "reward" / "heads.safetensors")
    save_file({name: tensor * 32 for name, tensor in heads.items()}, path / "reward" / "heads.safetensors")
    tolerance = golden_recording.record(open_checkpoint(path), golden_recording.drawn_examples()).tolerance
    assert tolerance.float32 == golden.Tolerance().float32
    assert tolerance.bfloat16 > 10 * golden.Tolerance().bfloat16
    assert tolerance.float16 > 10 * golden.Tolerance().float16


@pytest.mark.parametrize("count", [0, golden.MAX_CASES + 1])
def test_the_number_of_examples_is_bounded(checkpoint, count):
    with pytest.raises(ValueError, match=f"1 to {golden.MAX_CASES} examples, got {count}"):
        golden_recording.record(checkpoint, golden_recording.drawn_examples()[:1] * count)


def test_an_example_without_a_score_is_not_recorded(checkpoint):
    thin = golden_recording.Example((Image.new("RGB", (1000, 2)),), photo(), "make it blue")
    with pytest.raises(CheckpointError, match=r"cases\.0: nothing to record, the outcome is source: 1000 x 2"):
        golden_recording.record(checkpoint, [thin])
    assert not (checkpoint.path / golden.FILE).exists()


# --- pairs of one's own ----------------------------------------------------------------------------------------------


def test_pairs_are_read_beside_their_file(tmp_path):
    photo(seed=1).save(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(encode(photo(seed=2), "JPEG"))
    (example,) = golden_recording.read_examples(
        write_pairs(tmp_path, {"source": "a.png", "edited": "b.jpg", "instruction": "x"})
    )
    assert [source.tobytes() for source in example.sources] == [photo(seed=1).tobytes()]
    assert example.edited.size == photo().size
    assert example.instruction == "x"


def test_a_pair_has_any_number_of_sources(tmp_path):
    for name in "ab":
        photo(seed=ord(name)).save(tmp_path / f"{name}.png")
    rows = [
        {"edited": "b.png", "instruction": "x"},
        {"source": ["a.png", "b.png"], "edited": "b.png", "instruction": "x"},
    ]
    none, two = golden_recording.read_examples(write_pairs(tmp_path, *rows))
    assert none.sources == ()
    assert [source.tobytes() for source in two.sources] == [photo(seed=ord(name)).tobytes() for name in "ab"]


def test_every_bad_line_is_told(tmp_path):
    photo().save(tmp_path / "a.png")
    (tmp_path / "no.png").write_bytes(b"no image")
    good = {"source": "a.png", "edited": "a.png", "instruction": "x"}
    file = write_pairs(
        tmp_path, good, "{", "", [], good | {"edited": ""}, good | {"source": "none.png"}, good | {"edited": "no.png"}
    )
    with pytest.raises(ValueError, match=r"pairs\.jsonl:2") as caught:
        golden_recording.read_examples(file)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[1] for line in lines] == ["2", "4", "5", "6", "7"]
    assert "edited: missing, empty or not a string" in lines[2]
    assert "none.png" in lines[3]
    assert "not a PNG, JPEG, WebP or PPM image" in lines[4]


def test_pairs_are_read_as_jrm_score_reads_them(tmp_path):
    """A byte order mark and any line end; what is refused has file and line, in one line of our own words."""
    photo().save(tmp_path / "a.png")
    row = json.dumps({"source": "a.png", "edited": "a.png", "instruction": "x"})
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(f"\ufeff{row}\r\n\n{row}".encode())
    assert len(golden_recording.read_examples(file)) == 2
    for bad, reason in {
        row.replace('"x"', '"\\ud83d"'): "instruction has a lone surrogate",
        row.replace('"x"', '" "'): "instruction: ",
        row.replace("{", '{"id": 1e999, '): "the number 1e999 is too large",
        row.replace("{", '{"source": "b.png", '): "the key 'source' is there twice",
        row.replace("a.png", "/dev/zero"): "not a regular file",
        row.replace("a.png", ""): "source: neither a path nor a list of paths",
    }.items():
        file.write_text(f"{row}\n{bad}\n")
        with pytest.raises(ValueError, match=r"pairs\.jsonl:2: ") as caught:
            golden_recording.read_examples(file)
        assert reason in str(caught.value), bad
        assert len(str(caught.value).splitlines()) == 1, bad
        assert "http" not in str(caught.value), bad


# --- the command -----------------------------------------------------------------------------------------------------


def jrm(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_records_and_inspect_shows_it(checkpoint):
    result = jrm("golden", "--checkpoint", checkpoint.path)
    assert result.exit_code == 0, result.output
    assert f"wrote reward/golden.json: 4 cases of {checkpoint.fingerprint}, tolerance float32 0.001" in result.stdout
    facts = json.loads(jrm("inspect", checkpoint.path, "--json").stdout)
    assert facts["golden"]["cases"] == 4


def test_the_command_takes_pairs(checkpoint, tmp_path):
    photo().save(tmp_path / "a.png")
    pairs = write_pairs(tmp_path, {"source": "a.png", "edited": "a.png", "instruction": "x"})
    assert jrm("golden", "--checkpoint", checkpoint.path, "--pairs", pairs).exit_code == 0
    assert [case.instruction for case in golden.read(checkpoint).cases] == ["x"]


@pytest.mark.parametrize(
    ("rows", "told"),
    [(["{"], "error: pairs.jsonl:1: "), ([], "error: golden scores are recorded of 1 to 64 examples, got 0")],
)
def test_the_command_tells_what_is_wrong_with_pairs(checkpoint, tmp_path, rows, told):
    result = jrm("golden", "--checkpoint", checkpoint.path, "--pairs", write_pairs(tmp_path, *rows))
    assert result.exit_code == 1
    assert result.stderr.startswith(told)


def test_golden_scores_are_replaced_only_by_force(checkpoint):
    golden_recording.record(checkpoint, golden_recording.drawn_examples()[:1])
    refused = jrm("golden", "--checkpoint", checkpoint.path)
    assert refused.exit_code == 1
    assert "reward/golden.json: is there already; --force replaces it" in refused.stderr
    assert len(golden.read(checkpoint).cases) == 1
    assert jrm("golden", "--checkpoint", checkpoint.path, "--force").exit_code == 0
    assert len(golden.read(checkpoint).cases) == 4


def test_inspect_refuses_golden_scores_of_another_checkpoint(checkpoint):
    golden_recording.record(checkpoint, golden_recording.drawn_examples()[:1])
    manifest = checkpoint.path / "reward" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("How good", "How bad"))
    result = jrm("inspect", checkpoint.path)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: reward/golden.json: fingerprint: recorded for ")
