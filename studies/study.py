"""Training runs side by side on the synthetic world: accuracy, calibration, critiques, **h**, and how training went.

Everything that is measured goes into one JSON document, and tables and plots are made from that alone:

    {"format": "jrm-study/1", "plan": {"groups", "edits", "critiques", "annotators", "seed"}, "differences": {...},
     "runs": [
        {"name", "alpha", "steps", "fingerprint",
         "splits": {"test": {what `jrm evaluate --json` writes}, "unseen": {...}},
         "annotators": {dimension: {figure of ``annotators``: estimate}},
         "gain": {split: {output: {figure: estimate}}}, "representation": {...}, "curves": {...}}]}

``critiques`` of the test split have the verdict's figures too (``verdicts``). ``gain`` is what a run has over the
baseline, the run of the smallest alpha, which has none itself. ``differences`` are the settings in which the runs
differ beside alpha: none, where the comparison is a fair one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jrm_client import strict_json
from jrm_service.errors import CheckpointError
from jrm_service.model.checkpoint import Checkpoint, open_checkpoint
from jrm_service.model.devices import resolve_device
from jrm_training.bootstrap import Array, Share, estimates
from jrm_training.data import Group
from jrm_training.evaluate import ScoredGroup, make_report, rated, rated_reward, score_groups
from jrm_training.evaluate_report import to_json
from jrm_training.evaluate_results import ResultsFile, inputs_hash
from jrm_training.evaluate_scorers import BackendScorer, open_scorer
from jrm_training.generate_critiques import write_critiques
from jrm_training.metrics import tallies
from jrm_training.trainer import LOG, read_log
from jrm_training.world import World
from jrm_training.world.generate import Split

from .annotators import annotator_tallies
from .curves import curves, stage_ends
from .gain import gain
from .representation import hidden_states, represent
from .verdicts import verdict_tallies

FORMAT = "jrm-study/1"
FILE = "study.json"
SPLITS: tuple[Split, ...] = ("test", "unseen")
CRITIQUED_EDITS = 4
"""Edits of a group that get a critique: more groups tell more than more edits of one group."""

Advance = Callable[[str, int, int], None]
Texts = list[list[Mapping[str, str]]]
Shares = dict[str, dict[str, Share]]

_GAINS = ("pairwise_accuracy", "order_of_3", "order_of_4", "pick_of_group")
# May differ between runs: names, how steps are computed or kept, and what is compared.
_FREE = {"recipe.name", "recipe.alpha", "recipe.micro_batch", "recipe.gradient_checkpointing", "recipe.save_every"}
_SETTINGS = ("recipe", "steps", "groups", "start")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured: ``groups`` of ``edits`` edits of each split, and critiques of ``critiques`` edits of "test".

    Edits of "test" are also judged by ``annotators`` simulated annotators, who disagree.
    """

    groups: int = 200
    edits: int = 12
    critiques: int = 200
    annotators: int = 10
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run folder: what it made, and its log."""

    folder: Path
    checkpoint: Checkpoint
    logs: Sequence[Mapping[str, Any]]

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What ``jrm train`` wrote about the run."""
        return self.checkpoint.manifest.provenance

    @property
    def alpha(self) -> float:
        """Weight of the language loss (Eq. 7)."""
        return float(self.provenance["recipe"]["alpha"])


def open_run(folder: Path) -> Run:
    """Open a run folder of ``jrm train``. Raises CheckpointError where its checkpoint or its log cannot be used."""
    checkpoint = open_checkpoint(folder / "checkpoint")
    missing = [key for key in _SETTINGS if key not in checkpoint.manifest.provenance]
    logs = read_log(folder)
    problems = [f"{checkpoint.path}: provenance.{key} is missing: not made by `jrm train`" for key in missing]
    problems += [] if logs else [f"{folder / LOG}: has no steps"]
    if problems:
        raise CheckpointError(problems)
    return Run(folder, checkpoint, logs)


def measure(
    folders: Sequence[Path],
    plan: Plan,
    *,
    device: str = "auto",
    allow_pipeline_drift: bool = False,
    advance: Advance = lambda _what, _done, _total: None,
) -> dict[str, Any]:
    """Measure runs on the same edits, in float32; the document above.

    Scores are kept in ``study/`` in each run folder: a study that is interrupted does not score those groups again.
    Critiques and **h** are made anew. ``advance(what, done, total)`` is told of every stage. Raises CheckpointError,
    ValueError for runs that cannot be compared or too few edits, EvaluationError, WorkerLost and OSError.
    """
    runs = [open_run(folder) for folder in folders]
    _check_comparable(runs)
    device = resolve_device(device)
    groups = {split: list(_drawn(plan, split, advance)) for split in SPLITS}
    readings = _readings(plan, advance)
    results, states, shares = [], [], []
    for run in runs:
        scorer = open_scorer(
            run.checkpoint.path, device=device, dtype="float32", allow_pipeline_drift=allow_pipeline_drift
        )
        scored = {split: _score(run, split, groups[split], scorer, advance) for split in SPLITS}
        critique_count = plan.critiques if run.alpha > 0 else 0
        texts = _critiques(run, groups["test"], critique_count, device, advance) if critique_count else None
        reports = {
            "test": _report(run, scored["test"], scorer, texts),
            "unseen": _report(run, scored["unseen"], scorer),
        }
        results.append(_result(run, reports) | {"annotators": _annotated(run, scored["test"], readings)})
        shares.append({split: _shares(scored[split], scorer) for split in SPLITS})
        counted = partial(advance, f"{run.folder.name}: h")
        states.append(hidden_states(run.checkpoint, groups["test"], device=device, advance=counted))
    baseline = min(range(len(runs)), key=lambda number: runs[number].alpha)
    for number, (result, representation) in enumerate(zip(results, represent(states), strict=True)):
        result["gain"] = {} if number == baseline else _gains(shares[number], shares[baseline])
        result["representation"] = representation
    document = {"format": FORMAT, "plan": asdict(plan), "differences": _differences(runs), "runs": results}
    rounded: dict[str, Any] = _rounded(document)
    return rounded


def read_study(file: Path) -> dict[str, Any]:
    """Read what ``write_study`` wrote. Raises OSError, and ValueError for another file."""
    try:
        document: dict[str, Any] = strict_json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"{file}: not a study (its format is not {FORMAT})")
    return document


def write_study(file: Path, document: Mapping[str, Any]) -> None:
    """Write the document, which no NaN may be in. Raises OSError."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text.replace('{"name":', '\n{"name":') + "\n", encoding="utf-8")


def _check_comparable(runs: Sequence[Run]) -> None:
    def judged_by(run: Run) -> tuple[object, object]:
        manifest = run.checkpoint.manifest
        return manifest.passes, manifest.reward.model_copy(update={"normalize": None})  # a study is of raw rewards

    for run in runs[1:]:
        if judged_by(run) != judged_by(runs[0]):
            raise ValueError(f"{run.folder} and {runs[0].folder} cannot be compared: their manifests judge differently")


def _differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Setting -> its value in each run, for the settings that are not the same in all."""
    settings = [_flat({key: run.provenance[key] for key in _SETTINGS}) for run in runs]
    keys = dict.fromkeys(key for one in settings for key in one if key not in _FREE)
    values = {key: [one.get(key) for one in settings] for key in keys}
    return {key: of_runs for key, of_runs in values.items() if any(value != of_runs[0] for value in of_runs)}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _drawn(plan: Plan, split: Split, advance: Advance) -> Iterator[Group]:
    world = World(plan.groups, seed=plan.seed, split=split, edits=plan.edits)
    for number in range(plan.groups):
        advance(f"drawing the {split} split", number, plan.groups)
        yield world[number]
    advance(f"drawing the {split} split", plan.groups, plan.groups)


def _readings(plan: Plan, advance: Advance) -> list[dict[str, Array]]:
    """What annotators read of each group of the test split: dimension -> [annotators, edits]."""
    worlds = [
        World(plan.groups, seed=plan.seed, split="test", edits=plan.edits, annotator=number)
        for number in range(plan.annotators)
    ]
    read: list[dict[str, Array]] = []
    for number in range(plan.groups):
        advance("asking annotators", number, plan.groups)
        groups = [world[number] for world in worlds]
        names = groups[0].edits[0].labels
        read.append({name: np.array([group.ranking(name) for group in groups], np.float64) for name in names})
    advance("asking annotators", plan.groups, plan.groups)
    return read


def _annotated(run: Run, scored: Sequence[ScoredGroup], readings: Sequence[Mapping[str, Array]]) -> dict[str, Any]:
    """The figures of ``annotator_tallies``, for every dimension that people were asked about."""
    found = {
        name: estimates(annotator_tallies(scored, [of[name] for of in readings], name))
        for name in run.checkpoint.manifest.dimensions
        if name in readings[0]
    }
    return {name: {figure: asdict(one) for figure, one in figures.items()} for name, figures in found.items()}


def _score(
    run: Run, split: Split, groups: Sequence[Group], scorer: BackendScorer, advance: Advance
) -> list[ScoredGroup]:
    # Named by what was scored: a changed world or checkpoint begins another file.
    file = run.folder / "study" / f"{split}-{inputs_hash(groups[0])[:8]}-{scorer.fingerprint[:8]}.jsonl"
    file.parent.mkdir(exist_ok=True)
    results = ResultsFile(file, scorer.model, scorer.fingerprint)
    return score_groups(groups, scorer, results, partial(advance, f"{run.folder.name}: scores, {split}"))


def _critiques(run: Run, groups: Sequence[Group], edits: int, device: str, advance: Advance) -> Texts:
    """Critiques of the first ``edits`` edits, CRITIQUED_EDITS of a group, in the shape that ``make_report`` takes."""
    critiqued_groups = [
        replace(group, edits=group.edits[: min(CRITIQUED_EDITS, edits - begin)])
        for begin, group in zip(range(0, edits, CRITIQUED_EDITS), groups, strict=False)
    ]
    total = sum(len(group.edits) for group in critiqued_groups) * len(run.checkpoint.manifest.passes)
    what = f"{run.folder.name}: critiques"
    advance(what, 0, total)
    written = write_critiques(
        run.checkpoint, critiqued_groups, device=device, progress=lambda answered: advance(what, answered, total)
    )
    texts: Texts = [[{name: one.text for name, one in edit.items()} for edit in of_group] for of_group in written]
    padded: Texts = [[*of, *({} for _ in group.edits[len(of) :])] for of, group in zip(texts, groups, strict=False)]
    return [*padded, *([] for _ in groups[len(padded) :])]


def _report(
    run: Run, scored: Sequence[ScoredGroup], scorer: BackendScorer, texts: Texts | None = None
) -> dict[str, Any]:
    """The figures of one split; with critiques, those of ``verdict_tallies`` beside those of ``critique_tallies``."""
    regions = {name: one.regions for name, one in run.checkpoint.manifest.explain.items()}
    report = to_json(make_report(scored, scorer, critiques=texts, regions=regions))
    for name, figures in report["critiques"].items():
        verdicts = estimates(verdict_tallies(scored, texts or [], name, regions.get(name, False)))
        figures |= {figure: asdict(estimate) for figure, estimate in verdicts.items()}
    return report


def _result(run: Run, reports: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": run.folder.name,
        "alpha": run.alpha,
        "steps": run.provenance["steps"],
        "fingerprint": run.checkpoint.fingerprint,
        "splits": dict(reports),
        "curves": curves(run.logs) | {"stages": stage_ends(run.provenance["recipe"])},
    }


def _shares(scored: Sequence[ScoredGroup], scorer: BackendScorer) -> Shares:
    """Output -> figure -> share, for the figures that are compared between runs."""
    outputs = {name: [rated(group, name) for group in scored] for name in scorer.dimensions}
    outputs["reward"] = [rated_reward(group, scorer.pooling) for group in scored]
    found = {output: tallies(groups) for output, groups in outputs.items()}
    return {
        output: {name: tally for name in _GAINS if isinstance(tally := of[name], Share)} for output, of in found.items()
    }


def _gains(ours: Mapping[Split, Shares], theirs: Mapping[Split, Shares]) -> dict[str, Any]:
    return {
        split: {
            output: {name: asdict(gain(share, theirs[split][output][name])) for name, share in figures.items()}
            for output, figures in outputs.items()
        }
        for split, outputs in ours.items()
    }


def _rounded(value: Any) -> Any:
    """Floats to six digits: more are noise, and a file that nobody can compare."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value
