"""The scores of one group as HTML, for a notebook or a self-contained file. Pure: data to text.

It has no script, loads nothing, and escapes what callers wrote. It follows the reader's light or dark theme.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from .probability import win_probability
from .results import Score

_STYLE = """
.jrm { --text: #1b1c21; --muted: #55565f; --ground: #fff; --line: #d9dae0; --bar: #2f62c8; --track: #eceef4;
  --whisker: #1b1c21; --error: #a4201a;
  color: var(--text); background: var(--ground); font: 15px/1.45 system-ui, sans-serif; padding: 1em; }
@media (prefers-color-scheme: dark) { .jrm { --text: #ececf1; --muted: #abacb6; --ground: #17181c; --line: #3a3b43;
  --bar: #7ea6ff; --track: #26272e; --whisker: #fff; --error: #ffb0a8; } }
.jrm h1 { font-size: 1.25em; margin: 0 0 .6em; overflow-wrap: anywhere; }
.jrm .wide { overflow-x: auto; }
.jrm ul { display: flex; flex-wrap: wrap; gap: 1em; list-style: none; margin: 0 0 1em; padding: 0; }
.jrm img { display: block; max-width: 128px; max-height: 128px; border: 1px solid var(--line); }
.jrm table { border-collapse: collapse; background: none; color: inherit; font-size: inherit; }
.jrm th, .jrm td { text-align: left; vertical-align: middle; padding: .5em .9em .5em 0; background: none;
  border-bottom: 1px solid var(--line); }
.jrm thead th { color: var(--muted); font-weight: 600; white-space: nowrap; }
.jrm tbody th { font-weight: 600; max-width: 16em; overflow-wrap: anywhere; }
.jrm table.pairs { margin-top: 1em; }
.jrm caption { color: var(--muted); text-align: left; }
.jrm td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
.jrm td.error { color: var(--error); overflow-wrap: anywhere; }
.jrm svg { display: block; margin-top: .3em; }
.jrm .track { fill: var(--track); } .jrm .bar { fill: var(--bar); }
.jrm .whisker, .jrm .zero { stroke: var(--whisker); stroke-width: 1.5; fill: none; }
.jrm .zero { stroke: var(--muted); stroke-width: 1; }
.jrm p { color: var(--muted); margin: 1em 0 0; overflow-wrap: anywhere; }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_WIDTH, _HEIGHT = 140, 12  # of a bar, in pixels
_MOST_PAIRED = 12


@dataclass(frozen=True, slots=True)
class Picture:
    """An image by its name. ``url`` is a data URL, or None where there is nothing to show."""

    name: str
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Pictures:
    """The pictures of a group: its instruction, its sources, and its edits in the order of their scores."""

    instruction: str
    sources: tuple[Picture, ...]
    edits: tuple[Picture, ...]


def document(scores: Sequence[Score], pictures: Pictures) -> str:
    """Return a whole page, to be written to a file as UTF-8."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>Rewards: {_text(pictures.instruction)}</title>\n</head>\n<body>\n"
        f"<main>\n{fragment(scores, pictures)}</main>\n</body>\n</html>\n"
    )


def fragment(scores: Sequence[Score], pictures: Pictures | None) -> str:
    """Return the part of a page that shows a group; without ``pictures``, its edits are called by their numbers."""
    edits = [Picture(f"edit {n}") for n in range(len(scores))] if pictures is None else pictures.edits
    return (
        f'<div class="jrm">\n<style>{_STYLE}</style>\n{_head(pictures)}{_table(scores, edits)}{_pairs(scores, edits)}'
        f"{_origin(scores)}</div>\n"
    )


def _head(pictures: Pictures | None) -> str:
    if pictures is None:
        return ""
    items = "".join(
        f"<li>{_image(source, f'source {number}')}{_isolated(source.name)}</li>\n"
        for number, source in enumerate(pictures.sources, 1)
    )
    sources = f'<ul aria-label="source images">\n{items}</ul>\n' if items else ""
    return f"<h1>{_isolated(pictures.instruction)}</h1>\n{sources}"


def _table(scores: Sequence[Score], edits: Sequence[Picture]) -> str:
    ranked = _ranked(scores)
    names = list(scores[ranked[0]].dimensions) if ranked else []
    scale = _Scale.of([_value(scores[index], name) for index in ranked for name in (None, *names)])
    headings = ["rank", "edit", "reward", *names, "chance of beating the best"]
    head = "".join(f'<th scope="col">{_text(heading)}</th>' for heading in headings)
    rows = [_row(scores, index, ranked[0], edits[index], names, scale) for index in ranked]
    rows += [
        f"<tr><td>–</td>{_edit(edits[index])}"
        f'<td class="error" colspan="{len(names) + 2}">{_text(error.code)}: {_isolated(error.message)}</td></tr>\n'
        for index, score in enumerate(scores)
        if (error := score.error) is not None
    ]
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="edits, best first">\n<table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{''.join(rows)}</tbody>\n</table>\n</div>\n"
    )


def _pairs(scores: Sequence[Score], edits: Sequence[Picture]) -> str:
    """Win probabilities of all pairs, best first; left out for two edits, as in the table above, and for too many."""
    ranked = _ranked(scores)
    if not 3 <= len(ranked) <= _MOST_PAIRED:
        return ""
    head = "".join(f'<th scope="col">{_isolated(edits[column].name)}</th>' for column in ranked)
    rows = [
        f'<tr><th scope="row">{_isolated(edits[row].name)}</th>'
        + "".join(
            f'<td class="number">{"–" if row == column else f"{_win(scores[row], scores[column]):.2f}"}</td>'
            for column in ranked
        )
        + "</tr>\n"
        for row in ranked
    ]
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="all pairs">\n<table class="pairs">\n'
        "<caption>Chance that the edit of a row is better than the edit of a column</caption>\n"
        f"<thead><tr><td></td>{head}</tr></thead>\n<tbody>\n{''.join(rows)}</tbody>\n</table>\n</div>\n"
    )


def _ranked(scores: Sequence[Score]) -> list[int]:
    """The edits that have a score, best first."""
    scored = [index for index, score in enumerate(scores) if score.error is None]
    return sorted(scored, key=lambda index: -scores[index].reward)


def _row(scores: Sequence[Score], index: int, best: int, edit: Picture, names: Sequence[str], scale: _Scale) -> str:
    score = scores[index]
    rank = 1 + sum(candidate.reward > score.reward for candidate in scores)  # a comparison with NaN is false
    cells = "".join(_cell(*_value(score, name), scale, name or "reward") for name in (None, *names))
    wins = "the best" if index == best else f"{_win(scores[index], scores[best]):.2f}"
    return f'<tr><td class="number">{rank}</td>{_edit(edit)}{cells}<td class="number">{wins}</td></tr>\n'


def _win(score: Score, other: Score) -> float:
    return win_probability(score.reward, score.reward_std, other.reward, other.reward_std)


def _edit(edit: Picture) -> str:
    return f'<th scope="row">{_image(edit, "edit")}{_isolated(edit.name)}</th>'


def _value(score: Score, dimension: str | None) -> tuple[float, float | None]:
    """Mean and std, of the reward where no dimension is named."""
    if dimension is None:
        return score.reward, score.reward_std
    return score.dimensions[dimension].mean, score.dimensions[dimension].std


@dataclass(frozen=True, slots=True)
class _Scale:
    """The scale that all bars share, from numbers to pixels: it holds zero and every whisker."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[tuple[float, float | None]]) -> _Scale:
        ends = [mean + sign * (std or 0.0) for mean, std in values for sign in (-1, 1)]
        low, high = min([0.0, *ends]), max([0.0, *ends])
        return cls(low, high if high > low else low + 1.0)

    def x(self, value: float) -> float:
        return round((value - self.low) / (self.high - self.low) * _WIDTH, 2)


def _cell(mean: float, std: float | None, scale: _Scale, name: str) -> str:
    number = f"{mean:.3f}" if std is None else f"{mean:.3f} ± {std:.3f}"
    zero, end = scale.x(0.0), scale.x(mean)
    middle = _HEIGHT / 2
    whisker = ""
    if std is not None:
        left, right = scale.x(mean - std), scale.x(mean + std)
        whisker = f'<path class="whisker" d="M{left} {middle}H{right}M{left} 3V{_HEIGHT - 3}M{right} 3V{_HEIGHT - 3}"/>'
    return (
        f'<td class="number">{number}'
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{_text(name)}: {number}">'
        f'<rect class="track" width="{_WIDTH}" height="{_HEIGHT}"/>'
        f'<rect class="bar" x="{min(zero, end)}" y="2" width="{round(abs(end - zero), 2)}" height="{_HEIGHT - 4}"/>'
        f'<path class="zero" d="M{zero} 0V{_HEIGHT}"/>{whisker}</svg></td>'
    )


def _origin(scores: Sequence[Score]) -> str:
    """The model, fingerprint and precision behind the numbers."""
    score = next((score for score in scores if score.error is None), None)
    if score is None:
        return ""
    facts = [score.model, f"fingerprint {score.fingerprint}", *([score.precision] if score.precision else [])]
    return f"<p>{_text(' · '.join(facts))}</p>\n"


def _image(picture: Picture, kind: str) -> str:
    if picture.url is None:
        return ""
    return f'<img src="{escape(picture.url)}" alt="{kind}: {_text(picture.name)}">'


def _isolated(text: str) -> str:
    """Text that may run from right to left, isolated from what follows."""
    return f"<bdi>{_text(text)}</bdi>"


def _text(text: str) -> str:
    """Text escaped for HTML, its control characters replaced."""
    encodable = text.encode("utf-8", "backslashreplace").decode()  # file names need not be valid Unicode
    return escape("".join("\N{REPLACEMENT CHARACTER}" if _is_control(char) else char for char in encodable))


def _is_control(character: str) -> bool:
    return unicodedata.category(character) == "Cc" and character not in "\n\t"
