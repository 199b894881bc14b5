"""The training loop on a tiny random model: what a step computes, what a killed run does, what is refused."""

import math
import shutil

import pytest
import torch

from jrm_service.model.checkpoint import open_checkpoint
from jrm_training.batch import Collator
from jrm_training.data import DataError, Group, read_groups, write_groups
from jrm_training.losses import joint_loss, language_loss, pairs_of, ranking_loss
from jrm_training.model import JointModel
from jrm_training.trainer import LOG, StepLog, Trainer, append_log, read_log
from support import checkpoints
from support.training import easy_groups, edit, group, groups, recipe


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return open_checkpoint(checkpoints.write(tmp_path_factory.mktemp("start"), checkpoints.two_passes()))


@pytest.fixture
def train(checkpoint, tmp_path):
    """Run a recipe to its end: (its steps, its trainer)."""

    def start(wanted, data=None, *, out=None, killed_after=None):
        trainer = Trainer(wanted, checkpoint, groups(4) if data is None else data, out or tmp_path / "run")
        logs = []

        def on_step(log):
            logs.append(log)
            if log.step == killed_after:
                raise Killed

        if killed_after is None:
            trainer.fit(on_step)
        else:
            with pytest.raises(Killed):
                trainer.fit(on_step)
        return logs, trainer

    return start


def state_of(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def numbers(log):
    return (log.step, log.rank, log.language, log.total, log.gradient_norm)


def equal(one, other):
    return all(tensor.equal(other[name]) for name, tensor in one.items())


# --- what a step computes --------------------------------------------------------------------------------------------


def test_a_step_is_equation_7_on_the_whole_batch(checkpoint, train):
    """Losses and gradient norm, against the losses of one row with both groups, each averaged over all it counts."""
    wanted = recipe(alpha=0.6, optimizer={"clip": 1e9})
    (first, *_), _ = train(wanted, [group(0, edits=3), group(1, edits=2)])
    model = JointModel.load(checkpoint)
    row = Collator(checkpoint).row([group(0, edits=3), group(1, edits=2)])
    joint = model(row)
    ranked = [
        ranking_loss(outputs[:, 0], outputs[:, 1], pairs_of(labels, row.group_of))
        for outputs, labels in zip(joint.outputs.values(), row.labels.unbind(1), strict=True)
    ]
    rank = sum(one.total for one in ranked) / sum(one.pairs for one in ranked)
    language = language_loss(joint.logits, row.targets)
    total = joint_loss(rank, language, 0.6)
    total.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    assert first.rank == pytest.approx(rank.item(), abs=1e-5)
    assert first.language == pytest.approx(language.item(), abs=1e-5)
    assert first.total == pytest.approx(total.item(), abs=1e-5)
    assert first.gradient_norm == pytest.approx(norm.item(), rel=1e-4)


def test_micro_batches_do_not_change_the_weights(train, tmp_path):
    """Groups of unequal size: a mean over rows of means over pairs would differ."""
    data = [group(0, edits=4), group(1, edits=2), group(2, edits=3), group(3, edits=2)]
    found = []
    for micro_batch in (1, 2, 4):
        wanted = recipe(batch=4, micro_batch=micro_batch, optimizer={"lr": 1e-4})
        logs, trainer = train(wanted, data, out=tmp_path / str(micro_batch))
        found.append((numbers(logs[0]), state_of(trainer)))
    (first, weights), *others = found
    for log, other in others:
        assert log == pytest.approx(first, rel=1e-4)
        moved = max((tensor - other[name]).abs().max().item() for name, tensor in weights.items())
        assert moved < 1e-5


def test_without_alpha_the_language_is_left_out(train):
    """No critique is in a row, so the language head gets nothing to do; the heads train all the same."""
    (log, *_), trainer = train(recipe(alpha=0.0))
    assert log.language == 0
    assert log.total == log.rank > 0
    assert log.gradient_norm > 0
    seen = []
    trainer.model.lm_head.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    trainer.model(trainer._rows[[0]])
    assert seen == [0]


def test_with_alpha_1_the_heads_stay(train, checkpoint):
    _, trainer = train(recipe(alpha=1.0, optimizer={"weight_decay": 0.0}))
    before, after = JointModel.load(checkpoint).state_dict(), state_of(trainer)
    moved = {name for name, tensor in after.items() if not tensor.equal(before[name])}
    assert moved
    assert not any(name.startswith("heads.") for name in moved)


def test_groups_without_labels_or_critiques_train_on_what_there_is(train):
    silent = Group(group(0).source, "x", (edit(1), edit(2)))
    mute = Group(group(1).source, "y", tuple(type(e)(e.image, {}, e.critiques) for e in group(1).edits))
    (log, *_), _ = train(recipe(), [silent, mute])
    assert log.rank == pytest.approx(math.log(2), abs=0.2)  # two ties
    assert log.accuracy == {}
    assert log.language > 0


def test_bfloat16_computes_about_the_same_and_keeps_float32(train, tmp_path):
    (exact, *_), _ = train(recipe(), out=tmp_path / "float32")
    (rounded, *_), trainer = train(recipe(dtype="bfloat16"), out=tmp_path / "bfloat16")
    assert rounded.total == pytest.approx(exact.total, rel=0.02)
    assert rounded.total != exact.total
    assert {tensor.dtype for tensor in trainer.model.state_dict().values()} == {torch.float32}


def test_both_losses_fall(train):
    logs, _ = train(recipe(epochs=15, micro_batch=2, optimizer={"lr": 3e-3, "warmup": 0.1}), easy_groups())
    assert logs[-1].rank < 0.4 * logs[0].rank
    assert logs[-1].language < 0.2 * logs[0].language
    assert logs[-1].accuracy == {"instruction_following": 1.0, "visual_quality": 1.0}


def test_equal_runs_are_equal_to_the_bit(train, tmp_path):
    runs = [train(recipe(), out=tmp_path / name) for name in ("a", "b")]
    assert [numbers(log) for log in runs[0][0]] == [numbers(log) for log in runs[1][0]]
    assert equal(state_of(runs[0][1]), state_of(runs[1][1]))


# --- killed and resumed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("muon", [None, 0.01])
def test_a_killed_run_goes_on_as_if_it_had_not_been(train, tmp_path, muon):
    wanted = recipe(epochs=2, save_every=2, optimizer={"muon_lr": muon})
    whole, trainer = train(wanted, out=tmp_path / "whole")
    train(wanted, out=tmp_path / "killed", killed_after=3)
    rest, resumed = train(wanted, out=tmp_path / "killed")
    assert [log.step for log in rest] == [3, 4]  # from the state of step 2
    assert [numbers(log) for log in rest] == [numbers(log) for log in whole[2:]]
    assert equal(state_of(trainer), state_of(resumed))


def test_sigma_begins_anew_once(train, checkpoint, tmp_path):
    """Means stay, sigma is 1 whatever h is; a run that goes on keeps the sigma that it has learned."""
    wanted = recipe(fresh_sigma=True, epochs=2, save_every=1)
    row = Collator(checkpoint).row(groups(2))
    plain = JointModel.load(checkpoint)(row)
    begun = Trainer(wanted, checkpoint, groups(4), tmp_path / "untouched").model(row)
    for name, outputs in begun.outputs.items():
        assert outputs[:, 0].equal(plain.outputs[name][:, 0])
        assert plain.outputs[name][:, 1].any()
        assert not outputs[:, 1].any()
    _, trainer = train(wanted)
    train(wanted, out=tmp_path / "killed", killed_after=3)
    _, resumed = train(wanted, out=tmp_path / "killed")
    assert equal(state_of(trainer), state_of(resumed))
    assert trainer.model(row).outputs["visual_quality"][:, 1].any()


def test_a_finished_run_has_nothing_left_to_do(train, tmp_path):
    _, trainer = train(recipe())
    logs, again = train(recipe())
    assert logs == []
    assert again.finished
    assert equal(state_of(trainer), state_of(again))


@pytest.mark.parametrize("broken", ["a loss", "a gradient"])
def test_what_is_not_finite_stops_the_run_before_it_spreads(train, checkpoint, tmp_path, broken):
    wanted = recipe(epochs=2, save_every=2)
    train(wanted, killed_after=3)
    trainer = Trainer(wanted, checkpoint, groups(4), tmp_path / "run")
    if broken == "a loss":
        trainer.model.heads.heads[0].layers[0].bias.data[0] = math.nan
    else:
        trainer.model.lm_head.weight.register_hook(lambda gradient: gradient * math.inf)
    before = state_of(trainer)
    with pytest.raises(FloatingPointError, match=f"step {trainer.step + 1}: the loss is"):
        trainer.fit()
    after = state_of(trainer)
    assert all(torch.equal(t.nan_to_num(), after[name].nan_to_num()) for name, t in before.items())
    assert Trainer(wanted, checkpoint, groups(4), tmp_path / "run").step == trainer.step == 2


# --- data ------------------------------------------------------------------------------------------------------------


def test_workers_give_the_same_rows_and_hand_on_what_is_wrong(train, tmp_path, checkpoint):
    """In processes of their own; the run stops at the first group that cannot be read, with its line."""
    file = write_groups(tmp_path / "groups.jsonl", groups(4))
    data = read_groups(file, checkpoint.manifest.dimensions)
    wanted = recipe(data={"seed": 0})
    here, _ = train(wanted, data, out=tmp_path / "here")
    shutil.rmtree(tmp_path / "here")
    last = max(range(4), key=[n for rows in range(2) for n in order_of(wanted, rows)].index)
    text = file.read_bytes().splitlines(keepends=True)
    text[last] = text[last].replace(b"edit number", b"Edit number")
    file.write_bytes(b"".join(text))
    trainer = Trainer(recipe(data={"seed": 0, "workers": 1}), checkpoint, data, tmp_path / "there")
    logs = []
    with pytest.raises(DataError, match=rf"line {last + 1}: changed since"):
        trainer.fit(logs.append)
    assert [numbers(log) for log in logs] == [numbers(log) for log in here[:1]]


def order_of(wanted, step):
    from jrm_training.order import Order

    rows = Order(4, wanted.batch, wanted.micro_batch, wanted.data.seed, shuffle=True).rows(step)
    return [n for row in rows for n in row]


def test_a_group_that_is_too_long_is_named(train):
    with pytest.raises(ValueError, match=r"instruction 'edit number .*the limit is 60"):
        train(recipe(max_tokens=60))


def test_too_few_groups_are_refused(train):
    with pytest.raises(ValueError, match="1 groups in 1 epochs do not fill a batch of 2"):
        train(recipe(), groups(1))


# --- the log ---------------------------------------------------------------------------------------------------------


def test_a_step_says_what_it_did(train):
    logs, _ = train(recipe(epochs=2, alpha=0.7, optimizer={"lr": 1e-3, "warmup": 0.5}))
    assert [log.step for log in logs] == [1, 2, 3, 4]
    assert [log.learning_rate for log in logs] == pytest.approx([0.5e-3, 1e-3, 1e-3, 0.5e-3])
    for log in logs:
        assert log.total == pytest.approx(0.3 * log.rank + 0.7 * log.language)
        assert set(log.accuracy) == {"instruction_following", "visual_quality"}
        assert set(log.accuracy.values()) <= {0.0, 0.5, 1.0}
        assert log.tokens > 0
        assert log.groups_per_second > 0


def step(number, loss=1.0):
    return StepLog(number, loss, loss, loss, 1.0, 1e-3, {}, 10, 1.0)


def test_a_log_is_read_back_with_the_later_of_two_equal_steps(tmp_path):
    for log in (step(1), step(2, 5.0), step(2, 6.0), step(3)):
        append_log(tmp_path / "run", log)
    assert [(line["step"], line["total"]) for line in read_log(tmp_path / "run", upto=2)] == [(1, 1.0), (2, 6.0)]
    assert len(read_log(tmp_path / "run")) == 3


def test_a_line_that_a_kill_cut_off_is_left_out(tmp_path):
    append_log(tmp_path, step(1))
    with (tmp_path / LOG).open("a") as file:
        file.write('{"step": 2, "accuracy": {}')
    append_log(tmp_path, step(3))
    assert [line["step"] for line in read_log(tmp_path)] == [1, 3]


def test_a_run_without_a_log(tmp_path):
    assert read_log(tmp_path) == []
