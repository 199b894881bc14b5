"""What the bundled checkpoint can do, on edits that nothing was chosen by: it cannot silently get worse.

docs/training.md has the figures of 200 groups; here are fewer, and each bound leaves room for that.
"""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from jrm_service.model.checkpoint import open_checkpoint
from jrm_service.model.checkpoint_source import BUNDLED
from jrm_training.evaluate import Report, make_report, score_groups
from jrm_training.evaluate_results import ResultsFile
from jrm_training.evaluate_scorers import open_scorer
from jrm_training.generate_critiques import write_critiques
from jrm_training.world import World

GROUPS, EDITS, SEED = 60, 12, 2026
EXPLAINED = 15
AT_LEAST = {
    ("test", "instruction_following", "pairwise_accuracy"): 0.86,
    ("test", "visual_quality", "pairwise_accuracy"): 0.97,
    ("test", "reward", "pairwise_accuracy"): 0.87,
    ("test", "reward", "pick_of_group"): 0.6,
    ("unseen", "instruction_following", "pairwise_accuracy"): 0.86,
    ("unseen", "visual_quality", "pairwise_accuracy"): 0.96,
    ("unseen", "reward", "pick_of_group"): 0.6,
}
AT_MOST = {
    ("test", "instruction_following", "calibration_error"): 0.05,
    ("test", "visual_quality", "calibration_error"): 0.05,
}
CRITIQUES_AT_LEAST = {
    ("instruction_following", "critique_valid"): 0.95,
    ("visual_quality", "critique_valid"): 0.95,
    ("instruction_following", "regions_found"): 0.4,
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> Mapping[str, Report]:
    scorer = open_scorer(BUNDLED, device="cpu", dtype="float32")
    checkpoint = open_checkpoint(BUNDLED)
    found = {}
    for split in ("test", "unseen"):
        world = World(GROUPS, seed=SEED, split=split, edits=EDITS)
        groups = [world[number] for number in range(GROUPS)]
        results = ResultsFile(tmp_path_factory.mktemp(split) / "scores.jsonl", scorer.model, scorer.fingerprint)
        judged = score_groups(groups, scorer, results)
        texts = None
        if split == "test":
            asked = [replace(group, edits=group.edits[:2]) for group in groups[:EXPLAINED]]
            written = write_critiques(checkpoint, asked, device="cpu")
            texts = [[{name: one.text for name, one in edit.items()} for edit in of_group] for of_group in written]
            texts = [[*of_group, *({} for _ in range(EDITS - len(of_group)))] for of_group in texts]
            texts += [[]] * (GROUPS - EXPLAINED)
        regions = {name: one.regions for name, one in checkpoint.manifest.explain.items()}
        found[split] = make_report(judged, scorer, critiques=texts, regions=regions, draws=10)
    return found


def value(report: Report, output: str, figure: str) -> float:
    of = report.reward if output == "reward" else report.dimensions[output]
    found = of.figures[figure].value
    assert found is not None
    return found


@pytest.mark.parametrize(("split", "output", "figure"), AT_LEAST)
def test_accuracy(reports, split, output, figure):
    assert value(reports[split], output, figure) >= AT_LEAST[split, output, figure]


@pytest.mark.parametrize(("split", "output", "figure"), AT_MOST)
def test_calibration(reports, split, output, figure):
    assert value(reports[split], output, figure) <= AT_MOST[split, output, figure]


@pytest.mark.parametrize(("dimension", "figure"), CRITIQUES_AT_LEAST)
def test_critiques(reports, dimension, figure):
    found = reports["test"].critiques[dimension][figure].value
    assert found is not None
    assert found >= CRITIQUES_AT_LEAST[dimension, figure]


def test_every_edit_has_a_score(reports):
    assert all(not report.failed and report.edits == GROUPS * EDITS for report in reports.values())


def test_it_fits_the_repository():
    assert sum(file.stat().st_size for file in BUNDLED.rglob("*") if file.is_file()) < 12_000_000


def test_its_provenance_says_how_it_was_made():
    provenance = open_checkpoint(BUNDLED).manifest.provenance
    assert provenance["recipe"]["alpha"] == 0.7
    assert provenance["steps"] * provenance["recipe"]["batch"] == provenance["groups"]
