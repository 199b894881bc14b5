"""What a run takes, counted on the meta device, against what a real one takes."""

import shutil
from dataclasses import replace

import pytest
import torch
import typer
from rich.console import Console
from safetensors import safe_open
from typer.testing import CliRunner

from jrm_service.model.checkpoint import open_checkpoint
from jrm_training.batch import Collator
from jrm_training.data import write_groups
from jrm_training.dry_run import dry_run
from jrm_training.lora import add_lora
from jrm_training.losses import language_loss
from jrm_training.memory import count_memory, export_bytes, row_bytes, state_bytes
from jrm_training.model import JointModel
from jrm_training.run import run
from jrm_training.train_commands import train
from jrm_training.trainer import Trainer
from support import checkpoints
from support.training import groups, recipe

LORA = {"r": 4, "alpha": 8.0, "targets": ("q_proj", "v_proj")}
WAYS = {"whole": {}, "lora": {"lora": LORA}, "lora in bfloat16": {"lora": LORA, "dtype": "bfloat16"}}


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def start(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("start") / "start"
    return open_checkpoint(checkpoints.write(folder, checkpoints.two_passes(), tied=request.param))


@pytest.fixture(scope="module")
def row(start):
    return Collator(start).row(groups(2, edits=3))


@pytest.fixture(scope="module")
def counted(start, row):
    """Counts what a run with this row takes; twice asked, once counted."""
    found = {}

    def count(devices=1, gpu=False, **changes):
        key = repr((devices, gpu, changes))
        if key not in found:
            tokens = Collator(start).new_tokens
            found[key] = count_memory(recipe(**changes), start, tokens, row, devices=devices, gpu=gpu)
        return found[key]

    return count


@pytest.mark.parametrize("way", WAYS)
def test_weights_gradients_and_moments_are_those_of_a_real_run(start, counted, tmp_path, way):
    options = {"gradient_checkpointing": True, **WAYS[way]}
    trainer = Trainer(recipe(**options), start, groups(4), tmp_path / "run")
    (adamw,) = trainer._optimizers.parts
    gradients = []
    adamw.register_step_pre_hook(
        lambda *_: gradients.append(sum(w.grad.nbytes for w in trainer.model.parameters() if w.grad is not None))
    )
    trainer.fit()
    memory = counted(**options)
    assert memory.parameters == sum(weight.numel() for weight in trainer.model.parameters())
    assert memory.trained == sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad)
    assert memory.weights == sum(weight.nbytes for weight in trainer.model.parameters())
    assert set(gradients) == {memory.gradients}
    assert memory.optimizer == sum(tensor.nbytes for state in adamw.state.values() for tensor in state.values())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("checkpointed", [True, False])
def test_a_row_takes_what_it_takes_with_real_tensors(start, row, counted, way, checkpointed):
    wanted = recipe(gradient_checkpointing=True, **WAYS[way])
    model = JointModel.load(start, dtype=torch.bfloat16 if wanted.dtype == "bfloat16" else torch.float32)
    if wanted.lora is not None:
        add_lora(model, wanted.lora, Collator(start).new_tokens, 0)
    real = row_bytes(model, row, 0.7, checkpointed=checkpointed, gpu=False)
    memory = counted(gradient_checkpointing=True, **WAYS[way])
    assert (memory.row if checkpointed else memory.row_kept) == pytest.approx(real, rel=0.01)


def test_a_row_takes_at_least_what_is_saved_for_the_way_back_and_not_much_more(start, row, counted):
    """Against torch's own account of a real run."""
    model = JointModel.load(start)
    known = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    saved = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        joint = model(row)
        loss = sum(outputs.sum() for outputs in joint.outputs.values()) + language_loss(joint.logits, row.targets)
    assert loss.requires_grad
    assert sum(saved.values()) < counted().row < 1.5 * sum(saved.values())


def test_checkpointing_and_grouped_heads_count(counted):
    memory = counted(gradient_checkpointing=True)
    assert memory.row < 0.7 * memory.row_kept
    assert counted(gpu=True).row > counted(gpu=False).row


def test_shards_are_counted_with_their_padding(start, counted):
    """Of 3 rows over 2 devices the first has 2."""
    one, two, many = (counted(devices=n, shard=True) for n in (1, 2, 10**6))
    assert one.weights == 4 * one.parameters
    assert one.weights / 2 <= two.weights < 0.51 * one.weights
    model = JointModel.load(start)
    assert many.weights == 4 * sum(weight[0].numel() for weight in model.parameters())
    plain = counted(devices=2)  # each has them all, and sends all gradients at once
    assert (plain.weights, plain.summed) == (one.weights, one.gradients)
    assert counted().summed == 0


def test_the_peak_is_the_sum_or_what_comes_before_or_after(counted):
    memory = counted(devices=2, shard=True, dtype="bfloat16")
    kept = memory.weights + memory.gradients + memory.optimizer
    assert memory.peak == kept + memory.copies + memory.row + memory.summed
    assert replace(memory, row=0, copies=0, summed=0).peak == kept + memory.gradients
    assert replace(memory, loading=10**12).peak == 10**12


def test_states_and_the_checkpoint_take_that_much_disk(start, counted, tmp_path):
    data = write_groups(tmp_path / "groups.jsonl", groups(4))
    wanted = recipe(saved_dtype="bfloat16", data={"jsonl": str(data)})
    written = run(wanted, start.path, tmp_path / "run", "cpu", Console(quiet=True))
    (state,) = (tmp_path / "run" / "states").iterdir()
    size = sum(file.stat().st_size for file in state.glob("*.distcp"))
    assert size == pytest.approx(state_bytes(counted()), rel=0.15)  # names weigh as much as the tensors of a tiny model
    stored = 0
    for file in written.rglob("*.safetensors"):
        with safe_open(file, framework="pt") as handle:
            stored += sum(handle.get_tensor(name).nbytes for name in handle.keys())  # noqa: SIM118 - not a mapping
    assert export_bytes(wanted, start) == stored


def test_the_largest_of_the_data_make_the_row(start):
    data = [*groups(3), *groups(1, edits=5), *groups(3)]
    found = dry_run(recipe(batch=2, micro_batch=2, epochs=3), start, data, 1)
    assert (len(found.row.labels), found.data.groups, found.data.steps, found.data.edits) == (7, 7, 10, 17)
    alone = [Collator(start).row([group]).packed.ids.numel() for group in data]
    assert found.data.tokens == sum(alone)


def test_without_data_rows_fill_what_is_allowed(start):
    found = dry_run(recipe(batch=2, micro_batch=2, max_tokens=4000), start, None, 1)
    assert found.data is None
    assert 7000 < found.row.packed.ids.numel() <= 8000
    assert int(found.row.group_of.max()) == 1


# --- as a user calls it ----------------------------------------------------------------------------------------------

app = typer.Typer()
app.command()(train)


def call(*arguments):
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def weightless(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weightless")
    whole = checkpoints.write(folder / "whole", checkpoints.two_passes(), tied=False)
    return shutil.copytree(whole, folder / "start", ignore=shutil.ignore_patterns("*.safetensors"))


@pytest.mark.parametrize("name", ["jrm-8b", "jrm-8b-lora"])
def test_the_shipped_recipes_are_counted_without_weights_or_data(weightless, name):
    result = call("--recipe", name, "--checkpoint", weightless, "--dry-run", "--devices", 4)
    assert result.exit_code == 0, result.output
    for told in (
        f"{name} on 4 devices",
        "most at once",
        "without checkpointing",
        "states on disk",
        "not known without",
    ):
        assert told in result.output
    assert ("1/4 of" in result.output) == (name == "jrm-8b")


def test_with_data_it_counts_steps_and_writes_nothing(weightless, tmp_path):
    data = write_groups(tmp_path / "groups.jsonl", groups(64))
    before = sorted(tmp_path.rglob("*"))
    arguments = (
        "--recipe",
        "jrm-8b",
        "--checkpoint",
        weightless,
        "--data",
        data,
        "--out",
        tmp_path / "run",
        "--dry-run",
    )
    result = call(*arguments, "--devices", 8)
    assert result.exit_code == 0, result.output
    assert "10 of 64 groups, 10 times 64 groups" in result.output
    assert "about 1,280 candidates" in result.output
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--dry-run", "--devices", "3"), "batch 64: must be a multiple of micro_batch 2 x 3 devices"),
        (("--dry-run", "--data", "nowhere.jsonl"), "No such file or directory"),
        ((), "--out: missing"),
    ],
)
def test_what_is_wrong_is_one_line(weightless, options, told):
    result = call("--recipe", "jrm-8b", "--checkpoint", weightless, *options)
    assert result.exit_code == 1
    assert result.output.startswith("error: ")
    assert told in result.output
    assert len(result.output.splitlines()) == 1
