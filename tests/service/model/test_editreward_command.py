"""``jrm import-editreward`` and the page of the documentation that leads to it."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from jrm_client.cli import app
from support.editreward import PROMPTS, edit, read


def command(case, *more):
    folders = {"--checkpoint": case.weights, "--base": case.base, "--out": case.folder / "out"}
    return CliRunner().invoke(
        app, ["import-editreward", *(str(word) for pair in folders.items() for word in pair), *more]
    )


def test_command_prints_fingerprint_and_next_command(case):
    result = command(case, "--prompts", str(case.prompts), "--name", "edit-reward-tiny", "--max-pixels", "30000")
    assert result.exit_code == 0, result.output
    assert f"jrm serve --checkpoint {case.folder / 'out'}" in result.stdout
    inspected = CliRunner().invoke(app, ["inspect", "--json", str(case.folder / "out")])
    facts = json.loads(inspected.stdout)
    assert facts["fingerprint"] in result.stdout
    assert facts["name"] == "edit-reward-tiny"
    assert facts["image"]["max_pixels"] == 30000


def test_the_documented_way(case, monkeypatch):
    """The snippet and the commands of docs/editreward.md, run as printed on a stand-in for the user's files."""
    documentation = (Path(__file__).parents[3] / "docs" / "editreward.md").read_text()
    snippet = re.search(r"```python\n(.*?)```", documentation, re.DOTALL)[1]
    commands = [shlex.split(line) for line in documentation.replace("\\\n", "").splitlines() if line.startswith("jrm ")]
    checkout = case.folder / "EditReward"
    dataset = checkout / "EditReward" / "dataset"
    dataset.mkdir(parents=True)
    end = "\nRate: <|Reward|>\n\nEND\n"
    follow, look = (PROMPTS[name].removesuffix(end) for name in PROMPTS)
    braces = follow.replace("{", "{{").replace("}", "}}").replace("{{instruction}}", "{text_prompt}")
    constants = {
        "INSTRUCTION_EDIT_FOLLOWING": braces,
        "INSTRUCTION_EDIT_QUALITY": look.replace("{instruction}", "{text_prompt}"),
    }
    (dataset / "prompts.py").write_text("\n".join(f"{name} = {text!r}" for name, text in constants.items()))
    (dataset / "data_collator_qwen_edit.py").write_text(f"prompt_with_special_token = {end!r}\n")
    case.weights.rename(case.folder / "EditReward-Qwen3-VL")
    case.base.rename(case.folder / "Qwen3-VL-8B-Instruct")

    (checkout / "write_prompts.py").write_text(snippet)
    subprocess.run([sys.executable, "write_prompts.py"], cwd=checkout, check=True)
    assert read(checkout / "prompts.json") == PROMPTS
    monkeypatch.chdir(case.folder)
    importing, inspecting, serving = (command[1:] for command in commands)
    assert CliRunner().invoke(app, importing).exit_code == 0
    inspected = CliRunner().invoke(app, inspecting)
    assert "editreward-jrm" in inspected.stdout
    assert serving == ["serve", "--checkpoint", "editreward-jrm"]


def test_command_prints_every_problem(case):
    case.tensors(lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("rm_heads.head_1.")])
    edit(case.base / "preprocessor_config.json", patch_size=14)
    result = command(case)
    assert result.exit_code == 1
    assert "error: rm_heads.head_1: missing" in result.stderr
    assert "patch_size is 14" in result.stderr
