"""The critique of an edit: written while one watches, its regions on the picture, each tied to its sentence."""

import os
from pathlib import Path

import pytest
from playwright.sync_api import expect

from jrm_service.settings import Settings
from support import scripted_critic, servers

from .browsing import EXAMPLE, axe_violations

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def critic():
    """A server that writes critiques, without vLLM."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]))
        with servers.serving(Settings(serve="score,explain"), explain_module="support.scripted_critic") as url:
            yield url


@pytest.fixture
def criticised(open_page, critic):
    page = open_page(critic)
    expect(page.locator("#state")).to_have_attribute("data-state", "ready")
    page.get_by_role("button", name=EXAMPLE).first.click()
    page.get_by_role("button", name="Critique of recoloured.png").click()
    expect(page.locator(".sentence")).to_have_count(2)
    return page


def test_sentences_and_regions_light_each_other(criticised):
    first, second = criticised.locator(".sentence").all()
    boxes = criticised.locator(".box")
    expect(first).to_have_text("The square is blue <b>now</b>.")
    expect(boxes.nth(1)).to_contain_text("<i>circle</i>")
    second.hover()
    expect(boxes.nth(1)).to_have_class("box tint-0 lit")
    expect(boxes.nth(0)).to_have_class("box tint-0")
    first.focus()
    criticised.keyboard.press("Enter")
    expect(boxes.nth(0)).to_be_focused()
    expect(first).to_have_class("sentence lit")
    boxes.nth(0).press("Enter")
    expect(first).to_be_focused()


def test_a_region_lies_where_the_critique_says(criticised):
    picture = criticised.locator(".pictured img").bounding_box()
    left, top, right, bottom = scripted_critic.REGIONS[0]["bbox_2d"]
    box = criticised.locator(".box").first.bounding_box()
    assert box["x"] - picture["x"] == pytest.approx(left / 1000 * picture["width"], abs=1.5)
    assert box["y"] - picture["y"] == pytest.approx(top / 1000 * picture["height"], abs=1.5)
    assert box["width"] == pytest.approx((right - left) / 1000 * picture["width"], abs=1.5)
    assert box["height"] == pytest.approx((bottom - top) / 1000 * picture["height"], abs=1.5)


def test_a_dimension_without_regions_is_plain_text(criticised):
    quality = criticised.locator(".critique", has=criticised.get_by_role("heading", name="visual quality"))
    expect(quality).to_contain_text("Mostly as asked. The square is blue <b>now</b>. The circle has become smaller.")
    expect(quality.locator(".sentence")).to_have_count(0)
    assert axe_violations(criticised) == []


def test_the_words_are_readable_while_they_are_written(criticised):
    script = """async (pieces) => {
      const { reasoning } = await import(new URL("page/critique.js", location.href));
      return pieces.map(reasoning);
    }"""
    pieces = [
        '{"rea',
        '{"reasoning": "<|glo',
        '{"reasoning": "<|global|> It \\"is\\" bl\\u00',
        '{"reasoning": "Blue.", "edit_region": [',
        "plain",
    ]
    assert criticised.evaluate(script, pieces) == ["…", "", 'It "is" bl', "Blue.", "plain"]


def test_without_critiques_there_is_no_button(open_page, served):
    page = open_page(served)
    expect(page.locator("#state")).to_have_attribute("data-state", "ready")
    page.get_by_role("button", name=EXAMPLE).first.click()
    expect(page.locator(".card")).to_have_count(6)
    assert page.get_by_role("button", name="Critique of").count() == 0
