"""What the page makes of servers that refuse, are busy, are not there yet, or die meanwhile. They are real ones."""

import signal
import threading
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from jrm_client import JRMClient
from jrm_service.api.keys import Key, digest
from jrm_service.settings import Settings
from support import processes, servers
from support.pictures import encode, photo

from .browsing import axe_violations, file, fill, score

pytestmark = pytest.mark.heavy

PICTURES = [file(f"picture-{number}.png", encode(photo(40, 40, seed=number))) for number in range(4)]
SECRET = "jrm_0123456789"


def filled(page: Page) -> Page:
    fill(page, source=PICTURES[0], edits=PICTURES[1:], instruction="make it blue")
    return page


def still_filled(page: Page) -> None:
    expect(page.get_by_role("textbox", name="Instruction")).to_have_value("make it blue")
    expect(page.locator(".thumbs li")).to_have_count(len(PICTURES))


def ranked(page: Page) -> None:
    expect(page.locator(".card .reward")).to_have_count(len(PICTURES) - 1)


def keys_file(folder: Path, **limits: int) -> Path:
    path = folder / "keys.txt"
    path.write_text(Key("trainer", digest(SECRET.encode()), **limits).line() + "\n")
    return path


@pytest.fixture
def guarded(tmp_path, serve):
    """A server that asks for a key."""
    return serve(Settings(backend="fake", api_keys_file=keys_file(tmp_path)))


def test_a_key_is_asked_for_once_and_kept_for_the_session(guarded, open_page):
    page = open_page(guarded, refused=["401"])
    dialog = page.get_by_role("dialog", name="API key")
    expect(dialog).to_be_visible()
    assert axe_violations(page) == []
    page.get_by_label("Key", exact=True).fill("jrm_wrong")
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("The server does not know this key.")
    page.get_by_label("Key", exact=True).fill(SECRET)
    page.get_by_role("button", name="Use this key").click()
    expect(dialog).to_be_hidden()
    expect(page.locator("#model")).to_have_text("jrm-fake")
    score(filled(page))
    ranked(page)
    page.reload()
    expect(page.locator("#model")).to_have_text("jrm-fake")
    expect(dialog).to_be_hidden()
    assert SECRET not in page.url
    assert page.evaluate("Object.values(sessionStorage)") == [SECRET]
    assert page.context.cookies() == []
    assert page.evaluate("localStorage.length") == 0


def test_who_has_no_key_keeps_what_was_typed_and_is_asked_again_when_scoring(guarded, open_page):
    page = open_page(guarded, refused=["401"])
    dialog = page.get_by_role("dialog", name="API key")
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    score(filled(page))
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("alert").last).to_contain_text("unauthorized")
    still_filled(page)
    page.get_by_role("button", name="Score again").click()
    page.get_by_label("Key", exact=True).fill(SECRET)
    page.keyboard.press("Enter")
    ranked(page)


def test_too_much_at_once_is_counted_down_and_sent_once_more(tmp_path, open_page, serve):
    keys = keys_file(tmp_path, candidates_per_minute=90)
    url = serve(Settings(backend="fake", api_keys_file=keys))
    page = open_page("about:blank", refused=["401", "429"])
    page.goto(url)
    page.get_by_label("Key", exact=True).fill(SECRET)
    page.keyboard.press("Enter")
    filled(page)
    with JRMClient(url, api_key=SECRET) as client:
        client.score_group(PICTURES[0]["buffer"], "use it up", [PICTURES[1]["buffer"]] * 90)
    with page.expect_response("**/v1/score") as refused:
        score(page)
    assert refused.value.status == 429
    assert int(refused.value.headers["retry-after"]) <= 3
    waiting = page.locator(".notice.wait")
    expect(waiting).to_contain_text("rate_limited")
    expect(waiting.locator("strong")).to_have_text("1 s")
    ranked(page)


def test_a_second_429_is_the_last_word(open_page, serve):
    url = serve(Settings(backend="fake"))
    page = open_page(url, refused=["429"])
    asked = []

    def refuse(route):
        asked.append(route.request.url)
        body = {"error": {"message": "busy", "type": "rate_limit_error", "param": None, "code": "overloaded"}}
        route.fulfill(status=429, headers={"retry-after": "1"}, json=body)

    page.route("**/v1/score", refuse)
    score(filled(page))
    expect(page.get_by_role("alert").last).to_contain_text("busy overloaded")
    assert len(asked) == 2
    still_filled(page)


def test_waiting_can_be_stopped(open_page, serve):
    url = serve(Settings(backend="fake"))
    page = open_page(url, refused=["429"])
    body = {"error": {"message": "busy", "type": "rate_limit_error", "param": None, "code": "overloaded"}}
    page.route("**/v1/score", lambda route: route.fulfill(status=429, headers={"retry-after": "60"}, json=body))
    score(filled(page))
    expect(page.locator(".notice.wait strong")).to_have_text("60 s")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#results")).to_contain_text("Stopped.")
    expect(page.locator("#score")).to_have_text("Score 3 edits")
    still_filled(page)


def test_a_server_that_is_loading_says_so_and_scores_when_it_is_ready(open_page, serve):
    gate = threading.Event()

    def load():
        gate.wait(60)
        return servers.fake_parts()

    url = serve(Settings(backend="fake"), load=load, ready=False)
    page = open_page(url, refused=["503"])
    expect(page.locator("#state")).to_have_attribute("data-state", "loading")
    score(filled(page))
    alert = page.get_by_role("alert").last
    expect(alert).to_contain_text("not_ready")
    expect(alert).to_contain_text("The server says to come back in 5 seconds.")
    gate.set()
    expect(page.locator("#state")).to_have_attribute("data-state", "ready")
    expect(page.locator("#model")).to_have_text("fake")
    page.get_by_role("button", name="Score again").click()
    ranked(page)


def test_a_server_that_dies_takes_nothing_with_it(open_page):
    with processes.serving("--backend", "fake", "--keep-recent", "5") as first:
        first.wait_until_ready()
        page = open_page(first.url, refused=["net::", "503"])  # how connections end is for the system to say
        score(filled(page))
        ranked(page)
        page.get_by_role("tab", name="Watch").click()
        expect(page.locator(".group .trio img").first).to_be_visible()
        page.get_by_role("tab", name="Try").click()
        first.process.send_signal(signal.SIGSTOP)  # so that it dies while it is asked
        score(page)
        expect(page.locator("#score")).to_have_text("Stop")
        first.process.kill()
        first.process.wait()
        banner = page.locator("#banner")
        expect(banner).to_have_text(
            "The server does not answer. This page tries again by itself; what you typed stays."
        )
        expect(page.locator("#results .notice")).to_contain_text(
            "Nothing is lost: your pictures and the instruction are still here."
        )
        still_filled(page)
        page.get_by_role("tab", name="Watch").click()
        expect(page.locator(".group")).to_have_count(1)
        assert axe_violations(page) == []
    with processes.serving("--backend", "fake", "--keep-recent", "5", "--port", first.url.rpartition(":")[2]) as second:
        second.wait_until_ready()
        expect(banner).to_be_hidden()
        expect(page.locator("#state")).to_have_attribute("data-state", "ready")
        page.get_by_role("tab", name="Try").click()
        page.get_by_role("button", name="Score again").click()
        ranked(page)
        page.get_by_role("tab", name="Watch").click()
        expect(page.locator(".group .trio img").first).to_be_visible()
        expect(page.locator(".group")).to_have_count(1)  # the new server's; what the first one kept is gone
        page.get_by_role("tab", name="Try").click()


def test_who_is_served_is_asked_again_until_there_is_an_answer(open_page, serve):
    url = serve(Settings(backend="fake"))
    page = open_page("about:blank", refused=["503"])
    page.route("**/v1/info", lambda route: route.fulfill(status=503, body="busy"), times=1)
    page.goto(url)
    expect(page.locator("#model")).to_contain_text("503")
    expect(page.locator("#model")).to_have_text("jrm-fake")


def test_something_else_that_answers_is_quoted_with_its_status(open_page, serve):
    url = serve(Settings(backend="fake"))
    page = open_page(url, refused=["502"])
    page.route("**/v1/score", lambda route: route.fulfill(status=502, body="<h1>Bad gateway</h1>"))
    score(filled(page))
    expect(page.get_by_role("alert").last).to_contain_text("502")
    still_filled(page)


def test_more_than_the_server_takes_is_said_before_it_is_sent(open_page, serve):
    url = serve(Settings(backend="fake", max_body_bytes=10_000))
    page = open_page(url)
    expect(page.locator("#model")).to_have_text("jrm-fake")
    score(filled(page))
    expect(page.locator("#edits .problem")).to_contain_text("this server takes 10 KB at once")
