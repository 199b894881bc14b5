"""The programs in the documentation, run as they stand against a server with a fake backend."""

import re

import pytest

from docs import pages
from jrm_client import FingerprintMismatch, aio, retry
from support import servers

LOCAL = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def url():
    with servers.serving() as url:
        yield url


def program(page, word, url=LOCAL):
    """The namespace of the one python block with ``word`` in it, after it has run against ``url``."""
    [block] = [block for block in pages.blocks(page, "python") if word in block]
    names = {"__name__": "__main__"}
    exec(compile(block.replace(LOCAL, url), pages.name(page), "exec"), names)
    return names


def test_the_step_of_a_flow_grpo_rank(url, capsys):
    names = program(pages.DOCS / "flow_grpo.md", "advantages", url)
    advantages = names["advantages"]
    assert advantages.shape == (2, names["GROUP"])
    assert advantages.isfinite().all()
    assert advantages.abs().sum() > 0
    assert "rewards come from fake\n" in capsys.readouterr().out


def test_the_entry_of_multi_score_is_what_it_takes():
    factory = program(pages.DOCS / "flow_grpo.md", "score_functions[")["score_functions"]["jrm"]
    assert "device" not in factory.__code__.co_varnames
    assert callable(factory())


def test_the_fingerprint_of_a_run(url):
    names = program(pages.DOCS / "flow_grpo.md", "def reward_function")
    photo, state = pages.ROOT / "examples" / "photo.jpg", {}
    call = ([photo], ["red"], None, [photo])
    for _ in range(2):  # the run, and the run after a restart
        reward_fn = names["reward_function"](url, state)
        reward_fn(*call)
        names["save_fingerprint"](reward_fn, state)
        reward_fn.close()
    assert state == {"reward_fingerprint": "fake"}
    reward_fn = names["reward_function"](url, {"reward_fingerprint": "another"})
    with pytest.raises(FingerprintMismatch, match="pinned to another"):
        reward_fn(*call)
    reward_fn.close()


def test_the_server_in_a_test_of_ones_own():
    names = program(pages.DOCS / "serving.md", "def fake_server")
    [test] = [value for name, value in names.items() if name.startswith("test_")]
    test()


def test_the_snippet_of_the_readme(url, monkeypatch):
    monkeypatch.chdir(pages.ROOT)
    names = program(pages.ROOT / "README.md", "JRMClient", url)
    assert names["group"].rewards.shape == (2,)
    names["client"].close()


def test_the_numbers_of_retries_and_timeouts():
    rows = dict(pages.table(pages.DOCS / "flow_grpo.md", "retries"))
    assert {word for word in rows["tried again"].replace(",", "").split() if word.isdigit()} == {
        str(status) for status in retry.RETRIED_STATUSES
    }
    assert f"max_retries ({retry.MAX_RETRIES})" in rows["attempts"]
    assert f", {retry.MAX_FIRST_ATTEMPTS} at most," in rows["attempts"]
    assert rows["delay"].startswith(f"{retry.FIRST_DELAY} s, ")
    assert f"up to {retry.MAX_DELAY} s" in rows["delay"]
    assert f"`timeout` ({aio.DEFAULT_TIMEOUT:g} s by default)" in pages.prose(pages.DOCS / "flow_grpo.md")


def test_the_numbers_of_a_fleet():
    rows = dict(pages.table(pages.DOCS / "client.md", "number"))
    assert rows["first ejection"].startswith(f"{retry.FIRST_EJECTION} s, ")
    assert rows["longest ejection"].startswith(f"{retry.MAX_EJECTION} s, ")
    assert rows["connecting"].startswith(f"{retry.CONNECT_TIMEOUT} s ")
    assert [f"{seconds} s" for seconds in (retry.RESOLVE_EVERY, retry.RESOLVE_FAILING, retry.RESOLVE_TIMEOUT)] == (
        re.findall(r"[\d.]+ s\b", rows["names are looked up"])
    )
