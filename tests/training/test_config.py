"""Recipes: the shipped ones, and what no run can have."""

import pytest
from pydantic import ValidationError

from jrm_training.config import SHIPPED, Recipe, find_recipe, read_recipe

WORLD = {"curriculum": [{"groups": 8, "shapes": [1, 2]}]}
LORA = {"r": 8, "alpha": 16, "targets": ["q_proj"]}
SMALL = {"name": "x", "batch": 4, "micro_batch": 2, "data": WORLD, "optimizer": {"lr": 1e-3}}


def read(name):
    return read_recipe(find_recipe(name))


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.toml")), ids=lambda file: file.stem)
def test_a_shipped_recipe_is_read_by_its_name(file):
    assert read(file.stem).name == file.stem


def test_the_papers_recipe():
    """Every value of appendix B.1; the image area is the checkpoint's (``jrm init``)."""
    recipe = read("jrm-8b")
    assert recipe.optimizer.betas == (0.9, 0.95)
    assert recipe.optimizer.weight_decay == 0.1
    assert recipe.optimizer.lr == 2e-6
    assert recipe.optimizer.warmup == 0.05
    assert recipe.optimizer.final == 0  # a cosine to the end
    assert recipe.optimizer.muon_lr is None  # AdamW
    assert recipe.optimizer.vision == 1
    assert recipe.epochs == 10
    assert (recipe.batch, recipe.micro_batch) == (64, 2)
    assert recipe.batch // (recipe.micro_batch * 8) == 4  # accumulated on each of 8 GPUs
    assert recipe.max_tokens == 8192
    assert recipe.alpha == 0.7
    assert recipe.dtype == "bfloat16"
    assert recipe.gradient_checkpointing
    assert recipe.shard  # ZeRO-2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 1.01}, "alpha"),
        ({"alpha": -0.1}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"name": ""}, "name"),
        ({"epochs": 0}, "epochs"),
        ({"batch": 5}, "batch 5 is not a multiple of micro_batch 2"),
        ({"micro_batch": 0}, "micro_batch"),
        ({"dtype": "float16"}, "dtype"),
        ({"saved_dtype": "int8"}, "saved_dtype"),
        ({"save_every": 0}, "save_every"),
        ({"learning_rate": 1}, "learning_rate"),
        ({"optimizer": {"lr": 0}}, "optimizer.lr"),
        ({"optimizer": {"lr": float("inf")}}, "optimizer.lr"),
        ({"optimizer": {"lr": 1, "betas": [0.9, 1.0]}}, "optimizer.betas.1"),
        ({"optimizer": {"lr": 1, "warmup": 1.5}}, "optimizer.warmup"),
        ({"optimizer": {"lr": 1, "weight_decay": -1}}, "optimizer.weight_decay"),
        ({"optimizer": {"lr": 1, "clip": 0}}, "optimizer.clip"),
        ({"optimizer": {"lr": 1, "muon_lr": 0.1}, "shard": True}, "shard and optimizer.muon_lr cannot be combined"),
        ({"lora": LORA, "shard": True}, "lora and shard cannot be combined"),
        ({"lora": LORA, "optimizer": {"lr": 1, "muon_lr": 0.1}}, "lora and optimizer.muon_lr cannot be combined"),
        ({"lora": LORA | {"targets": []}}, "lora.targets"),
        ({"lora": LORA | {"r": 0}}, "lora.r"),
        ({"lora": LORA | {"alpha": 0}}, "lora.alpha"),
        ({"lora": LORA | {"rank": 1}}, "lora.rank"),
        ({"data": {}}, "needs either jsonl or a curriculum"),
        ({"data": WORLD | {"jsonl": "x"}}, "needs either jsonl or a curriculum"),
        ({"data": WORLD | {"edits": 1}}, "data.edits"),
        ({"data": WORLD | {"workers": -1}}, "data.workers"),
        ({"data": WORLD | {"seed": -1}}, "data.seed"),
        ({"data": {"curriculum": [{"groups": 8, "shapes": [3, 2]}]}}, "expected the smaller number first"),
        ({"data": {"curriculum": [{"groups": 0, "shapes": [1, 2]}]}}, "data.curriculum.0.groups"),
    ],
)
def test_what_no_run_can_have_is_refused_by_its_name(changes, message):
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(SMALL | changes)
    told = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in caught.value.errors()]
    assert len(told) == 1
    assert message in told[0]


def test_a_recipe_survives_the_json_of_a_state():
    recipe = read("jrm-tiny")
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_overrides_replace_values_and_tables_key_by_key(tmp_path):
    changed = read_recipe(find_recipe("jrm-tiny"), alpha=0.0, name=None, data={"jsonl": tmp_path, "curriculum": ()})
    assert (changed.alpha, changed.name) == (0.0, "jrm-tiny")
    assert changed.data.jsonl == tmp_path
    assert changed.data.seed == read("jrm-tiny").data.seed


def test_a_recipe_may_be_any_file(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("x = 1")
    assert find_recipe(str(file)) == file


def test_what_is_no_toml_is_told_with_its_file(tmp_path):
    file = tmp_path / "mine.toml"
    for content in (b"\xff", b"a = 1\na = 2\n", b"[", b"a = " + b"[" * 100_000):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"mine\.toml: not TOML in UTF-8 "):
            read_recipe(file)


def test_an_unknown_recipe_names_those_that_there_are():
    shipped = r"\(jrm-8b-lora, jrm-8b, jrm-tiny-labels, jrm-tiny-sigma, jrm-tiny-votes, jrm-tiny\)"
    with pytest.raises(FileNotFoundError, match="jrm-70b: no such file, .* " + shipped):
        find_recipe("jrm-70b")
