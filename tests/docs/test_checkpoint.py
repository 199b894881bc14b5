"""docs/checkpoint.md against the types of the manifest and of golden scores, and what `jrm inspect` prints."""

import json
import re

import pytest
import typer

from docs import pages
from jrm_service import cli
from jrm_service.model import golden, manifest
from jrm_service.model.checkpoint_source import BUNDLED, open_source
from support import checkpoints
from support.cases import each

PAGE = pages.DOCS / "checkpoint.md"


def test_the_manifest_on_the_page_is_valid():
    manifest.Manifest.model_validate_json(pages.blocks(PAGE, "json")[0])


def test_the_golden_scores_on_the_page_are_those_of_the_tiny_checkpoint(tmp_path):
    tests = golden.Golden.model_validate_json(pages.blocks(PAGE, "json")[1])
    source = open_source(checkpoints.write(tmp_path, checkpoints.one_pass()), ["cpu"], "float32", "trie")
    _, [backend] = source.load()
    assert golden.check(tests, source.preparer, backend, "float32").max_deviation < 1e-4
    assert tests.tolerance == golden.Tolerance()


@each(("prefix", "model"), [("", golden.Golden), ("cases[].", golden.GoldenCase)], ids=["file", "case"])
def test_every_golden_key_has_its_row(prefix, model):
    rows = {key for keys, *_ in pages.table(PAGE, "golden key") for key in keys.split(", ")}
    assert {key for key in rows if ("." in key) == bool(prefix)} == {prefix + name for name in model.model_fields}


@each(
    ("prefix", "model"),
    [
        ("", manifest.Manifest),
        ("image.", manifest.ImageRules),
        ("passes[].", manifest.Pass),
        ("heads.*.", manifest.Head),
        ("reward.", manifest.Reward),
    ],
)
def test_every_key_has_its_row(prefix, model):
    rows = {key for keys, *_ in pages.table(PAGE, "key") for key in keys.split(", ")}
    documented = {key.split(".")[0] for key in rows} if not prefix else rows
    assert {prefix + name for name in model.model_fields} <= documented


def test_keys_with_a_default_say_which():
    text = {keys: default for keys, default, *_ in pages.table(PAGE, "key")}
    for key in ("format", "name", "reward_token", "passes", "heads"):
        assert text[key] == "required"
        assert manifest.Manifest.model_fields[key].is_required()
    assert text["reward.combine"] == f'"{manifest.Reward().combine}"'
    assert text["image.resample"] == f'"{manifest.ImageRules(min_pixels=1, max_pixels=1).resample}"'


def masked(text: str) -> str:
    """Without what differs from one tokenizer library to the next, and without the padding of a terminal."""
    return "\n".join(line.rstrip() for line in re.sub(r"\b[0-9a-f]{32}\b", "FINGERPRINT", text).strip().splitlines())


def block_of(begin: str) -> str:
    [block] = [block for block in pages.blocks(PAGE, "") if block.startswith(begin)]
    return masked(block)


def test_inspect_prints_what_the_page_shows(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    cli.inspect(BUNDLED)
    assert masked(capsys.readouterr().out) == block_of("name ")


def test_inspect_of_a_broken_one_prints_what_the_page_shows(tmp_path, capsys):
    path = checkpoints.write(tmp_path, checkpoints.one_pass())
    document = checkpoints.one_pass()
    document["image"]["max_pixels"] = 200704
    document["heads"]["head_1"]["hidden"] = [128, 16]
    (path / "reward" / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(typer.Exit) as caught:
        cli.inspect(path)
    assert caught.value.exit_code == 1
    assert masked(capsys.readouterr().err) == block_of("error: ")
