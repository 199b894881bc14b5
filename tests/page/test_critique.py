"""The critique of an edit: written while one watches, its regions on the picture, each tied to its sentence."""

import os
import re
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


def test_a_critique_that_breaks_off_stays_as_far_as_it_came_and_is_asked_for_again(open_page, critic):
    page = open_page(critic)
    expect(page.locator("#state")).to_have_attribute("data-state", "ready")
    page.get_by_role("button", name=EXAMPLE).first.click()
    expect(page.locator(".card")).to_have_count(6)
    page.evaluate("""() => {
      const real = window.fetch;
      const words = { dimension: "visual_quality", delta: '{"reasoning": "Half a sen' };
      window.fetch = (url, options) => {
        if (!String(url).endsWith("v1/explain")) return real(url, options);
        window.fetch = real;
        return new Response(new ReadableStream({
          start(stream) {
            stream.enqueue(new TextEncoder().encode(`data: ${JSON.stringify(words)}\n\n`));
            setTimeout(() => stream.error(new TypeError("gone")), 300);
          },
        }));
      };
    }""")
    page.get_by_role("button", name="Critique of recoloured.png").click()
    expect(page.locator(".explained .notice.bad")).to_contain_text("broke off")
    expect(page.locator(".critique")).to_contain_text("Half a sen")
    page.get_by_role("button", name="Ask again").click()
    expect(page.locator(".sentence")).to_have_count(2)
    expect(page.locator(".explained .notice.bad")).to_have_count(0)


@pytest.mark.parametrize("hidden", ["**/metrics", re.compile("/metrics|/health/ready")])
def test_a_proxy_that_hides_the_metrics_leaves_the_critiques(open_page, critic, hidden):
    page = open_page("about:blank", refused=["404"])
    page.route(hidden, lambda route: route.fulfill(status=404, body="hidden"))
    page.goto(critic)
    expect(page.locator("#state")).to_have_attribute("data-state", "ready")
    page.get_by_role("button", name=EXAMPLE).first.click()
    page.get_by_role("button", name="Critique of recoloured.png").click()
    expect(page.locator(".sentence")).to_have_count(2)


@pytest.mark.parametrize("hidden", [False, True])
def test_without_critiques_there_is_no_button(open_page, served, hidden):
    page = open_page("about:blank", refused=["404"])
    if hidden:
        page.route("**/metrics", lambda route: route.fulfill(status=404, body="hidden"))
    page.goto(served)
    expect(page.locator("#state")).to_have_attribute("data-state", "ready")
    page.get_by_role("button", name=EXAMPLE).first.click()
    expect(page.locator(".card")).to_have_count(6)
    assert page.get_by_role("button", name="Critique of").count() == 0
