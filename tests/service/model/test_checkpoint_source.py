"""A checkpoint on its devices: what is loaded, tested and described."""

import logging

import pytest
from safetensors.torch import load_file, save_file

from jrm_service.errors import CheckpointError
from jrm_service.model import golden, golden_recording
from jrm_service.model.checkpoint import open_checkpoint
from jrm_service.model.checkpoint_source import BUNDLED, open_source, scorer_in
from jrm_service.scoring.preparing import CheckpointPreparer
from support import checkpoints


@pytest.fixture
def path(tmp_path):
    return checkpoints.write(tmp_path / "checkpoint", checkpoints.one_pass())


@pytest.fixture
def recorded(path):
    golden_recording.record(open_checkpoint(path), golden_recording.drawn_examples())
    return path


def spoil(path) -> None:
    """Recorded numbers that no device gives."""
    document = golden.read(open_checkpoint(path)).model_dump()
    document["cases"][0]["reward"] += 1
    (path / golden.FILE).write_text(golden.Golden.model_validate(document).model_dump_json())


@pytest.mark.parametrize("engine", ["trie", "plain"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_self_test_is_described(recorded, engine, dtype):
    model, backends = open_source(recorded, ["cpu", "cpu"], dtype, engine).load()
    assert len(backends) == 2
    result = model.description["self_test"]
    assert result["cases"] == 4
    assert result["max_deviation"] <= result["tolerance"]
    assert result["tolerance"] == getattr(golden.read(open_checkpoint(recorded)).tolerance, dtype)


def test_without_golden_scores_there_is_nothing_to_test(path, caplog):
    with caplog.at_level(logging.INFO):
        model, _ = open_source(path, ["cpu"], "auto", "trie").load()
    assert model.description["self_test"] is None
    assert "no self-test: reward/golden.json is not there" in caplog.messages


def test_scores_that_are_off_are_not_served(recorded):
    spoil(recorded)
    with pytest.raises(CheckpointError, match=r"off by 1, tolerance 0\.001"):
        open_source(recorded, ["cpu"], "auto", "trie").load()


def test_golden_scores_of_another_checkpoint_are_refused(recorded):
    file = recorded / "model.safetensors"
    tensors = load_file(file)
    tensors["model.visual.pos_embed.weight"] += 1e-6
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match="recorded for"):
        open_source(recorded, ["cpu"], "auto", "trie").load()


def test_a_malformed_file_is_told_before_anything_is_loaded(recorded):
    (recorded / golden.FILE).write_text("{}")
    with pytest.raises(CheckpointError, match=r"golden\.json: cases: Field required"):
        open_source(recorded, ["cpu"], "auto", "trie")


def test_what_runs_and_in_which_precision_is_described(recorded):
    model, _ = open_source(recorded, ["cpu"], "bfloat16", "trie").load()
    assert model.precision == model.description["precision"] == "bfloat16"
    assert model.description["kernels"]["linear"] == "plain"
    assert open_source(recorded, ["cpu"], "auto", "plain").load()[0].description["kernels"]["attention"] == "plain"


def test_fp8_is_refused_on_a_cpu(recorded):
    with pytest.raises(CheckpointError, match=r"fp8 needs a GPU, the device is cpu; use --quantize none"):
        open_source(recorded, ["cpu"], "auto", "trie", quantize="fp8")
    with pytest.raises(CheckpointError, match=r"fp8 layers are fused ones; leave out --fused-layers false"):
        open_source(recorded, ["cpu"], "auto", "trie", quantize="fp8", fused_layers=False)


def test_a_scorer_in_each_precision_for_a_comparison(recorded):
    checkpoint = open_checkpoint(recorded)
    tests, preparer = golden.read(checkpoint), CheckpointPreparer(checkpoint)
    off = {
        precision: golden.check(tests, preparer, scorer_in(precision, checkpoint), precision).max_deviation
        for precision in ("float32", "float16", "bfloat16", "fp8")
    }
    assert sorted(off, key=off.get) == list(off)
    with pytest.raises(ValueError, match="precision 'int8': must be one of float32, bfloat16, float16, fp8"):
        scorer_in("int8", checkpoint)


def test_the_self_test_can_be_switched_off(recorded, caplog):
    spoil(recorded)
    with caplog.at_level(logging.INFO):
        model, _ = open_source(recorded, ["cpu"], "auto", "trie", self_test=False).load()
    assert model.description["self_test"] is None
    assert "no self-test: it is switched off" in caplog.messages


def test_the_bundled_checkpoint_is_served_when_none_is_given_and_passes_its_self_test():
    source = open_source(None, ["cpu"], "auto", "trie")
    assert source.checkpoint.path == BUNDLED
    model, _ = source.load()
    assert model.name == "jrm-tiny"
    assert model.description["self_test"]["cases"] >= 4


def test_the_bundled_checkpoint_is_small():
    assert sum(file.stat().st_size for file in BUNDLED.rglob("*") if file.is_file()) < 12_000_000


def test_a_cpu_has_a_fixed_token_budget(path):
    source = open_source(path, ["cpu"], "auto", "trie")
    _, backends = source.load()
    assert source.batch_tokens(backends) == 16_384


def test_the_sample_is_a_group_of_full_size(path):
    source = open_source(path, ["cpu"], "auto", "trie")
    sample = source.sample()
    full = source.checkpoint.image_spec.max_pixels / source.checkpoint.image_spec.factor**2
    assert len({one.edited.key for one in sample}) == len(sample) == 12
    assert len({one.source_keys for one in sample}) == 1
    assert all(full / 2 < one.edited.tokens <= full for one in sample)


@pytest.mark.parametrize(
    ("tokens", "edits", "side"),
    [(1600, 4, 1280), (4096, 6, 1024)],
    ids=["fewer edits", "too large for the context: a quarter of the size"],
)
def test_a_sample_of_large_images_is_bounded(tmp_path, tokens, edits, side):
    image = {"min_pixels": 1024, "max_pixels": 1024 * tokens, "resample": "bicubic"}
    large = checkpoints.write(tmp_path / "large", checkpoints.manifest(image=image))
    sample = open_source(large, ["cpu"], "auto", "trie").sample()
    assert sample[0].sources[0].pixels.shape == (side, side, 3)
    assert len(sample) == edits
