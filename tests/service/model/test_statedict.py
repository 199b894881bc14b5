"""State dicts in every form that training code leaves them, and their copy to shards."""

import itertools
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from jrm_service.model.statedict import copy_tensors, open_state_dict, plan_shards, with_stock_names

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b.c": torch.ones(4, dtype=torch.bfloat16)}


def opened(folder):
    problems, notes = [], []
    return open_state_dict(folder, problems, notes), problems, notes


def copied(source, folder, **options):
    folder.mkdir()
    reports = []
    problems = copy_tensors(source, source.headers, folder, progress=lambda *report: reports.append(report), **options)
    return problems, reports


def save_shards(folder):
    save_file({"a": TENSORS["a"]}, folder / "1.safetensors")
    save_file({"b.c": TENSORS["b.c"]}, folder / "2.safetensors")
    index = {"weight_map": {"a": "1.safetensors", "b.c": "2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


FORMS = {
    "safetensors": lambda folder: save_file(TENSORS, folder / "model.safetensors"),
    "shards": save_shards,
    "pth": lambda folder: torch.save(TENSORS, folder / "model.pth"),
    "pth of old": lambda folder: torch.save(TENSORS, folder / "model.pth", _use_new_zipfile_serialization=False),
    "pth, nested": lambda folder: torch.save({"state_dict": TENSORS, "step": 3}, folder / "final_model.pth"),
    "pth, DataParallel": lambda folder: torch.save(
        {f"module.{name}": tensor for name, tensor in TENSORS.items()}, folder / "model.pth"
    ),
    "safetensors, DataParallel": lambda folder: save_file(
        {f"module.{name}": tensor for name, tensor in TENSORS.items()}, folder / "model.safetensors"
    ),
    "compiled": lambda folder: save_file(
        {f"_orig_mod.{name}": tensor for name, tensor in TENSORS.items()}, folder / "model.safetensors"
    ),
    "compiled in part": lambda folder: save_file(
        {"a": TENSORS["a"], "b._orig_mod.c": TENSORS["b.c"]}, folder / "model.safetensors"
    ),
    "compiled, DataParallel": lambda folder: torch.save(
        {f"module._orig_mod.module.{name}": tensor for name, tensor in TENSORS.items()}, folder / "model.pth"
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_the_same_tensors(tmp_path, form):
    FORMS[form](tmp_path)
    source, problems, notes = opened(tmp_path)
    assert (problems, notes) == ([], [])
    assert {name: (header.shape, header.dtype) for name, header in source.headers.items()} == {
        "a": ((2, 3), "F32"),
        "b.c": ((4,), "BF16"),
    }
    assert all(source.read(name).equal(tensor) for name, tensor in TENSORS.items())
    assert [source.nbytes(name) for name in TENSORS] == [24, 8]


@pytest.mark.parametrize("form", FORMS)
def test_a_copy_is_equal_whole_and_in_shards(tmp_path, form):
    FORMS[form](tmp_path)
    source, _, _ = opened(tmp_path)
    assert copied(source, tmp_path / "whole") == ([], [(24, 32), (32, 32)])
    assert copied(source, tmp_path / "shards", shard_bytes=24)[0] == []
    assert [file.name for file in (tmp_path / "whole").iterdir()] == ["model.safetensors"]
    for folder in ("whole", "shards"):
        again, problems, _ = opened(tmp_path / folder)
        assert problems == []
        assert all(again.read(name).equal(tensor) for name, tensor in TENSORS.items())
        assert again.read("b.c").dtype == torch.bfloat16
    assert len(again.files) == 2


def test_tensors_that_share_memory_are_copied_apart(tmp_path):
    whole = torch.arange(8.0)
    torch.save({"x": whole, "y": whole, "part": whole[2:5], "turned": whole.reshape(2, 4).T}, tmp_path / "model.pth")
    source, _, _ = opened(tmp_path)
    assert copied(source, tmp_path / "out")[0] == []
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored["y"].equal(whole)
    assert stored["part"].equal(whole[2:5])
    assert stored["turned"].equal(whole.reshape(2, 4).T)


def test_safetensors_is_preferred_and_the_pickle_beside_it_noted(tmp_path):
    FORMS["pth"](tmp_path)
    save_file({"other": TENSORS["a"]}, tmp_path / "model.safetensors")
    source, _, notes = opened(tmp_path)
    assert list(source.headers) == ["other"]
    assert notes == ["model.safetensors was read, model.pth beside it was not"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not a readable torch.save file"),
        (b"junk", "not a readable torch.save file"),
        (b"PK\x03\x04" + bytes(100), "not a readable torch.save file"),
    ],
)
def test_a_damaged_pickle_is_named(tmp_path, content, expected):
    (tmp_path / "model.pth").write_bytes(content)
    source, problems, _ = opened(tmp_path)
    assert not source.headers
    assert len(problems) == 1
    assert problems[0].startswith(f"model.pth: {expected}")


@pytest.mark.parametrize("value", [torch.zeros(3), [torch.zeros(3)], {}])
def test_a_pickle_without_a_state_dict_is_named(tmp_path, value):
    torch.save(value, tmp_path / "model.pth")
    assert opened(tmp_path)[1] == ["model.pth: holds no state dict (names -> tensors)"]


def test_what_is_not_a_tensor_is_named(tmp_path):
    torch.save(TENSORS | {"step": 3}, tmp_path / "model.pth")
    assert opened(tmp_path)[1] == ["model.pth: step: not a tensor"]


@pytest.mark.parametrize(
    ("index", "told"),
    [
        ("[]", "must be a JSON object"),
        ("{}", "weight_map: must map tensor names to files"),
        ('{"weight_map": 3}', "weight_map: must map tensor names to files"),
        ("{", "not JSON: "),
        ('{"weight_map": {}, "weight_map": {}}', "the key 'weight_map' is there twice"),
    ],
)
def test_a_damaged_index_is_named(tmp_path, index, told):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    source, problems, _ = opened(tmp_path)
    assert not source.headers
    [problem] = problems
    assert problem.startswith(f"model.safetensors.index.json: {told}")


def test_an_index_may_not_point_outside_its_folder(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../secret.safetensors"}}')
    assert any("'../secret.safetensors' is not a file name" in problem for problem in opened(tmp_path)[1])


def test_values_that_are_not_finite_are_all_named_and_not_written(tmp_path):
    save_file(
        {"a": torch.tensor([torch.nan]), "b": torch.zeros(1), "c": torch.tensor([torch.inf])},
        tmp_path / "model.safetensors",
    )
    source, _, _ = opened(tmp_path)
    problems, _ = copied(source, tmp_path / "out")
    assert problems == [f"model.safetensors: {name}: holds NaN or infinity" for name in "ac"]
    assert not list((tmp_path / "out").glob("*.safetensors"))


@given(sizes=st.lists(st.integers(0, 50), max_size=30), limit=st.integers(1, 60))
def test_shards_keep_the_order_and_the_limit(sizes, limit):
    named = {str(n): size for n, size in enumerate(sizes)}
    shards = plan_shards(named, limit)
    assert [name for shard in shards for name in shard] == list(named)
    for shard in shards:
        assert shard
        assert len(shard) == 1 or sum(named[name] for name in shard) <= limit
    for left, right in itertools.pairwise(shards):
        assert sum(named[name] for name in left) + named[right[0]] > limit, "could have been one shard"


def test_names_of_older_transformers_become_those_of_today(tmp_path):
    today = ("model.visual.blocks.0.w", "model.language_model.norm.w", "lm_head.w", "rm_heads.head_0.0.w")
    before = ("visual.blocks.0.w", "model.norm.w", "lm_head.w", "rm_heads.head_0.0.w")
    for kind, names in (("today", today), ("before", before)):
        tensors = {name: torch.full((1,), float(n)) for n, name in enumerate(names)}
        (tmp_path / kind).mkdir()
        save_file(tensors, tmp_path / kind / "model.safetensors")
        source = with_stock_names(opened(tmp_path / kind)[0])
        assert {name: source.read(name).item() for name in source.headers} == dict(zip(today, range(4), strict=True))


def test_names_of_both_generations_in_one_file_are_left_as_they_are(tmp_path):
    save_file({"visual.w": torch.ones(1), "model.visual.w": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert set(with_stock_names(opened(tmp_path)[0]).headers) == {"visual.w", "model.visual.w"}
