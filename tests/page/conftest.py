"""One browser for all these tests, and one server with the bundled checkpoint."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from playwright.sync_api import Browser, Page
from tools import chromium

from jrm_service.settings import Settings
from support import processes, servers

from . import browsing


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Closed before the tests of other packages: its event loop would be in the way of those that have their own."""
    with chromium.launched() as browser:
        yield browser


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """As ``servers.serving``, but until the test's pages are closed: they would complain of a server that went first.

    ``ready=False``: as ``servers.starting``.
    """
    with ExitStack() as stack:

        def serve(settings: Settings, *, ready: bool = True, **options: Any) -> str:
            start = servers.serving if ready else servers.starting
            return stack.enter_context(start(settings, **options))

        yield serve


@pytest.fixture
def open_page(browser: Browser, serve: object) -> Iterator[Callable[..., Page]]:
    """As ``browsing.opened``; what a page has to complain about fails the test that opened it."""
    with ExitStack() as stack:

        def open_page(url: str, **options: Any) -> Page:
            return stack.enter_context(browsing.opened(browser, url, **options))

        yield open_page


@pytest.fixture(scope="package")
def served() -> Iterator[str]:
    """The bundled checkpoint, as users run it."""
    with processes.serving("--keep-recent", "20") as server:
        server.wait_until_ready()
        yield server.url
