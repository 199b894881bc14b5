"""mkdocs.yml: the site has every page in its navigation. `make docs` itself is run by hand: it installs mkdocs."""

import re

from docs import pages


def test_every_page_is_in_the_navigation_once():
    nav = (pages.ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = [name for name in re.findall(r"[\w./-]+\.md", nav) if (pages.DOCS / name).exists()]
    assert sorted(listed) == sorted(page.relative_to(pages.DOCS).as_posix() for page in pages.DOCS.rglob("*.md"))
