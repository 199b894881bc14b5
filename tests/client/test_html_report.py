"""The scores of a group as HTML: whole, in order, and nothing in it but what we meant."""

import asyncio
import math
import pickle
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from client.scripted_server import ScriptedServer, reward_of
from jrm_client import AsyncJRMClient, CandidateError, Dimension, GroupScores, JRMClient, Score, aio
from jrm_client.html_report import Picture, Pictures, document, fragment
from jrm_client.results import failed_score
from jrm_client.thumbnails import pictures_of
from support.pictures import encode, photo

VOID = {"meta", "img", "rect", "path"}
TAGS = {
    *VOID,
    *("html", "head", "title", "style", "body", "main", "div", "h1", "ul", "li", "bdi", "p", "svg"),
    *("table", "caption", "thead", "tbody", "tr", "th", "td"),
}
HOSTILE = "</title></style><script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;\x00\x1b[31m\u202e\udcff"
PIXEL = "data:image/png;base64,AAAA"


class Page(HTMLParser):
    """The elements of a page; refuses one that is not well formed, or has what no page of ours has."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.texts: dict[str, str] = {}
        self.images: list[dict[str, str | None]] = []
        self.bars: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        values = dict(attributes)
        assert len(values) == len(attributes)
        assert not any(name.startswith("on") or name in ("href", "style") for name in values)
        assert (values.get("src") or "data:image/").startswith("data:image/")
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "img":
            assert values["alt"]
            self.images.append(values)
        elif tag == "svg":
            assert values["role"] == "img"
            assert values["aria-label"]
            self.bars.append(values["aria-label"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]] = self.texts.get(self.open[-1], "") + data
        if "tr" in self.open:
            self.rows[-1][-1] += data


def score(reward: float, std: float | None = 0.5) -> Score:
    dimensions = {"follows": Dimension(reward * 2, std), "quality": Dimension(-reward, std)}
    return Score(reward, std, dimensions, False, "m", "f00d", precision="float32")


def pictures(*names: str, sources: int = 1, instruction: str = "make it red") -> Pictures:
    return Pictures(
        instruction,
        tuple(Picture(f"source {n}", PIXEL) for n in range(sources)),
        tuple(Picture(name, PIXEL) for name in names),
    )


ERROR = failed_score(CandidateError("edits[1]: not an image", code="invalid_image"), ("follows", "quality"))


def test_edits_are_ranked_and_those_without_a_score_stand_last_with_their_reason() -> None:
    page = Page(document((score(0.5), ERROR, score(2.0)), pictures("a", "b", "c")))
    header, *rows = page.rows
    assert header == ["rank", "edit", "reward", "follows", "quality", "chance of beating the best"]
    assert [row[:2] for row in rows] == [["1", "c"], ["2", "a"], ["–", "b"]]
    assert rows[0][2:] == ["2.000 ± 0.500", "4.000 ± 0.500", "-2.000 ± 0.500", "the best"]
    assert rows[2][2:] == ["invalid_image: edits[1]: not an image"]
    assert [image["alt"] for image in page.images] == ["source 1: source 0", "edit: c", "edit: a", "edit: b"]
    assert page.bars[:3] == ["reward: 2.000 ± 0.500", "follows: 4.000 ± 0.500", "quality: -2.000 ± 0.500"]
    assert page.texts["p"] == "m · fingerprint f00d · float32"


def test_the_chance_to_beat_the_best_is_that_of_the_group() -> None:
    group = GroupScores((score(0.5), score(2.0), score(1.0)))
    rows = Page(fragment(group.scores, None)).rows[1:4]
    assert [row[-1] for row in rows] == [
        "the best",
        f"{group.win_probability(2, 1):.2f}",
        f"{group.win_probability(0, 1):.2f}",
    ]


def test_up_to_twelve_edits_have_a_table_of_all_pairs() -> None:
    group = GroupScores((score(0.5), ERROR, score(2.0), score(1.0)))
    page = Page(document(group.scores, pictures("a", "b", "c", "d")))
    assert page.rows[5:] == [
        ["", "c", "d", "a"],
        *(
            [name, *("–" if i == j else f"{group.win_probability(i, j):.2f}" for j in (2, 3, 0))]
            for name, i in (("c", 2), ("d", 3), ("a", 0))
        ),
    ]
    for count, tables in ((1, 1), (2, 1), (3, 2), (12, 2), (13, 1)):
        html = fragment(tuple(score(float(n)) for n in range(count)), None)
        assert html.count("<table") == tables


def test_all_bars_are_on_one_scale() -> None:
    html = fragment((score(1.0, None), score(2.0, None)), None)
    means = [float(label.split()[-1]) for label in Page(html).bars]
    widths = [float(width) for width in re.findall(r'class="bar"[^>]* width="([^"]+)"', html)]
    assert len({round(width / abs(mean), 1) for width, mean in zip(widths, means, strict=True)}) == 1


def test_equal_rewards_have_equal_ranks() -> None:
    rows = Page(fragment((score(1.0), score(2.0), score(2.0), score(0.0)), None)).rows[1:5]
    assert [row[:2] for row in rows] == [["1", "edit 1"], ["1", "edit 2"], ["3", "edit 0"], ["4", "edit 3"]]


def test_without_a_standard_deviation_there_is_no_whisker() -> None:
    with_std, without = (fragment((score(1.0, std),), None) for std in (0.5, None))
    assert 'class="whisker"' in with_std
    assert 'class="whisker"' not in without
    assert Page(without).rows[1][2:5] == ["1.000", "2.000", "-1.000"]


def test_bars_stay_inside_whatever_the_numbers_are() -> None:
    for rewards in ((0.0,), (-3.0, -1.0), (1e-12, 5e30), (-1e30, 2.0), (1.0, 1.0)):
        html = fragment(tuple(map(score, rewards)), None)
        for x, width in re.findall(r'<rect class="bar" x="([^"]+)" y="2" width="([^"]+)"', html):
            assert 0 <= float(x) <= float(x) + float(width) <= 140.02
        for place in re.findall(r"[MH]([-0-9.e]+)", html):
            assert 0 <= float(place) <= 140


def test_what_callers_wrote_is_text() -> None:
    failed = failed_score(CandidateError(HOSTILE, code="invalid_image"), ("follows", "quality"))
    hostile = Pictures(HOSTILE, (Picture(HOSTILE, PIXEL),), (Picture(HOSTILE, PIXEL), Picture(HOSTILE)))
    named = Score(1.0, 0.5, {HOSTILE: Dimension(1.0, 0.5)}, False, HOSTILE, HOSTILE)
    page = Page(document((named, failed), hostile))
    shown = "</title></style><script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;��[31m\u202e\\udcff"
    assert page.texts["title"] == f"Rewards: {shown}"
    assert page.rows[1][1] == page.rows[2][1] == shown
    assert page.rows[2][2] == f"invalid_image: {shown}"
    assert page.images[0]["alt"] == f"source 1: {shown}"
    assert len(page.images) == 2


def test_a_group_none_of_which_has_a_score_is_its_reasons() -> None:
    page = Page(document((ERROR, ERROR), pictures("a", "b")))
    assert [row[:3] for row in page.rows[1:]] == [
        ["–", "a", "invalid_image: edits[1]: not an image"],
        ["–", "b", "invalid_image: edits[1]: not an image"],
    ]
    assert "p" not in page.texts


@pytest.mark.parametrize("sources", [0, 1, 3])
def test_no_source_one_and_several(sources: int) -> None:
    page = Page(document((score(1.0),), pictures("a", sources=sources)))
    assert len(page.images) == sources + 1
    assert ("ul" in page.texts) == bool(sources)


def test_a_large_group_has_all_of_its_edits() -> None:
    group = GroupScores(tuple(score(math.sin(n)) for n in range(24)))
    page = Page(document(group.scores, pictures(*(f"edit-{n}.png" for n in range(24)))))
    assert len(page.rows) == 25
    assert [float(row[2].split()[0]) for row in page.rows[1:]] == sorted(
        (round(math.sin(n), 3) for n in range(24)), reverse=True
    )


def test_a_file_needs_nothing_else() -> None:
    html = document((score(1.0),), pictures("a"))
    loaded = re.findall(r"""\b(?:src|href)\s*=\s*["']?([^"' >]*)|url\(|@import""", html)
    assert [address.partition(";")[0] for address in loaded] == ["data:image/png"] * 2
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in html
    assert "prefers-color-scheme: dark" in html
    assert html.encode("utf-8")


def _luminance(color: str) -> float:
    channels = [int(color[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_can_be_read_in_both_themes() -> None:
    """WCAG AA: 4.5 for text, 3 for bars."""
    html = fragment((score(1.0),), None)
    light, dark = ({} for _ in range(2))
    before, _, after = html.partition("@media")
    for theme, text in ((light, before), (dark, after)):
        for name, color in re.findall(r"--(\w+): (#[0-9a-f]+)", text):
            theme.setdefault(name, color if len(color) == 7 else "#" + "".join(2 * digit for digit in color[1:]))
    for theme in (light, dark):
        for name, least in (("text", 4.5), ("muted", 4.5), ("error", 4.5), ("bar", 3.0), ("whisker", 3.0)):
            high, low = sorted((_luminance(theme[name]), _luminance(theme["ground"])), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= least, name


# --- where it is shown ------------------------------------------------------------------------------------------------


def test_a_notebook_shows_numbers_alone_unless_images_are_kept(serve) -> None:
    server: ScriptedServer = serve()
    edits = [encode(photo(700, 300)), b"no image that anybody could show"]
    with JRMClient(server.url) as client:
        bare = client.score_group(b"S", "red", edits)
        kept = client.score_group([b"S", encode(photo())], "red", edits, keep_images=True)
    assert bare.pictures is None
    assert Page(bare._repr_html_()).images == []
    assert [row[1] for row in sorted(Page(kept._repr_html_()).rows[1:], key=lambda row: row[1])] == ["edit 0", "edit 1"]
    assert [image["alt"] for image in Page(kept._repr_html_()).images] == ["source 2: source[1]", "edit: edit 0"]
    assert kept.pictures is not None
    assert kept.pictures.instruction == "red"
    assert bare == kept
    assert pickle.loads(pickle.dumps(kept))._repr_html_() == kept._repr_html_()
    assert kept.rewards[1] == pytest.approx(reward_of(edits[1]))


def test_a_file_that_is_gone_after_it_was_scored_costs_its_picture_and_no_score(serve, tmp_path, monkeypatch) -> None:
    server: ScriptedServer = serve()
    gone = tmp_path / "edit.png"
    gone.write_bytes(encode(photo()))

    def then(*arguments) -> Pictures:
        gone.unlink()
        return pictures_of(*arguments)

    monkeypatch.setattr(aio, "pictures_of", then)
    with JRMClient(server.url) as client:
        kept = client.score_group(encode(photo()), "red", [gone, encode(photo(seed=1))], keep_images=True)
    assert np.isfinite(kept.rewards).all()
    assert [image["alt"] for image in Page(kept._repr_html_()).images] == ["source 1: source", "edit: edit 1"]


def test_whatever_can_be_scored_can_be_kept(serve) -> None:
    """Arrays too; of a batch, each image."""
    server: ScriptedServer = serve()
    batch = np.random.default_rng(0).random((3, 3, 20, 30), dtype=np.float32)

    async def run() -> GroupScores:
        async with AsyncJRMClient(server.url) as client:
            return await client.score_group(Image.new("L", (20, 30)), "red", batch, keep_images=True)

    assert len(Page(asyncio.run(run())._repr_html_()).images) == 4
