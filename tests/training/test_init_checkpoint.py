"""A stock folder becomes one to train from: new tokens, new heads, nothing else."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from jrm_service.errors import CheckpointError
from jrm_service.model.checkpoint import Checkpoint
from jrm_service.model.checkpoint_files import write_json
from jrm_service.model.checkpoint_source import open_source
from jrm_service.model.editreward import default_prompts
from jrm_training.init_checkpoint import REGION_TOKENS, prepare
from support import checkpoints
from support.editreward import EMBEDDING, PADDED_VOCABULARY, edit, read, write_base

NEW = ["<|Reward|>", *REGION_TOKENS]


def write_stock(path, *, tied=True, vocabulary=PADDED_VOCABULARY):
    """A base folder as a hub has it, with random weights."""
    base = write_base(path, tied=tied)
    config = read(base / "config.json")
    config["text_config"]["vocab_size"] = vocabulary
    write_json(base / "config.json", config)
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig.from_pretrained(base))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=1 / math.sqrt(parameter[0].numel()))
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if tied:
        del tensors["lm_head.weight"]
    save_file(tensors, base / "model.safetensors")
    return base


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_stock(tmp_path_factory.mktemp("stock") / "base")


@pytest.fixture(scope="module")
def prepared(base, tmp_path_factory) -> Checkpoint:
    return prepare(base, tmp_path_factory.mktemp("prepared") / "start")


def ids_of(path):
    tokenizer = AutoTokenizer.from_pretrained(path)
    return {token: tokenizer.convert_tokens_to_ids(token) for token in NEW}


def tensors_of(path):
    return load_file(path / "model.safetensors")


def test_it_is_a_checkpoint_that_scores(prepared):
    model, _ = open_source(prepared.path, ["cpu"], "float32", "trie").load()
    assert model.name == "start"


def test_the_paper_asks_by_default(prepared):
    manifest = prepared.manifest
    assert {one.prompt for one in manifest.passes} == set(default_prompts().values())
    assert [one.read for one in manifest.passes] == [{"instruction_following": "head_0"}, {"visual_quality": "head_1"}]
    assert all(head.hidden == [1024, 16] for head in manifest.heads.values())
    assert all(head.outputs == ["mean", "log_std"] for head in manifest.heads.values())
    assert (manifest.image.min_pixels, manifest.image.max_pixels) == (200_704, 200_704)
    assert manifest.provenance["base"] == "base"


def test_every_new_token_is_one_special_token_at_the_next_id(prepared, base):
    before = len(AutoTokenizer.from_pretrained(base))
    tokenizer = AutoTokenizer.from_pretrained(prepared.path)
    assert list(ids_of(prepared.path).values()) == list(range(before, before + len(NEW)))
    for token in NEW:
        assert tokenizer(f"a {token} b")["input_ids"].count(tokenizer.convert_tokens_to_ids(token)) == 1
    assert set(NEW) <= set(tokenizer.all_special_tokens) | {str(t) for t in tokenizer.added_tokens_decoder.values()}
    assert tokenizer("make it red")["input_ids"] == AutoTokenizer.from_pretrained(base)("make it red")["input_ids"]


def test_only_the_rows_of_new_tokens_are_new(prepared, base):
    before, after = tensors_of(base), tensors_of(prepared.path)
    assert set(before) == set(after)
    new = list(ids_of(prepared.path).values())
    old = [n for n in range(PADDED_VOCABULARY) if n not in new]
    assert after[EMBEDDING].shape == before[EMBEDDING].shape  # the base has padding rows for them
    assert after[EMBEDDING][old].equal(before[EMBEDDING][old])
    assert all(tensor.equal(after[name]) for name, tensor in before.items() if name != EMBEDDING)


def test_a_new_row_is_near_the_mean_and_like_no_other(prepared, base):
    known = tensors_of(base)[EMBEDDING][: len(AutoTokenizer.from_pretrained(base))]
    new = tensors_of(prepared.path)[EMBEDDING][list(ids_of(prepared.path).values())]
    assert (new - known.mean(0)).std().item() == pytest.approx(0.1 * known.std().item(), rel=0.2)
    assert torch.pdist(new).min() > 0.05 * known.std()


def test_an_embedding_without_room_grows_and_so_does_an_untied_language_head(tmp_path):
    tokens = len(AutoTokenizer.from_pretrained(write_base(tmp_path / "counted")))
    base = write_stock(tmp_path / "base", tied=False, vocabulary=tokens)
    out = prepare(base, tmp_path / "out", shard_bytes=400_000).path
    assert len(list(out.glob("model-*.safetensors"))) > 1
    model, report = Qwen3VLForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert not any(report.values())
    before = tensors_of(base)
    for name, table in ((EMBEDDING, model.model.language_model.embed_tokens), ("lm_head.weight", model.lm_head)):
        assert table.weight.shape == (tokens + len(NEW), 64)
        assert table.weight[:tokens].equal(before[name])
        assert table.weight[tokens:].std() > 0
    assert not model.lm_head.weight[tokens:].equal(model.model.language_model.embed_tokens.weight[tokens:])


def test_bfloat16_weights_stay_bfloat16(tmp_path):
    base = write_stock(tmp_path / "base")
    save_file({name: tensor.bfloat16() for name, tensor in tensors_of(base).items()}, base / "model.safetensors")
    out = prepare(base, tmp_path / "out").path
    assert {tensor.dtype for tensor in tensors_of(out).values()} == {torch.bfloat16}
    heads = load_file(out / "reward" / "heads.safetensors")
    assert {tensor.dtype for tensor in heads.values()} == {torch.float32}


def test_a_seed_decides_rows_and_heads(base, prepared, tmp_path):
    same = prepare(base, tmp_path / "same", name="start")
    other = prepare(base, tmp_path / "other", name="start", seed=1)
    assert same.fingerprint == prepared.fingerprint
    for file in ("model.safetensors", "reward/heads.safetensors"):
        ours, theirs = load_file(prepared.path / file), load_file(other.path / file)
        assert any(not tensor.equal(theirs[name]) for name, tensor in ours.items())


def test_tokens_that_are_there_keep_their_ids_and_rows(prepared, tmp_path):
    again = prepare(prepared.path, tmp_path / "again", name="start", seed=7)
    assert ids_of(again.path) == ids_of(prepared.path)
    assert tensors_of(again.path)[EMBEDDING].equal(tensors_of(prepared.path)[EMBEDDING])


def test_a_manifest_of_ones_own(base, tmp_path):
    file = tmp_path / "manifest.json"
    write_json(file, checkpoints.prompt_first() | {"name": "mine", "provenance": {"notes": "x", "by": "me"}})
    checkpoint = prepare(base, tmp_path / "out", manifest=file)
    assert checkpoint.manifest.name == "mine"
    assert checkpoint.manifest.passes[0].parts == ["prompt", "source", "edited", "ending"]
    assert (checkpoint.image_spec.min_pixels, checkpoint.image_spec.max_pixels) == (16384, 65536)
    assert checkpoint.manifest.provenance["by"] == "me"


def test_another_area_and_name(base, tmp_path):
    checkpoint = prepare(base, tmp_path / "out", pixels=65_536, name="small")
    assert (checkpoint.image_spec.min_pixels, checkpoint.image_spec.max_pixels) == (65_536, 65_536)
    assert checkpoint.manifest.name == "small"


def test_a_manifests_resampling_governs(base, tmp_path):
    file = tmp_path / "manifest.json"
    image = {"min_pixels": 16384, "max_pixels": 65536, "resample": "bilinear"}
    write_json(file, checkpoints.manifest(image=image))
    assert prepare(base, tmp_path / "out", manifest=file).image_spec.resample == "bilinear"


def broken(base, folder, part):
    """A copy of the base, or a manifest beside it, with one thing wrong."""
    file = None
    if part == "weights":
        tensors = tensors_of(base)
        del tensors["model.visual.patch_embed.proj.weight"]
        save_file(tensors, base / "model.safetensors")
    elif part == "model type":
        edit(base / "config.json", model_type="qwen2_5_vl")
    elif part == "manifest":
        file = folder / "manifest.json"
        write_json(file, checkpoints.manifest(heads={}))
    elif part == "NaN":
        tensors = tensors_of(base)
        tensors["model.visual.patch_embed.proj.bias"][0] = math.nan
        save_file(tensors, base / "model.safetensors")
    elif part == "chat template":
        write_json(base / "chat_template.json", {"chat_template": "{{ messages[0].role }}"})
    return file


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ("weights", "patch_embed.proj.weight: missing"),
        ("model type", "model_type is 'qwen"),
        ("manifest", "manifest.json: heads"),
        ("NaN", "holds NaN or infinity"),
        ("chat template", "the chat template shows no"),
    ],
)
def test_a_base_that_cannot_be_used_is_explained_and_nothing_is_left(tmp_path, part, told):
    base = write_stock(tmp_path / "base")
    file = broken(base, tmp_path, part)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError) as caught:
        prepare(base, tmp_path / "out", manifest=file)
    assert any(told in problem for problem in caught.value.problems), caught.value.problems
    assert sorted(tmp_path.rglob("*")) == before


def test_nothing_is_overwritten(base, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="already exists and is not overwritten"):
        prepare(base, tmp_path / "out")
    with pytest.raises(CheckpointError, match="not a folder"):
        prepare(tmp_path / "none", tmp_path / "new")
