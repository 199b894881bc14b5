"""Themes, a phone, the keyboard, a screen reader, a proxy: the page for whoever comes, however they come."""

import pytest
from playwright.sync_api import expect

from support.prefix_proxy import proxying

from .browsing import EXAMPLE, PHONE, axe_violations

pytestmark = pytest.mark.heavy

WIDE = {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def proxied(served):
    """The same server below a path."""
    with proxying(served, "/judges/tiny/") as url:
        yield url


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_axe_finds_nothing_and_nothing_is_cut_off(open_page, served, theme, size):
    page = open_page(served, color_scheme=theme, viewport=size)
    assert axe_violations(page) == []
    page.get_by_role("button", name=EXAMPLE).first.click()
    expect(page.locator(".card")).to_have_count(6)
    for name, ready in [("Try", ".odds"), ("Watch", ".group"), ("Status", ".gauges .spark")]:
        page.get_by_role("tab", name=name).click()
        expect(page.locator(ready).first).to_be_visible()
        assert axe_violations(page) == [], name
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name


def test_the_themes_differ_and_are_those_of_the_system(open_page, served):
    background = "getComputedStyle(document.body).backgroundColor"
    light, dark = (open_page(served, color_scheme=theme).evaluate(background) for theme in ("light", "dark"))
    brightness = [sum(int(one) for one in colour[4:-1].split(",")) for colour in (light, dark)]
    assert brightness[0] > 600
    assert brightness[1] < 150


def test_tabs_are_one_stop_and_arrows_move_between_them(open_page, served):
    page = open_page(served)
    page.keyboard.press("Tab")
    expect(page.get_by_role("tab", name="Try")).to_be_focused()
    for key, name in [
        ("ArrowRight", "Watch"),
        ("End", "Status"),
        ("ArrowRight", "Try"),
        ("ArrowLeft", "Status"),
        ("Home", "Try"),
    ]:
        page.keyboard.press(key)
        tab = page.get_by_role("tab", name=name)
        expect(tab).to_be_focused()
        expect(tab).to_have_attribute("aria-selected", "true")
        expect(page.get_by_role("tabpanel")).to_have_attribute("id", f"{name.lower()}-view")
    page.keyboard.press("Tab")
    expect(page.locator("#source-files")).to_be_focused()
    outline = page.locator("#source .drop").evaluate("drop => getComputedStyle(drop).outlineStyle")
    assert outline == "solid"


def test_an_address_names_a_view(open_page, served):
    page = open_page(f"{served}/#status")
    expect(page.get_by_role("tab", name="Status")).to_have_attribute("aria-selected", "true")
    page.get_by_role("tab", name="Watch").click()
    assert page.url.endswith("#watch")


def test_who_wants_no_motion_gets_none(open_page, served):
    page = open_page(f"{served}/#watch", reduced_motion="reduce")
    page.get_by_role("tab", name="Try").click()
    page.get_by_role("button", name=EXAMPLE).first.click()
    expect(page.locator(".card")).to_have_count(6)
    page.get_by_role("tab", name="Watch").click()
    group = page.locator(".group").first
    expect(group).to_be_visible()
    assert group.evaluate("group => getComputedStyle(group).animationName") == "none"


def test_everything_works_below_the_path_of_a_proxy(proxied, open_page):
    page = open_page(proxied)
    requested = []
    page.on("request", lambda request: requested.append(request.url))
    page.get_by_role("button", name=EXAMPLE).first.click()
    expect(page.locator(".card")).to_have_count(6)
    page.get_by_role("tab", name="Watch").click()
    expect(page.locator(".group .trio img").first).to_be_visible()
    page.get_by_role("tab", name="Status").click()
    expect(page.locator(".facts")).to_contain_text("jrm-tiny")
    assert [one for one in requested if not one.startswith((proxied, f"blob:{proxied.partition('/judges')[0]}"))] == []
