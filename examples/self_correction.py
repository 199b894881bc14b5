"""Poor edits, corrected by what the checkpoint says about them, scored before and after (paper, section 4.4, table 3).

``python examples/self_correction.py`` starts a server with the bundled checkpoint, or asks the one at ``--url``. Poor
edits of the synthetic world are explained, ``corrector.correct`` paints from each critique, and the score head alone
judges the images before and after. The control corrects every edit by the critique of another one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from corrector import correct
from demo import server
from jrm_client import AsyncJRMClient, Explanation, JRMClient, Score
from jrm_training.bootstrap import resample
from jrm_training.data import Group
from jrm_training.world import World

LEVELS = (1, 2, 3)
EDITS = 6  # of a group: every quality once
CONCURRENCY = 16
TIMEOUT_S = 600.0  # on a busy machine, slow is still an answer
BEGIN, END = "<!-- self-correction -->", "<!-- /self-correction -->"

Array = npt.NDArray[np.float64]
Critiques = Mapping[str, Explanation]


@dataclass(frozen=True, eq=False)
class Sample:
    """A poor edit. ``level`` is the lower one of its two labels, as VIEScore takes the lowest of its parts.

    ``right`` is what the edit should have been, where the world knows the one right answer and has drawn it: not for an
    addition, which may stand anywhere. Only the evaluation sees level and ``right``.
    """

    source: Image.Image
    edited: Image.Image
    instruction: str
    level: int
    right: Image.Image | None


def samples(of_each: int, seed: int) -> list[Sample]:
    """As many poor edits of each level from the test split, one from a group at most, so that all are independent."""
    world = World(100 * of_each * len(LEVELS), seed=seed, split="test", edits=EDITS)
    found: dict[int, list[Sample]] = {level: [] for level in LEVELS}
    for group in world:
        if all(len(of_level) == of_each for of_level in found.values()):
            break
        sample = next((one for one in _poor(group) if len(found[one.level]) < of_each), None)
        if sample is not None:
            found[sample.level].append(sample)
    return [sample for of_level in found.values() for sample in of_level]


def _poor(group: Group) -> Iterator[Sample]:
    right = next((edit for edit in group.edits if min(edit.labels.values()) == 4), None)
    added = right is not None and "was added" in right.critiques["instruction_following"]
    known = None if right is None or added else right.image
    for edit in group.edits:
        level = int(min(edit.labels.values()))
        if level in LEVELS:
            yield Sample(group.source, edit.image, group.instruction, level, known)


async def explain(url: str, poor: Sequence[Sample]) -> list[Critiques]:
    """The critiques of all samples, in order, from the language head."""
    turn = asyncio.Semaphore(CONCURRENCY)
    async with AsyncJRMClient(url, timeout=TIMEOUT_S) as client:

        async def one(sample: Sample) -> Critiques:
            async with turn:
                return await client.explain(sample.source, sample.edited, sample.instruction)

        return list(await asyncio.gather(*(one(sample) for sample in poor)))


def shuffled(critiques: Sequence[Critiques], poor: Sequence[Sample]) -> list[Critiques]:
    """To each sample the critique of the next one of its level: what is said fits the level, but not the picture."""
    given: list[Critiques] = list(critiques)
    for level in LEVELS:
        own = [index for index, sample in enumerate(poor) if sample.level == level]
        for index, other in zip(own, [*own[1:], *own[:1]], strict=True):
            given[index] = critiques[other]
    return given


def score(client: JRMClient, poor: Sequence[Sample], images: Sequence[Image.Image]) -> list[Score]:
    """The scores of these images as edits of the samples' sources, from the score head alone."""
    pairs = [(sample.source, image, sample.instruction) for sample, image in zip(poor, images, strict=True)]
    return client.score_batch(pairs)


@dataclass(frozen=True)
class Outcome:
    """Scores and distances to the right edit of all samples, before and after. A distance is NaN without one."""

    gains: Mapping[str, Array]
    nearer: Array

    def of(self, chosen: npt.NDArray[np.bool_]) -> Outcome:
        """The outcome of some of the samples."""
        return Outcome({name: gain[chosen] for name, gain in self.gains.items()}, self.nearer[chosen])


def outcome(
    poor: Sequence[Sample], images: Sequence[Image.Image], before: Sequence[Score], after: Sequence[Score]
) -> Outcome:
    """What correction changed: rewards, dimensions, and levels of 255 by which each image came nearer to the truth."""
    gains = {"reward": np.array([new.reward - old.reward for old, new in zip(before, after, strict=True)])}
    for name in before[0].dimensions:
        gains[name] = np.array(
            [new.dimensions[name].mean - old.dimensions[name].mean for old, new in zip(before, after, strict=True)]
        )
    nearer = [_distance(s.edited, s.right) - _distance(new, s.right) for s, new in zip(poor, images, strict=True)]
    return Outcome(gains, np.array(nearer))


def _distance(image: Image.Image, right: Image.Image | None) -> float:
    """Mean difference of the pixels, levels of 255; NaN where nothing is known."""
    if right is None:
        return float("nan")
    return float(np.abs(np.asarray(image, np.float64) - np.asarray(right, np.float64)).mean())


def report(poor: Sequence[Sample], own: Outcome, other: Outcome) -> str:
    """Two Markdown tables: as the paper's table 3, and all samples by what is measured."""
    levels = np.array([sample.level for sample in poor])
    rows = [("1 to 2", levels <= 2), *((str(level), levels == level) for level in LEVELS), ("all", levels > 0)]
    by_level = [
        [name, str(chosen.sum()), *_cells(own.of(chosen).gains["reward"]), *_cells(other.of(chosen).gains["reward"])]
        for name, chosen in rows
    ]
    known = ~np.isnan(own.nearer)
    measures = [
        *(
            [name.replace("_", " "), str(len(poor)), *_cells(gain), *_cells(other.gains[name])]
            for name, gain in own.gains.items()
        ),
        [
            "nearer to the right edit, levels",
            str(known.sum()),
            *_cells(own.nearer[known]),
            *_cells(other.nearer[known]),
        ],
    ]
    heads = ["samples", "Δ", "improved", "Δ, another's critique", "improved, another's critique"]
    return f"{_table(['initial quality', *heads], by_level)}\n{_table(['all samples', *heads], measures)}"


def _cells(changes: Array) -> tuple[str, str]:
    """Mean change and share improved, with 95% intervals from resampling the samples."""
    return _estimate(changes, "+.2f"), _estimate((changes > 0).astype(np.float64), ".0%")


def _estimate(values: Array, style: str) -> str:
    if len(values) < 2:
        return "–"
    low, high = np.quantile(resample(values[:, None], 1000, 0) / len(values), [0.025, 0.975])
    return f"{values.mean():{style}} [{low:{style}}, {high:{style}}]"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def run(url: str, of_each: int, seed: int) -> tuple[str, dict[str, object]]:
    """The whole study against one server: the report, and the numbers behind it."""
    poor = samples(of_each, seed)
    critiques = asyncio.run(explain(url, poor))
    images = [correct(s.edited, s.instruction, said) for s, said in zip(poor, critiques, strict=True)]
    controls = [correct(s.edited, s.instruction, said) for s, said in zip(poor, shuffled(critiques, poor), strict=True)]
    with JRMClient(url, timeout=TIMEOUT_S) as client:
        before = score(client, poor, [sample.edited for sample in poor])
        own = outcome(poor, images, before, score(client, poor, images))
        other = outcome(poor, controls, before, score(client, poor, controls))
    about = (
        f"In brackets: 95% intervals, from resampling the samples. {before[0].model}, fingerprint "
        f"{before[0].fingerprint}, seed {seed} of the world.\n"
    )
    return f"{report(poor, own, other)}\n{about}", {
        "model": before[0].model,
        "fingerprint": before[0].fingerprint,
        "level": [sample.level for sample in poor],
        "own": _plain(own),
        "shuffled": _plain(other),
    }


def _plain(result: Outcome) -> dict[str, list[float | None]]:
    columns = {**result.gains, "nearer": result.nearer}
    return {name: [None if np.isnan(value) else float(value) for value in column] for name, column in columns.items()}


def put(page: Path, text: str) -> None:
    """Put the tables between the marks of a page. Raises ValueError for a page without them."""
    before, begun, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (begun and ended):
        raise ValueError(f"{page} has no {BEGIN} ... {END}")
    page.write_text(f"{before}{BEGIN}\n{text}{END}{after}", encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python examples/self_correction.py", description=__doc__)
    parser.add_argument("--url", help="a server that scores and explains; one of our own when not given")
    parser.add_argument("--samples", type=int, default=80, metavar="N", help="of each level, 1 to 3")
    parser.add_argument("--seed", type=int, default=7, help="of the synthetic world")
    parser.add_argument("--save", type=Path, metavar="FILE", help="JSON file for the numbers")
    parser.add_argument("--page", type=Path, metavar="FILE", help="Markdown page to put the tables into")
    arguments = parser.parse_args()
    if arguments.samples < 2:
        parser.error("--samples: a critique cannot be another one's with fewer than 2 of a level")
    with nullcontext(arguments.url) if arguments.url else server("--serve", "score,explain") as url:
        text, numbers = run(url, arguments.samples, arguments.seed)
    print(text)
    if arguments.save:
        arguments.save.write_text(json.dumps(numbers) + "\n")
    if arguments.page:
        put(arguments.page, text)


if __name__ == "__main__":
    main()
