"""States on disk: which are kept, which are believed, whose they are."""

import pytest
import torch

from jrm_training.states import load_state, save_state, saved_states
from support.training import recipe

DATA = {"groups": 4, "rows": "a1"}


@pytest.fixture
def run():
    """A model with a step of Adam behind it."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return model, [optimizer]


def fresh():
    model = torch.nn.Linear(3, 2)
    return model, [torch.optim.AdamW(model.parameters(), lr=0.1)]


def names(out):
    return [state.name for state in saved_states(out)]


def test_weights_and_moments_come_back(tmp_path, run):
    save_state(tmp_path, 5, recipe(), DATA, *run)
    model, optimizers = fresh()
    assert load_state(tmp_path, recipe(), DATA, model, optimizers) == 5
    assert model.weight.equal(run[0].weight)
    moments, expected = (part[0].state_dict()["state"][0]["exp_avg"] for part in (optimizers, run[1]))
    assert moments.equal(expected)


def test_without_a_state_nothing_is_touched(tmp_path):
    model, optimizers = fresh()
    before = model.weight.clone()
    assert load_state(tmp_path, recipe(), DATA, model, optimizers) == 0
    assert model.weight.equal(before)


def test_the_two_newest_states_are_kept(tmp_path, run):
    for step in (9, 10, 11):
        save_state(tmp_path, step, recipe(), DATA, *run)
    assert names(tmp_path) == ["00000010", "00000011"]


def test_what_a_kill_left_half_written_is_no_state_and_in_nobodys_way(tmp_path, run):
    save_state(tmp_path, 1, recipe(), DATA, *run)
    draft = tmp_path / "states" / "draft"
    draft.mkdir()
    (draft / "__0_0.distcp").write_bytes(b"half")
    assert load_state(tmp_path, recipe(), DATA, *fresh()) == 1
    save_state(tmp_path, 2, recipe(), DATA, *run)
    assert names(tmp_path) == ["00000001", "00000002"]
    assert not draft.exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"alpha": 0.1}, "alpha was 0.7, is 0.1"),
        ({"epochs": 3}, "epochs was 1, is 3"),
        ({"optimizer": {"lr": 0.5}}, "optimizer.lr was 0.001, is 0.5"),
        ({"data": {"seed": 9}}, "data.seed was 0, is 9"),
    ],
)
def test_another_recipe_is_refused(tmp_path, run, changes, told):
    save_state(tmp_path, 1, recipe(), DATA, *run)
    with pytest.raises(ValueError, match=f"started with another recipe: {told}$"):
        load_state(tmp_path, recipe(**changes), DATA, *fresh())


@pytest.mark.parametrize(
    ("data", "told"),
    [({"groups": 5, "rows": "a1"}, "groups was 4, is 5"), ({"groups": 4, "rows": "b2"}, "rows was a1, is b2")],
)
def test_other_data_is_refused(tmp_path, run, data, told):
    save_state(tmp_path, 1, recipe(), DATA, *run)
    with pytest.raises(ValueError, match=f"started on other data: {told}$"):
        load_state(tmp_path, recipe(), data, *fresh())


def test_a_state_that_does_not_know_its_data_is_taken(tmp_path, run):
    save_state(tmp_path, 1, recipe(), DATA, *run)
    (tmp_path / "states" / "00000001" / "data.json").unlink()
    assert load_state(tmp_path, recipe(), {"groups": 5}, *fresh()) == 1


def test_what_does_not_change_a_step_may_change(tmp_path, run):
    save_state(tmp_path, 1, recipe(), DATA, *run)
    free = {"save_every": 7, "micro_batch": 2, "gradient_checkpointing": True, "saved_dtype": "bfloat16"}
    assert load_state(tmp_path, recipe(**free, data={"workers": 3}), DATA, *fresh()) == 1
