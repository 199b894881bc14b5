"""Takes the screenshots of docs/page.md: a server with the bundled checkpoint, a trainer that goes wrong, and the page.

``python -m tools.screenshots docs`` writes page-light.png, page-dark.png and page-phone.png; it takes two minutes.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page

from jrm_client import JRMClient
from jrm_training.data import Edit
from jrm_training.world import World

from . import chromium

GROUPS = 210
ASTRAY = 168  # from this group on, the policy ignores visual quality
EVERY_S = 0.4
SENT = 6  # edits of a group
_WORLD = World(GROUPS, seed=2, split="test", edits=4 * SENT, shapes=(2, 4))


def main(folder: Path) -> None:
    """Write the three pictures."""
    with _server() as url:
        _train(url)
        with chromium.launched() as browser:
            with _opened(browser, f"{url}/#watch", "dark", 1280, 964) as page:
                page.locator(".group img").nth(8).wait_for()
                _save(page, folder / "page-dark.png")
            with _opened(browser, url, "light", 1280, 860) as page:
                _try(page)
                _save(page, folder / "page-light.png")
            with _opened(browser, url, "light", 390, 844) as page:
                _try(page)
                page.evaluate("document.querySelector('.summary').scrollIntoView()")
                _save(page, folder / "page-phone.png")


@contextmanager
def _server() -> Iterator[str]:
    jrm = Path(sys.executable).with_name("jrm")
    command = [str(jrm), "serve", "--port", "0", "--keep-recent", "200"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own program
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if match := re.match(r"ready: .* at (http://\S+),", line):
                    yield match[1]
                    return
            raise SystemExit("the server did not become ready")
        finally:
            process.terminate()


def _train(url: str) -> None:
    """Send groups as a trainer does whose policy learns, at the end, to follow instructions at the cost of looks."""
    with JRMClient(url) as client:
        for number, group in enumerate(_WORLD):
            began = time.monotonic()
            edits = sorted(group.edits, key=_tricky) if number >= ASTRAY else group.edits
            client.score_group(group.source, group.instruction, [edit.image for edit in edits[:SENT]])
            time.sleep(max(0.0, EVERY_S - (time.monotonic() - began)))


def _tricky(edit: Edit) -> float:
    """Return a sort key that is low for an edit that follows the instruction but looks bad."""
    return edit.labels["visual_quality"] - edit.labels["instruction_following"]


def _try(page: Page) -> None:
    page.get_by_role("button", name="Try the example").first.click()
    page.wait_for_selector(".odds")


@contextmanager
def _opened(browser: Browser, url: str, theme: str, width: int, height: int) -> Iterator[Page]:
    dark = theme == "dark"
    context = browser.new_context(
        color_scheme="dark" if dark else "light", viewport={"width": width, "height": height}, reduced_motion="reduce"
    )
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector('[data-state="ready"]')
    yield page
    context.close()


def _save(page: Page, file: Path) -> None:
    page.mouse.move(0, 0)
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(file, optimize=True)  # a palette would lose lines
    print(f"{file}: {file.stat().st_size // 1000} KB")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
