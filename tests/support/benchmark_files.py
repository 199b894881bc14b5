"""Made-up files of public benchmarks, and a scorer whose every score can be read off the picture: its gray level."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from jrm_service.scoring.types import Dimension, Score
from jrm_training.benchmarks.catalog import BENCHMARKS
from jrm_training.benchmarks.pairs import open_benchmark
from jrm_training.benchmarks.report import BenchmarkReport, make_benchmark_report
from jrm_training.data import Group
from jrm_training.evaluate import score_groups
from jrm_training.evaluate_results import Failed, Outcome, ResultsFile
from jrm_training.evaluate_scorers import FakeScorer
from support.pictures import encode

BROKEN = 99
"""The gray level of an edit that gets no score."""


def gray(level: int, size: tuple[int, int] = (8, 8)) -> bytes:
    return encode(Image.new("RGB", size, (level, level, level)))


def source(number: int) -> bytes:
    """A picture that differs from every other number's."""
    return encode(Image.new("RGB", (8, 8), (number, 255, 0)))


def judge(group: Group) -> Sequence[Outcome]:
    """The reward is the gray level, the dimension "dark" its opposite."""
    levels = [float(edit.image.getpixel((0, 0))[0]) for edit in group.edits]
    return [
        Failed("internal", "it broke")
        if level == BROKEN
        else Score(level, None, {"bright": Dimension(level, None), "dark": Dimension(-level, None)})
        for level in levels
    ]


def report(name: str, path: Path, out: Path, seed: int = 0, **options: Any) -> BenchmarkReport:
    """Open, score and count, as the command does."""
    pairs = open_benchmark(BENCHMARKS[name], path, **options)
    scorer = FakeScorer(judge, dimensions=("bright", "dark"))
    judged = score_groups(pairs, scorer, ResultsFile(out, scorer.model, scorer.fingerprint))
    return make_benchmark_report(pairs, judged, scorer, revision="r", seed=seed, draws=50)


def values(made: BenchmarkReport, part: str, output: str = "reward") -> dict[str, float | None]:
    return {name: figure.value for name, figure in made.outputs[output].figures[part].items()}


def write_jsonl(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Images become files beside the rows."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    path = folder / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({key: _saved(value, folder) for key, value in row.items()}) + "\n")
    return path


def _saved(value: Any, folder: Path) -> Any:
    if isinstance(value, list):
        return [_saved(one, folder) for one in value]
    if not isinstance(value, bytes):
        return value
    name = f"images/{abs(hash(value))}.png"
    (folder / name).write_bytes(value)
    return name


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]], row_group_size: int = 2) -> Path:
    """Images are structs of bytes and path, as the hub's library writes them."""
    import pyarrow
    import pyarrow.parquet

    def cell(value: Any) -> Any:
        if isinstance(value, list):
            return [cell(one) for one in value]
        return {"bytes": value, "path": "x.png"} if isinstance(value, bytes) else value

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist([{key: cell(value) for key, value in row.items()} for row in rows])
    pyarrow.parquet.write_table(table, path, row_group_size=row_group_size)
    return path


def editscore_row(number: int, dimension: str, task: str, first: int, second: int, **changes: Any) -> dict[str, Any]:
    return {
        "key": [f"{number}-a", f"{number}-b"],
        "instruction": f"edit {number}",
        "input_image": source(number),
        "output_images": [gray(first), gray(second)],
        "task_type": task,
        "dimension": dimension,
    } | changes


def editreward_row(
    name: str, kind: str, compared: str, ranking: str, first: int, second: int, **changes: Any
) -> dict[str, Any]:
    return {
        "id": name,
        "dataset": kind,
        "instruction": f"edit {name[:10]}",
        "source_image": source(1),
        "candidate_1": gray(first),
        "candidate_2": gray(second),
        "ranking": ranking,
        "comparison_type": compared,
    } | changes


def ranking_rows(name: str, kind: str, levels: Mapping[str, int], order: str) -> list[dict[str, Any]]:
    """All pairs of a ranking: ``levels`` by letter, ``order`` as people have it, best first."""
    letters = sorted(levels)
    pairs = [(a, b) for n, a in enumerate(letters) for b in letters[n + 1 :]]
    return [
        editreward_row(
            f"{name}_{a}vs{b}",
            kind,
            f"{a}vs{b}",
            f"{a}>{b}" if order.index(a) < order.index(b) else f"{b}>{a}",
            levels[a],
            levels[b],
        )
        for a, b in pairs
    ]


def genai_row(number: int, vote: str, first: int, second: int, **changes: Any) -> dict[str, Any]:
    return {
        "instruct_prompt": f"edit {number}",
        "source_image": source(number),
        "left_output_image": gray(first),
        "right_output_image": gray(second),
        "vote_type": vote,
        "left_model": "x",
        "right_model": "y",
    } | changes


def mmrb2_pair(number: int, chosen: str, first: int, second: int, sources: int = 1, **changes: Any) -> dict[str, Any]:
    """Images as bytes, which ``write_mmrb2`` saves."""
    images = [["image", source(10 * number + n)] for n in range(sources)]
    return {
        "id": f"pair-{number}",
        "prompt_content": [["text", f"edit {number}"], *images],
        "prompt_source": "emu-edit" if sources == 1 else "dreambench",
        "response_a": {"model_name": "x", "response_content": [["image", gray(first)]]},
        "response_b": {"model_name": "y", "response_content": [["image", gray(second)]]},
        "chosen": chosen,
    } | changes


def write_mmrb2(folder: Path, pairs: Sequence[Mapping[str, Any]]) -> Path:
    (folder / "images").mkdir(parents=True, exist_ok=True)

    def saved(value: Any) -> Any:
        return {k: saved(v) for k, v in value.items()} if isinstance(value, Mapping) else _nested(value)

    def _nested(value: Any) -> Any:
        return [_nested(one) for one in value] if isinstance(value, list) else _saved(value, folder)

    path = folder / "edit.json"
    path.write_text(json.dumps({"pairs": [saved(pair) for pair in pairs]}))
    return path
