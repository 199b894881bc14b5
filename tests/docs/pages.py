"""The documentation as the tests read it: pages, fenced blocks, tables, links."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted(DOCS.rglob("*.md"))]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CELL = re.compile(r"(?<!\\)\|")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language; "" for those without."""
    return [text for found, text in _FENCE.findall(page.read_text(encoding="utf-8")) if found == language]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    return _LINK.findall(prose(page))


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def table(page: Path, first_heading: str) -> list[list[str]]:
    """The rows, without the heading, of the one table whose first column has this heading; backticks removed."""
    tables = re.findall(r"(?:^\|.*\n)+", prose(page), re.MULTILINE)
    found = [rows for rows in map(_rows, tables) if rows[0][0] == first_heading]
    assert len(found) == 1, f"{name(page)}: {len(found)} tables begin with the column {first_heading!r}"
    return found[0][2:]


def _rows(text: str) -> list[list[str]]:
    return [[cell.strip().replace("`", "") for cell in _CELL.split(line)[1:-1]] for line in text.splitlines()]
