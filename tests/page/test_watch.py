"""Watch: what trainers send appears by itself, and what reward hacking looks like is said in words."""

import base64
import json
from contextlib import ExitStack
from email.utils import formatdate

import httpx
import numpy as np
import pytest
from playwright.sync_api import expect

from jrm_client import JRMClient
from jrm_service.api.keys import Key, digest
from jrm_service.api.watch.window import HOUR, Numbers, Window
from jrm_service.settings import Settings
from support.pictures import encode, photo

from .browsing import axe_violations

pytestmark = pytest.mark.heavy

PICTURES = [encode(photo(40, 40, seed=number)) for number in range(30)]
DIMENSIONS = ("instruction_following", "visual_quality")


def send(url: str, instruction: str, count: int = 4, *, api_key: str | None = None, first: int = 1) -> list[float]:
    with JRMClient(url, api_key=api_key) as client:
        return client.score_group(PICTURES[0], instruction, PICTURES[first : first + count]).rewards.tolist()


@pytest.fixture
def watched(serve):
    """A server that keeps three groups."""
    return serve(Settings(backend="fake", keep_recent=3))


def test_groups_appear_as_they_are_scored_with_their_best_and_worst(watched, open_page):
    page = open_page(f"{watched}/#watch", refused=["404"])  # the pictures of a group may go before they are shown
    groups = page.locator(".group")
    expect(page.locator(".findings")).to_contain_text("No groups yet")
    expect(page.locator("#watch-view")).to_contain_text(
        "The last 3 groups are kept with pictures, in this server's memory only: at most 64 MB"
    )
    rewards = send(watched, "make it red")
    expect(groups).to_have_count(1)
    figures = groups.first.locator("figcaption").all_inner_texts()
    numbers = [f"{reward:.2f}".replace("-", "−") for reward in (max(rewards), min(rewards))]
    assert figures == ["source", f"best {numbers[0]}", f"worst {numbers[1]}"]
    expect(groups.first.locator("img")).to_have_count(3)
    sizes = groups.first.locator("img").evaluate_all(
        "images => Promise.all(images.map((one) => one.decode().then(() => one.naturalWidth)))"
    )
    assert sizes == [40] * 3
    assert groups.first.locator(".strip line").count() == 1 + len(rewards)
    for number in range(2, 6):
        send(watched, f"make it red, {number}")
    expect(groups.locator(".asked")).to_have_text([f"make it red, {number}" for number in (5, 4, 3)])
    expect(page.locator(".charts section")).to_have_count(6)
    assert axe_violations(page) == []


def test_errors_wires_and_groups_without_spread_are_named(watched, open_page):
    page = open_page(f"{watched}/#watch")
    with JRMClient(watched) as client:
        client.score_group(PICTURES[0], "as it is", [PICTURES[1], PICTURES[1], b"no picture"], on_error="nan")
    first = page.locator(".group").first
    expect(first).to_contain_text("3 edits · 1 without a score · no spread")
    expect(page.locator(".findings")).to_contain_text("100% of the newest groups have no spread")
    expect(page.locator(".findings")).to_contain_text("33% of the newest edits have no score")
    picture = base64.b64encode(PICTURES[1]).decode()
    sent = {"prompt": ["from flow-factory"], "image": [picture], "condition_images": [[picture]]}
    assert httpx.post(f"{watched}/compute", json=sent).status_code == 200
    expect(first).to_contain_text("flow-factory · 1 edit")


def test_what_was_seen_can_be_looked_at_in_peace(watched, open_page):
    page = open_page(f"{watched}/#watch")
    send(watched, "first")
    expect(page.locator(".group")).to_have_count(1)
    page.get_by_role("button", name="Pause").click()
    send(watched, "second")
    resume = page.get_by_role("button", name="Resume (1 new)")
    expect(resume).to_be_visible()
    expect(page.locator(".group")).to_have_count(1)
    resume.click()
    expect(page.locator(".group .asked")).to_have_text(["second", "first"])


def test_a_list_that_is_held_can_be_seen_to_its_end(open_page, serve):
    url = serve(Settings(backend="fake", keep_recent=40))
    for number in range(1, 27):
        send(url, f"number {number}", 1)
    page = open_page(f"{url}/#watch")
    expect(page.locator(".group")).to_have_count(24)
    page.get_by_role("button", name="Pause").click()
    send(url, "another", 1)
    expect(page.get_by_role("button", name="Resume (1 new)")).to_be_visible()
    page.get_by_role("button", name="Show more (24 of 26)").click()
    expect(page.locator(".group")).to_have_count(26)
    expect(page.locator(".group .asked").first).to_have_text("number 26")


def test_what_was_seen_stays_when_a_proxy_has_no_server_for_a_while(watched, open_page):
    page = open_page(f"{watched}/#watch", refused=["502"])
    send(watched, "first")
    expect(page.locator(".group")).to_have_count(1)
    page.get_by_role("tab", name="Try").click()
    page.route("**/v1/watch", lambda route: route.fulfill(status=502, body="<h1>Bad gateway</h1>"))
    page.get_by_role("tab", name="Watch").click()
    expect(page.locator("#watch-view > .notice")).to_contain_text("502")
    expect(page.locator(".group")).to_be_visible()
    page.unroute("**/v1/watch")
    expect(page.locator("#watch-view > .notice")).to_be_hidden()


def test_a_chart_is_read_with_the_keyboard_and_stands_still_meanwhile(watched, open_page):
    page = open_page(f"{watched}/#watch")
    send(watched, "first")
    expect(page.locator(".findings")).to_contain_text("4 edits so far")
    plot = page.get_by_role("slider", name="instruction following over time")
    readout = page.locator(".readout").nth(1)
    plot.press("End")
    expect(readout).to_contain_text("4 edits")
    expect(plot).to_have_attribute("aria-valuetext", readout.inner_text())
    page.keyboard.press("ArrowLeft")
    expect(readout).to_contain_text("nothing")
    send(watched, "second")
    expect(page.locator(".findings")).to_contain_text("8 edits so far")
    expect(plot).to_be_focused()
    expect(readout).to_contain_text("nothing")


def test_pictures_that_went_meanwhile_say_so(watched, open_page):
    page = open_page("about:blank", refused=["404"])
    page.route("**/v1/watch/pictures/*", lambda route: route.fulfill(status=404, body="{}"))
    send(watched, "first")
    page.goto(f"{watched}/#watch")
    expect(page.locator(".group").get_by_text("no longer kept")).to_have_count(3)


def test_pictures_that_could_not_come_are_asked_for_again(watched, open_page):
    page = open_page("about:blank", refused=["503"])
    page.route("**/v1/watch/pictures/*", lambda route: route.fulfill(status=503, body="{}"), times=3)
    send(watched, "first")
    page.goto(f"{watched}/#watch")
    expect(page.locator(".group img")).to_have_count(3)


def test_a_view_that_is_left_does_not_go_on_reading_and_comes_back_without_doubles(watched, open_page):
    page = open_page(f"{watched}/#watch")
    send(watched, "first")
    expect(page.locator(".group")).to_have_count(1)
    page.get_by_role("tab", name="Try").click()
    send(watched, "second")
    with page.expect_request("**/v1/watch"):
        page.get_by_role("tab", name="Watch").click()
    expect(page.locator(".group .asked")).to_have_text(["second", "first"])


def test_where_watching_is_off_the_page_says_how_it_is_switched_on(open_page, serve):
    url = serve(Settings(backend="fake"))
    page = open_page(f"{url}/#watch", refused=["404"])
    expect(page.locator("#watch-view")).to_contain_text("Watching is off")
    expect(page.locator("#watch-view pre")).to_have_text("jrm serve --keep-recent 200")
    assert axe_violations(page) == []


def test_only_a_key_with_the_scope_may_watch(tmp_path, open_page, serve):
    keys = tmp_path / "keys.txt"
    lines = [Key("trainer", digest(b"jrm_scores")), Key("person", digest(b"jrm_watches"), scopes=("watch",))]
    keys.write_text("".join(key.line() + "\n" for key in lines))
    url = serve(Settings(backend="fake", keep_recent=3, api_keys_file=keys))
    page = open_page(f"{url}/#watch", refused=["401", "403"])
    requested = []
    page.on("request", lambda request: requested.append(request.url))
    page.get_by_label("Key", exact=True).fill("jrm_scores")
    page.keyboard.press("Enter")
    expect(page.locator("#watch-view")).to_contain_text("needs the scope watch")
    expect(page.locator("#watch-view pre")).to_contain_text("--scope watch")
    assert axe_violations(page) == []
    page.get_by_role("button", name="Use another key").click()
    page.get_by_label("Key", exact=True).fill("jrm_watches")
    page.keyboard.press("Enter")
    send(url, "from a trainer", api_key="jrm_scores")
    expect(page.locator(".group").first).to_contain_text("trainer · 4 edits")
    expect(page.locator(".group img")).to_have_count(3)
    assert [one for one in requested if "jrm_scores" in one or "jrm_watches" in one] == []


def test_a_seventeenth_reader_is_told_and_gets_in_when_there_is_room(watched, open_page):
    send(watched, "first")
    with ExitStack() as readers:
        lines = [
            readers.enter_context(httpx.stream("GET", f"{watched}/v1/watch", timeout=30)).iter_lines()
            for _ in range(16)
        ]
        assert {next(read) for read in lines} == {"event: hello"}
        page = open_page("about:blank", refused=["429"])
        page.goto(f"{watched}/#watch")
        expect(page.locator("#watch-view .notice").first).to_contain_text("16 readers are watching already")
    page.get_by_role("tab", name="Try").click()
    page.get_by_role("tab", name="Watch").click()
    expect(page.locator(".group")).to_have_count(1)


def story(page, url, *, following: float, quality: float, spread: float, silent_s: float = 0) -> list[str]:
    """What the page says when, after a first hour, the dimensions move by so much and the spread is multiplied.

    The numbers are made by the window that the server has, with another clock. Nothing came for ``silent_s`` since.
    """
    now = 1.8e9
    window = Window(clock=lambda: now)
    random = np.random.default_rng(1)
    for hour, shift, scale in [(0, (0.0, 0.0), 1.0), (1, (following, quality), spread)]:
        for minute in range(60):
            now = 1.8e9 + HOUR * hour + 60 * minute + 30
            for _ in range(5):
                means = {
                    name: moved + random.normal() * 0.8 + scale * random.normal(size=12)
                    for name, moved in zip(DIMENSIONS, shift, strict=True)
                }
                window.add(Numbers("judge", (means[DIMENSIONS[0]] + means[DIMENSIONS[1]]) / 2, means, errors=0))
    hello = {
        "keep_recent": 3,
        "keep_bytes": 64_000_000,
        "dimensions": DIMENSIONS,
        "model": "fake",
        "fingerprint": "fake",
    }
    said = [("hello", hello | window.comparison()), ("window", window.document())]
    body = "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in said)
    headers = {"content-type": "text/event-stream", "date": formatdate(now + silent_s, usegmt=True)}
    page.route("**/v1/watch", lambda route: route.fulfill(headers=headers, body=body))
    page.goto(f"{url}/#watch")
    expect(page.locator(".bands .curve").first).to_be_visible()
    return page.locator(".findings p").all_inner_texts()


def test_one_dimension_bought_with_the_other_is_said(watched, open_page):
    page = open_page("about:blank")
    [said] = story(page, watched, following=1.6, quality=-1.1, spread=1.0)
    assert said.startswith("Instruction following +1.")
    assert "since the first hour, visual quality −0." in said or "since the first hour, visual quality −1." in said
    assert said.endswith("Look at the pictures.")
    assert page.locator(".drift.far").count() >= 2
    assert axe_violations(page) == []


def test_a_rise_while_the_spread_collapses_is_said(watched, open_page):
    [said] = story(open_page("about:blank"), watched, following=1.5, quality=1.5, spread=0.2)
    assert said.startswith("Reward +1.")
    assert "the spread within groups fell from" in said


def test_honest_progress_is_no_alarm(watched, open_page):
    page = open_page("about:blank")
    [said] = story(page, watched, following=1.2, quality=0.9, spread=1.0)
    assert "the spread within groups went from" in said
    assert page.locator(".findings .warn").count() == 0


def test_where_nothing_moves_that_is_said(watched, open_page):
    [said] = story(open_page("about:blank"), watched, following=0.0, quality=0.0, spread=1.0)
    assert said.startswith("Nothing stands out")


@pytest.mark.parametrize("silent_s", [0, 3600])
def test_a_chart_ends_when_the_newest_groups_came(watched, open_page, silent_s):
    page = open_page("about:blank")
    story(page, watched, following=0.0, quality=0.0, spread=1.0, silent_s=silent_s)
    end = page.locator(".charts .until").first.inner_text()
    assert end.startswith("nothing since ") == (silent_s > 0)
    assert end.removeprefix("nothing since ").count(":") == 2


@pytest.mark.parametrize(("first", "said"), [(6, "6 edits so far: too few yet"), (240, "A +16.0σ since the beginning")])
def test_nothing_is_said_of_drift_from_a_beginning_of_a_few_edits(watched, open_page, first, said):
    script = """async (window) => {
      const { findings } = await import(new URL("page/findings.js", location.href));
      return findings(window).map(({ text }) => text);
    }"""
    shifts = {"reward": {"shift": 16.0}, "dimensions": {"a": {"shift": 16.0}, "b": {"shift": -16.0}}}
    numbers = {"errors": 0, "group_std": 0.5, "no_spread_share": 0.0, "error_share": 0.0, "complete": False}
    window = {
        "first_hour": {**numbers, "candidates": first, "start": 1.0},
        "now": {**numbers, "candidates": 240, "start": 9000.0},
        "drift": shifts,
    }
    [text] = open_page(watched).evaluate(script, window)
    assert text.startswith(said)
