"""README.md: its tracks list every page, and its figures are those of docs/performance.md."""

import re
from collections import Counter

from docs import pages

README = pages.ROOT / "README.md"


def test_the_tracks_list_every_page_once():
    text = pages.prose(README)
    tracks = text[text.index("**Point your trainer at it**") : text.index("## Map")]
    listed = Counter(re.findall(r"\]\((docs/[\w./-]+\.md)\)", tracks))
    expected = [*pages.DOCS.glob("*.md"), pages.DOCS / "trainers" / "README.md"]
    assert listed == Counter(pages.name(page) for page in expected)


def test_every_measured_figure_is_in_the_page_on_performance():
    known = set(re.findall(r"\d+\.\d+", (pages.DOCS / "performance.md").read_text(encoding="utf-8")))
    figures = [re.findall(r"\d+\.\d+", row[1]) for row in pages.table(README, "what")]
    assert all(figures)
    assert {figure for row in figures for figure in row} <= known
