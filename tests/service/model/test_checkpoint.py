"""Opening and loading checkpoints: every problem is named, what is loaded is what is on disk."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from jrm_service.errors import CheckpointError
from jrm_service.model.checkpoint import load_model, open_checkpoint
from jrm_service.model.families import FAMILIES
from jrm_service.model.tiny import write_tiny_checkpoint
from jrm_service.model.weights import expected_tensors, weight_bytes
from support import checkpoints

PUBLISHED_8B = {
    "model_type": "qwen3_vl",
    "tie_word_embeddings": False,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "text_config": {
        "model_type": "qwen3_vl_text",
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "rope_theta": 5000000,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
    },
    "vision_config": {
        "model_type": "qwen3_vl",
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "out_hidden_size": 4096,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [8, 16, 24],
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return checkpoints.write(tmp_path_factory.mktemp("whole"), checkpoints.one_pass())


@pytest.fixture
def path(whole, tmp_path):
    """A copy to break."""
    return shutil.copytree(whole, tmp_path / "checkpoint")


def problems(path) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    return caught.value.problems


def edit_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_tensors(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_the_published_8b_architecture_is_what_the_loader_expects():
    shapes = expected_tensors(Qwen3VLConfig.from_dict(PUBLISHED_8B))
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 8_767_123_696
    assert len(shapes) == 750
    published = {
        "lm_head.weight": (151936, 4096),
        "model.language_model.embed_tokens.weight": (151936, 4096),
        "model.language_model.layers.35.mlp.down_proj.weight": (4096, 12288),
        "model.language_model.layers.35.self_attn.k_proj.weight": (1024, 4096),
        "model.language_model.layers.0.self_attn.q_norm.weight": (128,),
        "model.language_model.norm.weight": (4096,),
        "model.visual.patch_embed.proj.weight": (1152, 3, 2, 16, 16),
        "model.visual.pos_embed.weight": (2304, 1152),
        "model.visual.blocks.26.attn.qkv.weight": (3456, 1152),
        "model.visual.merger.linear_fc2.weight": (4096, 4608),
        "model.visual.deepstack_merger_list.2.norm.weight": (4608,),
    }
    assert {name: shapes.get(name) for name in published} == published


def test_names_and_shapes_equal_those_of_transformers_whole_model():
    config = Qwen3VLConfig.from_dict(PUBLISHED_8B)
    with torch.device("meta"):
        whole = Qwen3VLForConditionalGeneration(config)
    assert expected_tensors(config) == {name: tuple(p.shape) for name, p in whole.named_parameters()}


@pytest.mark.parametrize("options", [{}, {"tied": False}, {"shards": 4}, {"tied": False, "shards": 2}])
def test_what_is_loaded_is_what_is_on_disk(tmp_path, options):
    checkpoint = open_checkpoint(checkpoints.write(tmp_path, checkpoints.one_pass(), **options))
    model, heads = load_model(checkpoint, "cpu", torch.float32)
    stock = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).model
    ours, theirs = dict(model.state_dict()), dict(stock.state_dict())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    buffers = dict(stock.named_buffers())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    on_disk = load_file(tmp_path / "reward" / "heads.safetensors")
    assert all(torch.equal(tensor, on_disk[name]) for name, tensor in heads.tensors().items())


def test_a_tied_checkpoint_may_store_its_head(path):
    def store_head(tensors):
        tensors["lm_head.weight"] = tensors["model.language_model.embed_tokens.weight"].clone()

    edit_tensors(path / "model.safetensors", store_head)
    open_checkpoint(path)


def test_dtype_is_the_one_asked_for_and_heads_stay_float32(whole):
    model, heads = load_model(open_checkpoint(whole), "cpu", torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in heads.parameters()} == {torch.float32}


def test_overwriting_the_file_does_not_change_loaded_weights(path):
    model, _ = load_model(open_checkpoint(path), "cpu", torch.float32)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with (path / "model.safetensors").open("r+b") as file:
        file.seek(-4096, 2)
        file.write(b"\x3f" * 4096)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


BREAK = {
    "no manifest": (lambda p: (p / "reward/manifest.json").unlink(), "reward/manifest.json: missing"),
    "no heads": (lambda p: (p / "reward/heads.safetensors").unlink(), "reward/heads.safetensors: missing"),
    "no config": (lambda p: (p / "config.json").unlink(), "config.json: missing"),
    "no preprocessor": (lambda p: (p / "preprocessor_config.json").unlink(), "preprocessor_config.json: missing"),
    "no weights": (lambda p: (p / "model.safetensors").unlink(), "model.safetensors: missing"),
    "no template": (lambda p: (p / "chat_template.jinja").unlink(), "chat_template.jinja: missing"),
    "broken template": (
        lambda p: (p / "chat_template.jinja").write_text("{% if"),
        "chat_template.jinja: cannot render",
    ),
    "config with a key twice": (
        lambda p: (p / "config.json").write_text('{"model_type": "qwen3_vl", "model_type": "qwen3_vl"}'),
        "config.json: the key 'model_type' is there twice",
    ),
    "preprocessor with a key twice": (
        lambda p: (p / "preprocessor_config.json").write_text('{"patch_size": 8, "patch_size": 16}'),
        "preprocessor_config.json: the key 'patch_size' is there twice",
    ),
    "tokenizer_config with a key twice": (
        lambda p: (p / "tokenizer_config.json").write_text('{"pad_token": "a", "pad_token": "b"}'),
        "tokenizer_config.json: the key 'pad_token' is there twice",
    ),
    "config not JSON": (lambda p: (p / "config.json").write_text("{"), "config.json: not JSON"),
    "other family": (lambda p: edit_json(p / "config.json", model_type="qwen2_5_vl"), "model_type is 'qwen2_5_vl'"),
    "weights not safetensors": (
        lambda p: (p / "model.safetensors").write_bytes(b"not safetensors"),
        "model.safetensors: not a readable safetensors file",
    ),
    "weights cut short": (
        lambda p: (p / "model.safetensors").write_bytes((p / "model.safetensors").read_bytes()[:-1000]),
        "model.safetensors: not a readable safetensors file",
    ),
    "other image size": (
        lambda p: edit_json(p / "preprocessor_config.json", size={"shortest_edge": 1, "longest_edge": 65536}),
        "preprocessor_config.json: size.shortest_edge is 1",
    ),
    "no normalization": (
        lambda p: (p / "preprocessor_config.json").write_text('{"patch_size": 16}'),
        "preprocessor_config.json: image_mean: missing",
    ),
    "other patch size": (lambda p: edit_json(p / "preprocessor_config.json", patch_size=14), "patch_size is 14"),
    "other resampling": (lambda p: edit_json(p / "preprocessor_config.json", resample=2), "resample is bilinear"),
    "other image token": (lambda p: edit_json(p / "config.json", image_token_id=3), "image_token_id is 3"),
    "missing tensor": (
        lambda p: edit_tensors(p / "model.safetensors", lambda t: t.pop("model.visual.pos_embed.weight")),
        "model.safetensors: model.visual.pos_embed.weight: missing",
    ),
    "extra tensor": (
        lambda p: edit_tensors(p / "model.safetensors", lambda t: t.update(rm_head=torch.zeros(2))),
        "model.safetensors: rm_head: extra",
    ),
    "misshapen tensor": (
        lambda p: edit_tensors(
            p / "model.safetensors", lambda t: t.update({"model.visual.pos_embed.weight": torch.zeros(2, 3)})
        ),
        "model.visual.pos_embed.weight: has shape [2, 3]",
    ),
    "integer tensor": (
        lambda p: edit_tensors(
            p / "model.safetensors",
            lambda t: t.update({"model.language_model.norm.weight": torch.ones(64, dtype=torch.int8)}),
        ),
        "model.language_model.norm.weight: has dtype I8",
    ),
    "misshapen head": (
        lambda p: edit_tensors(
            p / "reward/heads.safetensors", lambda t: t.update({"head_0.0.weight": torch.zeros(1, 1)})
        ),
        "reward/heads.safetensors: head_0.0.weight: has shape [1, 1], reward/manifest.json asks for [64, 64]",
    ),
    "missing head": (
        lambda p: edit_tensors(p / "reward/heads.safetensors", lambda t: t.pop("head_1.2.bias")),
        "reward/heads.safetensors: head_1.2.bias: missing",
    ),
    "no tokenizer": (
        lambda p: [(p / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
        "tokenizer",
    ),
}


# (keys of preprocessor_config.json, what is said of them): each was once ignored, or taken for something else.
GUESSES = [
    ({"do_resize": False}, "do_resize is False"),
    ({"do_rescale": False}, "do_rescale is False"),
    ({"do_normalize": False}, "do_normalize is False"),
    ({"rescale_factor": 1}, "rescale_factor is 1"),
    ({"resample": True}, "resample is True"),
    ({"resample": 0}, "resample is 0"),
    ({"resample": [3]}, "resample is [3]"),
    ({"merge_size": True}, "merge_size is True"),
    ({"merge_size": 4}, "merge_size is 4"),
    ({"temporal_patch_size": 1}, "temporal_patch_size is 1"),
    ({"image_mean": 0.5}, "image_mean is 0.5, must be a list of three numbers"),
    ({"image_mean": [True, True, True]}, "image_mean is [True, True, True]"),
    ({"image_std": "0.5"}, "image_std is '0.5'"),
    ({"image_std": [0.5]}, "image_std is [0.5]"),
    ({"min_pixels": 1}, "size.shortest_edge is 1"),
    ({"max_pixels": 1}, "size.longest_edge is 1"),
    ({"size": {"height": 256, "width": 256}}, "size.height: not a rule of Qwen's image processor"),
    ({"size": {"shortest_edge": 16384, "longest_edge": 65536, "height": 9}}, "size.height: not a rule"),
    ({"size": 65536}, "size is 65536"),
    ({"size": None}, "size.shortest_edge is not given"),
    ({"image_processor_type": "CLIPImageProcessor"}, "image_processor_type is 'CLIPImageProcessor'"),
]


def test_nothing_in_the_preprocessors_file_is_guessed(whole, tmp_path):
    for number, (changes, expected) in enumerate(GUESSES):
        path = shutil.copytree(whole, tmp_path / str(number))
        edit_json(path / "preprocessor_config.json", **changes)
        assert any(f"preprocessor_config.json: {expected}" in problem for problem in problems(path)), changes


def test_what_the_preprocessors_file_leaves_out_is_what_qwen_does(whole, tmp_path):
    for key in ("resample", "merge_size", "temporal_patch_size", "rescale_factor", "image_processor_type"):
        path = shutil.copytree(whole, tmp_path / key)
        edit_json(path / "preprocessor_config.json", **{key: None})
        assert open_checkpoint(path).image_spec == open_checkpoint(whole).image_spec, key
    document = checkpoints.manifest(image={"min_pixels": 16384, "max_pixels": 65536, "resample": "lanczos"})
    path = checkpoints.write(tmp_path / "lanczos", document)
    edit_json(path / "preprocessor_config.json", resample=None)
    assert "resample is bicubic, the manifest and config.json say lanczos" in problems(path)[0]


@pytest.mark.parametrize("kind", BREAK)
def test_a_problem_is_named_with_file_and_key(path, kind):
    breaks, expected = BREAK[kind]
    breaks(path)
    found = problems(path)
    assert any(expected in problem for problem in found), found


def test_without_weights_all_else_is_checked_as_ever(path):
    whole = open_checkpoint(path)
    for file in path.rglob("*.safetensors"):
        file.unlink()
    checkpoint = open_checkpoint(path, weights=False)
    assert (checkpoint.weights, checkpoint.heads) == ({}, {})
    assert (checkpoint.manifest, checkpoint.image_spec) == (whole.manifest, whole.image_spec)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: missing"):
        open_checkpoint(path)
    (path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="the tokenizer says"):
        open_checkpoint(path, weights=False)


def test_of_several_chat_templates_the_one_called_default_is_taken(path):
    jinja = path / "chat_template.jinja"
    before, template = open_checkpoint(path), jinja.read_text()
    jinja.unlink()
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": template}]
    edit_json(path / "tokenizer_config.json", chat_template=named)
    assert open_checkpoint(path).chat_template == before.chat_template == template
    edit_json(path / "tokenizer_config.json", chat_template=[*named[:1], {"name": ["default"]}])
    assert problems(path) == ["tokenizer_config.json: no chat_template of its list is called 'default'"]


def test_every_problem_is_named_at_once(path):
    edit_tensors(path / "model.safetensors", lambda t: t.pop("model.visual.pos_embed.weight"))
    edit_json(path / "preprocessor_config.json", patch_size=14)
    edit_json(path / "reward/manifest.json", name="")
    (path / "chat_template.jinja").unlink()
    assert {problem.split(":")[0] for problem in problems(path)} == {
        "model.safetensors",
        "reward/manifest.json",
        "chat_template.jinja",
    }


def test_many_problems_with_one_cause_are_told_as_one(path):
    """Names with something before them, or without what belongs there: the prefix is named, not every tensor."""
    file = path / "model.safetensors"
    whole = load_file(file)
    for kind, rename in {
        "'module.'": lambda name: f"module.{name}",
        "'_orig_mod.'": lambda name: f"_orig_mod.{name}",
        "'base_model.model.'": lambda name: f"base_model.model.{name}",
        "'model.'": lambda name: f"model.{name}",
        "'model.' missing": lambda name: name.removeprefix("model."),
        "_orig_mod": lambda name: name.replace("model.", "model._orig_mod.", 1),
    }.items():
        save_file({rename(name): tensor for name, tensor in whole.items()}, file)
        [problem] = problems(path)
        assert problem.startswith(f"model.safetensors: the names of {len(whole)} of {len(whole)} tensors have"), kind
        assert kind in problem, kind


def test_of_many_problems_the_first_few_are_shown(path):
    file = path / "model.safetensors"
    whole = load_file(file)
    save_file({f"other{number}": tensor for number, tensor in enumerate(whole.values())}, file)
    found = problems(path)
    assert len(found) == 9
    assert found[-1] == f"and {2 * len(whole) - 8} more tensors do not fit"


def test_shards_are_checked_against_their_index(tmp_path):
    path = checkpoints.write(tmp_path, checkpoints.one_pass(), shards=2)
    index = json.loads((path / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.visual.pos_embed.weight"] = "model-00003-of-00002.safetensors"
    index["weight_map"]["model.visual.merger.norm.bias"] = "../outside.safetensors"
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    found = "\n".join(problems(path))
    assert "model-00003-of-00002.safetensors: missing" in found
    assert "'../outside.safetensors' is not a file name" in found
    assert "model.visual.pos_embed.weight: not in the index" in found


def test_a_checkpoint_without_a_number_is_not_loaded(path):
    edit_tensors(path / "model.safetensors", lambda t: t["model.visual.pos_embed.weight"].view(-1)[:1].fill_(np.nan))
    with pytest.raises(CheckpointError, match=r"model.visual.pos_embed.weight: holds NaN or infinity"):
        load_model(open_checkpoint(path), "cpu", torch.float32)


def test_a_pickle_is_not_read(path):
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    assert "pytorch_model.bin is a pickle" in problems(path)[0]


def test_a_missing_folder_is_said(tmp_path):
    assert problems(tmp_path / "nowhere")[0].endswith("nowhere: not a folder")


# --- fingerprint -----------------------------------------------------------------------------------------------------


def test_sharding_and_spelling_do_not_change_the_fingerprint(whole, tmp_path):
    shards = checkpoints.write(tmp_path, checkpoints.one_pass(), shards=3)
    edit_json(shards / "reward" / "manifest.json")  # the same document, other white space
    assert open_checkpoint(shards).fingerprint == open_checkpoint(whole).fingerprint


def test_what_the_server_decides_itself_does_not_change_the_fingerprint(whole, path):
    edit_json(path / "config.json", attn_implementation="flash_attention_2", transformers_version="9")
    assert open_checkpoint(path).fingerprint == open_checkpoint(whole).fingerprint


CHANGE = {
    "a weight": lambda p: edit_tensors(
        p / "model.safetensors", lambda t: t["model.visual.pos_embed.weight"].add_(1e-6)
    ),
    "a head": lambda p: edit_tensors(p / "reward/heads.safetensors", lambda t: t["head_0.0.bias"].add_(1e-6)),
    "the manifest": lambda p: edit_json(p / "reward/manifest.json", reward={"combine": "min"}),
    "the chat template": lambda p: (p / "chat_template.jinja").write_text(
        (p / "chat_template.jinja").read_text().replace("assistant", "judge")
    ),
    "the tokenizer": lambda p: edit_json(p / "tokenizer_config.json", model_max_length=77),
    "the configuration": lambda p: edit_json(p / "config.json", dtype="bfloat16"),
    "the normalization": lambda p: edit_json(p / "preprocessor_config.json", image_mean=[0.4, 0.5, 0.5]),
}


@pytest.mark.parametrize("kind", CHANGE)
def test_what_a_score_depends_on_changes_the_fingerprint(whole, path, kind):
    CHANGE[kind](path)
    assert open_checkpoint(path).fingerprint != open_checkpoint(whole).fingerprint


# --- the tiny checkpoint of the tests --------------------------------------------------------------------------------


def test_the_tiny_checkpoint_is_always_the_same(tmp_path):
    first, second = (write_tiny_checkpoint(tmp_path / name) for name in "ab")
    assert open_checkpoint(first).fingerprint == open_checkpoint(second).fingerprint


# --- memory ----------------------------------------------------------------------------------------------------------

MEASURE = """
import resource, sys, torch
from jrm_service.model.checkpoint import load_model, open_checkpoint
checkpoint = open_checkpoint(sys.argv[1])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
checkpoint.fingerprint
hashed = peak() - before
model, _ = load_model(checkpoint, "cpu", torch.float32)
print(hashed, peak() - before, sum(p.nbytes for p in model.parameters()))
"""


def test_the_weights_are_never_held_twice(path):
    """A checkpoint of 150 MB in tensors of 17 MB: loading it costs its size and about one tensor more."""
    wide = 65_536
    config = json.loads((path / "config.json").read_text())
    edit_json(path / "config.json", text_config=config["text_config"] | {"intermediate_size": wide})

    def widen(tensors):
        for name, tensor in tensors.items():
            if ".mlp." in name and "language_model" in name:
                tensors[name] = torch.zeros([wide if side == 128 else side for side in tensor.shape])

    edit_tensors(path / "model.safetensors", widen)
    run = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    hashed, loaded, size = map(int, run.stdout.split())
    assert size > 150e6
    assert hashed < 0.5 * size
    assert loaded < 1.4 * size


def test_no_type_in_the_manifest_is_guessed(path):
    guesses = {
        "reward.weights.visual_quality": {"reward": {"weights": {"visual_quality": "1.0"}}},
        "explain.visual_quality.regions": {"explain": {"visual_quality": {"regions": 1}}},
    }
    for key, changes in guesses.items():
        (path / "reward" / "manifest.json").write_text(json.dumps(checkpoints.manifest(**changes)))
        assert any(f"reward/manifest.json: {key}: " in problem for problem in problems(path)), key


def test_what_the_weights_take_in_each_precision(tmp_path):
    """Against a model in memory; in fp8 only linear layers of the language model have a byte a weight, and a scale a
    row.
    """
    for family in FAMILIES:
        path = checkpoints.write(tmp_path / family, checkpoints.one_pass(), family=family, tied=False)
        checkpoint = open_checkpoint(path)
        taken = weight_bytes(checkpoint.weights, checkpoint.heads)
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
            model, heads = load_model(checkpoint, "cpu", dtype)
            assert taken[name] == sum(p.nbytes for part in (model, heads) for p in part.parameters()), family
        linear = [m.weight for m in model.language_model.layers.modules() if isinstance(m, nn.Linear)]
        assert taken["bfloat16"] - taken["fp8"] == sum(w.numel() - 4 * len(w) for w in linear), family
