"""mkdocs hooks for `make docs`: they make pages work that link to the rest of the repository.

The README is the first page. Files outside docs/ that a page links to are added to the site, as pages or as files, and
the links are rewritten. The build is strict, so broken links fail it.
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
    """Add the README, and the files that it and docs/ link to, directly or through other pages."""
    waiting = [HOME, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        if not path.startswith("docs/"):
            files.append(File.generated(config, _on_site(path), abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            linked = {_target(path, link) for link in _LINK.findall((ROOT / path).read_text(encoding="utf-8"))}
            fresh = {file for file in linked - seen if not file.startswith("docs/") and (ROOT / file).is_file()}
            waiting += sorted(fresh)
            seen |= fresh
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite a page's links from paths in the repository to paths on the site."""
    uri = page.file.src_uri
    path = HOME if uri == _on_site(HOME) else uri if (ROOT / uri).is_file() else f"docs/{uri}"
    folder = posixpath.dirname(uri)
    return _LINK.sub(lambda link: posixpath.relpath(_on_site(_target(path, link[1])), folder), markdown)


def _target(path: str, link: str) -> str:
    """Return the path in the repository that a link on the page at ``path`` points to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def _on_site(path: str) -> str:
    """Return the path on the site, in mkdocs' terms, of a file of the repository."""
    return "index.md" if path == HOME else path.removeprefix("docs/")
