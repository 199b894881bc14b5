"""docs/synthetic-world.md against the world: tables, critiques, programs, and the picture."""

import json
import re
import runpy

import numpy as np
import typer
from PIL import Image
from typer.testing import CliRunner

from docs import pages
from jrm_training.critique import parse_critique
from jrm_training.data import read_groups
from jrm_training.train_commands import world
from jrm_training.world import HELD_OUT
from jrm_training.world.edits import LABELS
from jrm_training.world.flaws import BANDS
from jrm_training.world.scene import COLOURS, KINDS

PAGE = pages.DOCS / "synthetic-world.md"
PICTURE = pages.DOCS / "synthetic-world.png"
SHEET = runpy.run_path(str(pages.ROOT / "examples" / "synthetic_world.py"))
TEXT = pages.prose(PAGE).replace("\n", " ")


def test_the_qualities_and_their_labels():
    assert {quality: int(label) for quality, label, *_ in pages.table(PAGE, "quality")} == LABELS


def test_the_bands_of_the_flaws():
    rows = pages.table(PAGE, "flaw")
    bands = {kind: [tuple(map(float, band.split(" to "))) for band in three] for kind, *three, _unit in rows}
    assert bands == {kind: [BANDS[kind][label] for label in (3, 2, 1)] for kind in BANDS}


def test_colours_kinds_and_what_is_held_out():
    assert all(re.search(rf"\b{word}\b", TEXT) for word in COLOURS)
    assert all(f"{kind}s" in TEXT for kind in KINDS)
    assert all(f"{colour} {kind}" in TEXT for colour, kind in HELD_OUT)


def test_the_critiques_on_the_page_are_those_of_the_picture():
    """Of the first edit in the picture."""
    with_regions, without = map(json.loads, pages.blocks(PAGE, "json"))
    parse_critique(json.dumps(with_regions), regions=True)
    parse_critique(json.dumps(without), regions=False)
    edit = SHEET["WORLD"][SHEET["INDICES"][0]].edits[0]
    assert with_regions == json.loads(edit.critiques["instruction_following"])
    assert without == json.loads(edit.critiques["visual_quality"])


def test_the_program_prints_a_group(capsys):
    one, two = pages.blocks(PAGE, "python")
    exec(compile(one, pages.name(PAGE), "exec"), {})
    told, *edits = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r".+ \(\d+, \d+\)", told)
    assert len(edits) == 4
    exec(compile(two, pages.name(PAGE), "exec"), {})
    assert re.fullmatch(r".+ \[\(\d+, \d+\), \(\d+, \d+\)\]\n", capsys.readouterr().out)


def test_the_command_writes_what_the_page_says(tmp_path):
    [block] = pages.blocks(PAGE, "")
    arguments = re.fullmatch(r"jrm world (.+)\n", block)[1].replace("DIR", str(tmp_path)).replace("100", "1").split()
    app = typer.Typer()
    app.command()(world)
    assert CliRunner().invoke(app, arguments).exit_code == 0
    [group] = read_groups(tmp_path / "test.jsonl", ["instruction_following", "visual_quality"])
    assert len(group.edits) == 12
    assert (tmp_path / "images").is_dir()


def test_the_picture_is_what_the_script_draws(tmp_path):
    SHEET["main"](tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as drawn, Image.open(PICTURE) as shown:
        assert drawn.size == shown.size
        assert np.abs(np.asarray(drawn, int) - np.asarray(shown.convert("RGB"), int)).mean() < 1


def test_the_picture_is_small():
    assert PICTURE.stat().st_size < 300_000
