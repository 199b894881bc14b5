"""What training writes is a checkpoint that a server loads, with nothing left of the old scores."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from jrm_service.errors import CheckpointError
from jrm_service.model.checkpoint import open_checkpoint
from jrm_service.model.checkpoint_files import write_json
from jrm_service.model.checkpoint_source import open_source
from jrm_service.model.golden_recording import drawn_examples, record
from jrm_training.export import export
from jrm_training.model import JointModel
from support import checkpoints
from support.editreward import read
from support.training import weights

EXAMPLES = drawn_examples()[:2]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def start(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("start") / "start"
    checkpoint = open_checkpoint(checkpoints.write(folder, checkpoints.two_passes(), tied=request.param))
    record(checkpoint, EXAMPLES[:1])
    return checkpoint


@pytest.fixture(scope="module")
def trained(start):
    """(stock weights, tensors of the heads), each moved a little."""
    model = JointModel.load(start)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.01)
    return model.split(model.state_dict())


def written(start, out, tensors, heads, **options):
    wanted = {"name": "new", "dtype": "float32", "provenance": {"steps": 3}} | options
    return export(start, out, tensors=tensors, heads=heads, **wanted)


def test_what_is_written_is_served_with_golden_scores(start, trained, tmp_path):
    checkpoint = written(start, tmp_path / "out", *trained, dtype="bfloat16")
    record(checkpoint, EXAMPLES)
    model, _ = open_source(tmp_path / "out", ["cpu"], "float32", "trie").load()
    assert model.name == "new"
    assert model.description["self_test"]["cases"] == len(EXAMPLES)


def test_every_tensor_comes_back(start, trained, tmp_path):
    written(start, tmp_path / "out", *trained)
    stored, expected = weights(tmp_path / "out"), trained[0] | trained[1]
    assert set(stored) == set(expected)
    assert all(tensor.equal(expected[name]) for name, tensor in stored.items())


def test_bfloat16_rounds_the_backbone_and_not_the_heads(start, trained, tmp_path):
    written(start, tmp_path / "out", *trained, dtype="bfloat16")
    stock = load_file(tmp_path / "out" / "model.safetensors")
    assert all(tensor.equal(trained[0][name].bfloat16()) for name, tensor in stock.items())
    heads = load_file(tmp_path / "out" / "reward" / "heads.safetensors")
    assert all(tensor.equal(trained[1][name]) for name, tensor in heads.items())
    assert read(tmp_path / "out" / "config.json")["dtype"] == "bfloat16"


def test_large_weights_are_sharded(start, trained, tmp_path):
    written(start, tmp_path / "out", *trained, shard_bytes=300_000)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    assert JointModel.load(open_checkpoint(tmp_path / "out")).lm_head.weight.shape[1] == 64


def test_a_sharded_start_leaves_no_file_behind(tmp_path, trained, start):
    folder = checkpoints.write(
        tmp_path / "start", checkpoints.two_passes(), tied=start.config.tie_word_embeddings, shards=3
    )
    written(open_checkpoint(folder), tmp_path / "out", *trained)
    assert [file.name for file in (tmp_path / "out").glob("*.safetensors*")] == ["model.safetensors"]


def test_the_manifest_is_the_starts_with_a_new_name_and_more_history(start, trained, tmp_path):
    checkpoint = written(start, tmp_path / "out", *trained)
    before = json.loads(start.manifest.canonical_json())
    after = json.loads(checkpoint.manifest.canonical_json())
    assert after.pop("name") == "new"
    assert after.pop("provenance") == before.pop("provenance") | {"steps": 3}
    before.pop("name")
    assert after == before


def test_golden_scores_of_the_start_do_not_travel(start, trained, tmp_path):
    written(start, tmp_path / "out", *trained)
    assert (start.path / "reward" / "golden.json").exists()
    assert not (tmp_path / "out" / "reward" / "golden.json").exists()


def test_every_dtype_of_the_config_is_the_saved_one(trained, tmp_path, start):
    folder = checkpoints.write(tmp_path / "start", checkpoints.two_passes(), tied=start.config.tie_word_embeddings)
    config = read(folder / "config.json")
    config["text_config"] |= {"dtype": "float16", "torch_dtype": None}
    write_json(folder / "config.json", config | {"torch_dtype": "float16"})
    written(open_checkpoint(folder), tmp_path / "out", *trained, dtype="bfloat16")
    config = read(tmp_path / "out" / "config.json")
    assert (config["dtype"], config["torch_dtype"]) == ("bfloat16", "bfloat16")
    assert config["text_config"]["dtype"] == "bfloat16"
    assert config["text_config"]["torch_dtype"] is None


def test_an_existing_folder_is_left_alone(start, trained, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="out: already exists and is not overwritten"):
        written(start, tmp_path / "out", *trained)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("part", [0, 1], ids=["backbone", "heads"])
def test_what_is_not_finite_is_not_written(start, trained, tmp_path, part):
    broken = [dict(tensors) for tensors in trained]
    name = next(iter(broken[part]))
    broken[part][name] = torch.full_like(broken[part][name], math.nan)
    with pytest.raises(CheckpointError, match=f"{name}: holds NaN or infinity"):
        written(start, tmp_path / "out", *broken)
    assert not (tmp_path / "out").exists()


def test_a_missing_tensor_is_named_and_nothing_is_left(start, trained, tmp_path):
    stock = {name: tensor for name, tensor in trained[0].items() if "layers.1.mlp.up_proj" not in name}
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight: missing"):
        written(start, tmp_path / "out", stock, trained[1])
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(start, trained, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        written(start, tmp_path / "file" / "out", *trained)
