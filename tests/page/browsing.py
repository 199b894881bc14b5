"""Pages in a real Chromium, and what it has to complain about."""

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

from playwright.sync_api import Browser, Page, expect

PHONE = {"width": 360, "height": 740}
EXAMPLE = "Try the example"

_REFUSED = re.compile(r"Failed to load resource: (?:the server responded with a status of (\d+)|(net::\w+))")
_WATCHED = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  violations.push(`${event.violatedDirective} ${event.blockedURI}`);
});
"""

expect.set_options(timeout=20_000)


@contextmanager
def opened(browser: Browser, url: str, *, refused: Collection[str] = (), **options: Any) -> Iterator[Page]:
    """A page that must end without an error in its console and without a violation of its policy.

    ``refused``: beginnings of the statuses and network errors that the test causes and Chromium itself notes.
    """
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
    context.add_init_script(_WATCHED)
    page = context.new_page()
    complaints: list[str] = []
    page.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: complaints.append(f"{error}\n{error.stack}"))
    page.goto(url)
    yield page
    violations = page.evaluate("violations")
    context.close()
    complaints = [text for text in complaints if not _is_meant(text, refused)] + violations
    assert not complaints, complaints


def _is_meant(complaint: str, refused: Collection[str]) -> bool:
    match = _REFUSED.match(complaint)
    return match is not None and (match[1] or match[2]).startswith(tuple(refused))


def names(page: Page) -> list[str]:
    """The edits in the order in which they are shown."""
    return page.locator(".card .title").evaluate_all("titles => titles.map((title) => title.firstChild.textContent)")


def fill(page: Page, *, source: Any, edits: Any, instruction: str = "make it red") -> None:
    """Choose files and type an instruction."""
    if source:
        page.locator("#source-files").set_input_files(source)
        expect(page.locator("#source .thumbs li")).to_have_count(len(source) if isinstance(source, list) else 1)
    page.locator("#edits-files").set_input_files(edits)
    expect(page.locator("#edits .thumbs li")).to_have_count(len(edits))
    page.get_by_label("Instruction").fill(instruction)


def score(page: Page) -> None:
    """Press the button, whatever it is called at the moment."""
    page.locator("#score").click()


def file(name: str, content: bytes, kind: str = "image/png") -> dict[str, Any]:
    """A file to choose."""
    return {"name": name, "mimeType": kind, "buffer": content}


def axe_violations(page: Page) -> list[str]:
    """What axe finds, each with the elements that it is about."""
    page.evaluate((files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [
        f"{one['id']}: {[node['html'][:200] for node in one['nodes']]} {one['nodes'][0]['failureSummary']}"
        for one in found
    ]
