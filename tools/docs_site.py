"""The site of `make docs`: what mkdocs does not do with pages that link to the rest of the repository.

The README is the first page. Whatever else a page links to outside docs/ comes along, as a page or as a file, and links
are turned to where it is on the site. Links that lead nowhere fail the build, which is strict.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
HOME = "README.md"
_LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)\s#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README, and what is linked to from there or from docs/, and so on."""
    waiting = [HOME, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        if not path.startswith("docs/"):
            files.append(File.generated(config, _on_site(path), abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            linked = {_target(path, link) for link in _LINK.findall((ROOT / path).read_text(encoding="utf-8"))}
            fresh = {each for each in linked - seen if not each.startswith("docs/") and (ROOT / each).is_file()}
            waiting += sorted(fresh)
            seen |= fresh
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as they are in the repository, as they must be on the site."""
    here = page.file.src_uri
    path = HOME if here == _on_site(HOME) else here if (ROOT / here).is_file() else f"docs/{here}"
    folder = posixpath.dirname(here)
    return _LINK.sub(lambda link: posixpath.relpath(_on_site(_target(path, link[1])), folder), markdown)


def _target(path: str, link: str) -> str:
    """What a link on the page at ``path`` leads to. Both are paths in the repository."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def _on_site(path: str) -> str:
    """Where a file of the repository is on the site, as mkdocs names its sources."""
    return "index.md" if path == HOME else path.removeprefix("docs/")
