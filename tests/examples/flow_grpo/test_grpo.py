"""A training run through the real service: rewards arrive, weights move, and what breaks ends as the docs say."""

import os
import socket
import subprocess
import sys

import pytest
import torch
from examples.flow_grpo.editor import Editor, load, save, split
from examples.flow_grpo.grpo import FIRST_TASK, GROUP
from examples.flow_grpo.server import served
from examples.flow_grpo.state import read_log

from examples.flow_grpo import tasks

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]

PROMPTS = 2
INSTRUCTIONS = [tasks.task(tasks.TRAINING, FIRST_TASK + number).instruction for number in range(3 * PROMPTS)]


@pytest.fixture(scope="module")
def editor(tmp_path_factory):
    """The file of an editor that makes something of everything."""
    torch.manual_seed(0)
    made = Editor(sorted({word for text in INSTRUCTIONS for word in split(text)}))
    for parameter in made.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    file = tmp_path_factory.mktemp("editor") / "editor.safetensors"
    save(made, file)
    return file


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with served(None, tmp_path_factory.mktemp("server") / "log") as at:
        yield at


class Run:
    """Two ranks, each a process, as torchrun starts them."""

    def __init__(self, urls, editor, out, steps=3, **settings):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        command = [sys.executable, "-m", "examples.flow_grpo.grpo", "--editor", str(editor), "--out", str(out)]
        command += [f"--steps={steps}", f"--prompts={PROMPTS}", "--updates=1", "--save-every=1", *options]
        self.out = out
        self.ranks = [
            subprocess.Popen(
                [*command, "--url", at],
                env=os.environ
                | {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                | {"OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank, at in enumerate(urls)
        ]

    def ended(self):
        """(exit status, stderr) of each rank."""
        said = [rank.communicate(timeout=300)[1] for rank in self.ranks]
        return [(rank.returncode, text) for rank, text in zip(self.ranks, said, strict=True)]

    def succeeded(self):
        """The rows of the log, of a run that must have gone well."""
        for status, text in self.ended():
            assert status == 0, text
        return read_log(self.out)


@pytest.fixture(scope="module")
def undisturbed(url, editor, tmp_path_factory):
    """The log and the folder of a run of three steps that nothing happened to."""
    out = tmp_path_factory.mktemp("undisturbed")
    return Run([url, url], editor, out).succeeded(), out


def test_rewards_arrive_and_weights_move(undisturbed, editor):
    log, out = undisturbed
    assert [row["step"] for row in log] == [0, 1, 2]
    for row in log:
        assert row["failed"] == 0
        assert list(row["rewards"]) == ["avg", "instruction_following", "visual_quality"]
        assert row["spread"] > 0  # edits of a group differ, and so do their rewards
    before, after = load(editor).state_dict(), weights(out)
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert {name.split(".")[0] for name in moved} == {
        "text",
        "from_text",
        "before",
        "down",
        "middle",
        "up",
        "join",
        "after",
    }


def alike(log, other):
    """Whether two runs did the same, but for the last digits: a score depends on its company by so much."""
    assert [row["step"] for row in log] == [row["step"] for row in other]
    for row, same in zip(log, other, strict=True):
        assert row["failed"] == same["failed"] == 0
        assert row["rewards"] == pytest.approx(same["rewards"], abs=0.02)
        assert row["kl"] == pytest.approx(same["kl"], rel=0.1, abs=1e-7)  # it has learned as much on the way


def weights(out):
    return load(out / "step-0003.safetensors").state_dict()


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(undisturbed, url, editor, tmp_path):
    Run([url, url], editor, tmp_path, steps=1).succeeded()
    for status, text in Run([url, url], editor, tmp_path, seed=1).ended():
        assert status != 0
        assert "was begun with other settings" in text
    log, out = undisturbed
    alike(Run([url, url], editor, tmp_path).succeeded(), log)
    for name, value in weights(out).items():
        torch.testing.assert_close(weights(tmp_path)[name], value, atol=1e-3, rtol=0)


def test_a_server_that_is_killed_and_restarted_costs_time_alone(undisturbed, editor, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with served(None, tmp_path / "server.log", port=port) as at:
        assert at == url
        run = Run([url, url], editor, tmp_path / "run")
        first = run.ranks[0].stdout.readline()
        assert first.startswith("step 1/3"), first
        killed = subprocess.run(["pkill", "-9", "-f", f"serve --port {port}"], check=False)
        assert killed.returncode == 0
    with served(None, tmp_path / "server.log", port=port):
        log = run.succeeded()
    alike(log, undisturbed[0])


def instructions(seed):
    first = FIRST_TASK + seed * 100_000
    return [tasks.task(tasks.TRAINING, first + number).instruction for number in range(3 * PROMPTS)]


# A run whose first instruction is not its longest one: a server that takes no longer ones refuses some, but not it.
SEED = next(seed for seed in range(1, 20) if any(len(t) > len(instructions(seed)[0]) for t in instructions(seed)))
REFUSED = [len(text) > len(instructions(SEED)[0]) for text in instructions(SEED)]


@pytest.fixture(scope="module")
def strict_url(tmp_path_factory):
    """A server of the same checkpoint that refuses some of the instructions, none of the first task."""
    flags = ["--max-instruction-chars", str(len(instructions(SEED)[0]))]
    with served(None, tmp_path_factory.mktemp("strict") / "log", flags=flags) as at:
        yield at


def test_an_edit_that_one_rank_gets_no_reward_for_stops_all_ranks_alike(url, strict_url, editor, tmp_path):
    ended = Run([url, strict_url], editor, tmp_path, seed=SEED).ended()
    for status, text in ended:
        assert status != 0
        assert "rank 1: " in text
        assert "instruction_too_long" in text
    assert len(read_log(tmp_path)) == REFUSED.index(True) // PROMPTS  # no step was taken with a made-up number


def test_an_edit_without_a_reward_takes_no_part_where_the_run_is_to_go_on(url, strict_url, editor, tmp_path):
    log = Run([url, strict_url], editor, tmp_path, seed=SEED, on_error="nan").succeeded()
    expected = [GROUP // 2 * sum(REFUSED[step * PROMPTS : (step + 1) * PROMPTS]) for step in range(3)]
    assert [row["failed"] for row in log] == expected
    assert all(row["spread"] > 0 for row in log)
