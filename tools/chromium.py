"""Starts the installed Chromium, for the tests and the screenshots of the page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
ADVICE = "install Chromium on PATH (Debian: apt-get install --no-install-recommends chromium)"

_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]  # may run as root, in a container


def find() -> str:
    """Return Chromium's path. Raises FileNotFoundError, which says what to install."""
    for program in PROGRAMS:
        if path := shutil.which(program):
            return path
    raise FileNotFoundError(f"none of {', '.join(PROGRAMS)} is here: {ADVICE}")


@contextmanager
def launched() -> Iterator[Browser]:
    """Start a browser with a fresh profile. Raises FileNotFoundError."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find(), args=_FLAGS)
        yield browser
        browser.close()
