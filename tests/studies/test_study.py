"""A study of two tiny runs with random weights: what it finds, keeps, and refuses."""

import json
import shutil

import pytest
from studies.study import Plan, measure, open_run, read_study, write_study

from jrm_service.errors import CheckpointError
from support import checkpoints, studies

PLAN = Plan(groups=2, edits=5, critiques=5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [studies.run_folder(folder / "joint", 0.7), studies.run_folder(folder / "rank", 0.0, seed=1)]


@pytest.fixture(scope="module")
def stages():
    return []


@pytest.fixture(scope="module")
def measured(runs, stages):
    return measure(runs, PLAN, device="cpu", advance=lambda *of: stages.append(of))


def test_both_splits_of_both_runs_are_judged(measured):
    assert [(run["name"], run["alpha"], run["steps"]) for run in measured["runs"]] == [
        ("joint", 0.7, 5),
        ("rank", 0, 5),
    ]
    for run in measured["runs"]:
        for report in run["splits"].values():
            assert (report["groups"], report["edits"], report["failed"]["count"]) == (2, 10, 0)
        assert run["curves"]["stages"] == [2.0]
        assert run["representation"]["all passes"]["states"] == 10


def test_critiques_are_those_of_four_edits_of_a_group(measured):
    joint, rank = (run["splits"]["test"]["critiques"] for run in measured["runs"])
    assert rank == {}
    for figures in joint.values():
        assert (figures["critique_valid"]["count"], figures["critique_valid"]["groups"]) == (5, 2)
        assert (figures["verdict_right"]["value"], figures["verdict_right"]["count"]) == (0, 5)
    assert joint["instruction_following"]["regions_found"]["count"] > 0


def test_the_gain_is_that_over_the_smaller_alpha(measured):
    joint, rank = measured["runs"]
    assert rank["gain"] == {}
    for split in ("test", "unseen"):
        ours, theirs = (
            run["splits"][split]["reward"]["figures"]["pairwise_accuracy"]["value"] for run in (joint, rank)
        )
        assert joint["gain"][split]["reward"]["pairwise_accuracy"]["value"] == pytest.approx(ours - theirs, abs=1e-5)


def test_every_stage_is_told_to_its_end(measured, stages):
    ends = {what: (done, total) for what, done, total in stages}
    assert all(done == total for done, total in ends.values())
    assert ends["joint: critiques"] == (10, 10)
    assert {"drawing the unseen split", "rank: scores, test", "rank: h"} <= ends.keys()


def test_what_is_scored_is_not_scored_again(runs, measured):
    kept = {file: file.read_bytes() for file in (runs[1] / "study").iterdir()}
    again = measure(runs[1:], PLAN, device="cpu")
    assert len(kept) == 2
    assert {file: file.read_bytes() for file in (runs[1] / "study").iterdir()} == kept
    assert again["runs"][0]["splits"] == measured["runs"][1]["splits"]


def test_a_document_survives_its_file(measured, tmp_path):
    write_study(tmp_path / "new" / "study.json", measured)
    assert read_study(tmp_path / "new" / "study.json") == measured


def test_another_file_is_no_study(tmp_path):
    file = tmp_path / "study.json"
    file.write_text('{"format": "jrm-evaluation/1"}')
    with pytest.raises(ValueError, match="not a study"):
        read_study(file)


def test_settings_beside_alpha_that_differ_are_named(runs, tmp_path):
    slower = studies.run_folder(tmp_path / "slower", 0.0, batch=5, save_every=7)
    found = measure([runs[0], slower], Plan(groups=1, edits=4, critiques=0), device="cpu")
    assert found["differences"] == {"recipe.batch": [4, 5]}
    assert found["runs"][0]["splits"]["test"]["critiques"] == {}


def test_a_scale_for_the_reward_is_no_other_judgement(runs, tmp_path):
    scaled = shutil.copytree(runs[1], tmp_path / "scaled")
    file = scaled / "checkpoint" / "reward" / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["reward"]["normalize"] = {"center": 1.0, "scale": 2.0}
    file.write_text(json.dumps(manifest))
    (scaled / "checkpoint" / "reward" / "golden.json").unlink(missing_ok=True)
    assert len(measure([runs[0], scaled], Plan(groups=1, edits=4, critiques=0), device="cpu")["runs"]) == 2


def test_runs_that_judge_differently_are_refused(runs, tmp_path):
    other = studies.run_folder(tmp_path / "other", 0.0, layout=checkpoints.one_pass())
    with pytest.raises(ValueError, match="cannot be compared"):
        measure([runs[0], other], PLAN, device="cpu")


def test_what_is_no_finished_run_is_refused(runs, tmp_path):
    shutil.copytree(runs[0] / "checkpoint", tmp_path / "checkpoint")
    manifest = tmp_path / "checkpoint" / "reward" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"provenance": {"steps": 1}}))
    with pytest.raises(CheckpointError) as caught:
        open_run(tmp_path)
    assert len(caught.value.problems) == 4  # three settings and the log
    assert "has no steps" in str(caught.value)
