"""A real endpoint: vLLM's OpenAI server on the CPU with the bundled checkpoint.

How many critiques are accepted, and why the others are not, is printed (`pytest -s`) and in docs/annotate.md.
"""

import json
from collections import Counter

import httpx
import pytest
import typer
from typer.testing import CliRunner

from jrm_service.model.checkpoint_source import BUNDLED
from jrm_training.annotate_command import annotate
from jrm_training.data import Edit, Group, read_groups, write_groups
from jrm_training.train_commands import train
from jrm_training.trainer import read_log
from jrm_training.world import World
from support import vllm_openai
from support.scripted_endpoint import Asked, Reply, ScriptedEndpoint

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900)]

DIMENSIONS = ("instruction_following", "visual_quality")
# What the bundled checkpoint was trained to answer, and the words of its verdicts.
OWN_PROMPTS = {"following": "{instruction} <|Reward|>\n", "quality": "Quality? <|Reward|>\n"}
VERDICTS = {"very good": 4, "relatively good": 3, "relatively poor": 2, "very poor": 1}

app = typer.Typer()
for command in (annotate, train):
    app.command()(command)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with vllm_openai.serving(BUNDLED, tmp_path_factory.mktemp("vllm") / "log") as served:
        yield served


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def rows(path, count, turned=0):
    """Rows of the synthetic world without their critiques; of the first ``turned``, labels are turned around."""

    def labels(number, edit):
        return {name: 5 - label if number < turned else label for name, label in edit.labels.items()}

    groups = [
        Group(group.source, group.instruction, tuple(Edit(edit.image, labels(number, edit)) for edit in group.edits))
        for number, group in enumerate(World(count, seed=3, split="test", edits=2))
    ]
    return write_groups(path / "pairs.jsonl", groups)


def run(what, data, out, endpoint, *options):
    """Annotate, print what was accepted and what was not, and return the entries of the journal."""
    done = CliRunner().invoke(
        app,
        [
            *("annotate", str(data), "--out", str(out), "--model", "jrm-tiny", "--base-url", endpoint),
            *("--response-format", "none", "--boxes", "xy", "--max-tokens", "400", "--tries", "2"),
            *("--extra-body", '{"skip_special_tokens": false, "temperature": 0}'),
            *options,
        ],
    )
    assert done.exit_code in (0, 1), done.output
    entries = [json.loads(line) for line in out.with_name(f"{out.name}.journal").read_text().splitlines()[1:]]
    print(f"\n{what}: {sum(one['critique'] is not None for one in entries)} of {len(entries)} critiques accepted")
    for title, place in (("at first", 0), ("given up", -1)):
        kept = [one for one in entries if one["faults"] and (place == 0 or one["critique"] is None)]
        for (dimension, reason), count in Counter((one["dimension"], one["faults"][place][0]) for one in kept).items():
            print(f"  {title}: {count:3} {dimension}: {reason}")
    return entries


def accepted(entries):
    return [one for one in entries if one["critique"] is not None]


def test_asked_for_what_it_was_trained_on(url, tmp_path):
    """Its critiques have the form. Nobody told it the judgements, so its words argue for its own.

    Where it is right and the label was turned around, from 1 to 4 or back, that is a contradiction, and found.
    """

    def script(asked: Asked) -> Reply:
        if asked.reads:  # the bundled checkpoint reads no text; its verdicts have words of their own
            return Reply(json.dumps({"score": next(n for words, n in VERDICTS.items() if words in asked.texts[0])}))
        reply = httpx.post(f"{url}/chat/completions", json=asked.body, timeout=120)
        return Reply(status=reply.status_code, body=reply.content)

    prompts, out, data = tmp_path / "own.json", tmp_path / "own.jsonl", rows(tmp_path, 20, turned=6)
    prompts.write_text(json.dumps(OWN_PROMPTS))
    formed = run("not read back", data, tmp_path / "formed.jsonl", url, "--prompts", str(prompts), "--no-verify")
    with ScriptedEndpoint(script).serving() as endpoint:
        agreeing = run("read back", data, out, endpoint.url, "--prompts", str(prompts))
    assert len(accepted(formed)) >= 0.95 * 80
    groups = read_groups(data, DIMENSIONS)
    turned = {
        (line, name, edit)
        for line in range(1, 7)
        for edit in range(2)
        for name in DIMENSIONS
        if groups[line - 1].edits[edit].labels[name] in (1, 4)
    }
    found = {
        (one["line"], one["dimension"], one["edit"])
        for one in agreeing
        if one["faults"] and "the words argue for" in one["faults"][0][0]
    }
    print(f"labels turned around: {len(turned)}, of which {len(turned & found)} contradict what was written")
    assert len(turned & found) >= 0.8 * len(turned) > 8
    others = [one for one in accepted(agreeing) if one["line"] > 6]
    assert len(others) >= 0.9 * 56
    written = [len(edit.critiques) for group in read_groups(out, DIMENSIONS) for edit in group.edits]
    assert sum(written) == len(accepted(agreeing))
    recipe = tmp_path / "small.toml"
    recipe.write_text(
        'name = "small"\nbatch = 10\nmicro_batch = 5\nsaved_dtype = "float32"\n'
        '[data]\njsonl = "replaced"\n[optimizer]\nlr = 1e-4\n'
    )
    arguments = ("train", "--recipe", recipe, "--data", out, "--out", tmp_path / "run", "--device", "cpu")
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    assert [line["language"] > 0 for line in read_log(tmp_path / "run")] == [True, True]


def test_asked_as_a_large_model_would_be(url, tmp_path):
    """It has never seen such a prompt: nothing that it writes is taken, and the rows keep their labels."""
    entries = run("the shipped prompts", rows(tmp_path, 3), tmp_path / "asked.jsonl", url, "--no-verify")
    assert len(entries) == 12
    assert not accepted(entries)
    assert len(read_groups(tmp_path / "asked.jsonl", DIMENSIONS)) == 3
