"""As many sources as the checkpoint takes: several, or none."""

import pytest
from playwright.sync_api import expect

from jrm_client import JRMClient
from jrm_service.score_runtime import Parts
from jrm_service.scoring.fakes import DIMENSIONS, FakeBackend, FakePreparer
from jrm_service.scoring.types import ServedModel
from jrm_service.settings import Settings
from support.pictures import encode, photo

from .browsing import axe_violations, file, fill, score

pytestmark = pytest.mark.heavy

PICTURES = [file(f"picture-{number}.png", encode(photo(40, 40, seed=number))) for number in range(5)]


def taking(most: int) -> Parts:
    facts = {"image": {"max_sources": most}, "dimensions": [*DIMENSIONS], "precision": "float32", "device": "cpu"}
    return Parts(ServedModel("fake", "fake", facts), FakePreparer(max_sources=most), [FakeBackend()])


def test_several_sources_are_sent_in_their_order(open_page, serve):
    url = serve(Settings(backend="fake", keep_recent=3), load=lambda: taking(3))
    page = open_page(url)
    expect(page.locator("#source .drop")).to_contain_text("up to 3")
    fill(page, source=PICTURES[:2], edits=PICTURES[2:])
    score(page)
    expect(page.locator(".card .reward")).to_have_count(3)
    shown = page.locator(".reward").evaluate_all("all => all.map((one) => one.firstChild.textContent)")
    with JRMClient(url) as client:
        sources, edits = ([one["buffer"] for one in some] for some in (PICTURES[:2], PICTURES[2:]))
        rewards = sorted(client.score_group(sources, "make it red", edits).rewards, reverse=True)
    assert shown == [f"{reward:.2f}".replace("-", "−") for reward in rewards]
    page.get_by_role("tab", name="Watch").click()
    expect(page.locator(".group").first.locator("figcaption")).to_have_count(4)
    expect(page.locator(".group").first).to_contain_text("source 2")
    assert axe_violations(page) == []


def test_a_checkpoint_without_sources_is_not_offered_any(open_page, serve):
    url = serve(Settings(backend="fake", keep_recent=3), load=lambda: taking(0))
    page = open_page(url)
    expect(page.locator("#source")).to_be_hidden()
    fill(page, source=None, edits=PICTURES[2:])
    score(page)
    expect(page.locator(".card .reward")).to_have_count(3)
    page.get_by_role("tab", name="Watch").click()
    expect(page.locator(".group").first.locator("figcaption")).to_have_count(2)
