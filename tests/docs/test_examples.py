"""The programs in the documentation, run as they stand against a server with a fake backend."""

import json
import re

import pytest
import yaml

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
    names = program(pages.DOCS / "testing.md", "def fake_server")
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


def first_block(page):
    """The lines to copy that a page begins with."""
    return pages.blocks(page, "python")[0]


def test_the_lines_that_flow_grpo_users_copy(url):
    page = pages.DOCS / "trainers" / "flow_grpo.md"
    assert len([line for line in first_block(page).splitlines() if line]) <= 3
    names = program(page, "eval_reward_fn", url)
    photo = pages.ROOT / "examples" / "photo.jpg"
    rewards, _ = names["reward_fn"]([photo], ["red"], [{}], [photo], only_strict=True)
    assert len(rewards["avg"]) == 1
    names["reward_fn"].close()
    factory = program(page, "score_functions[", url)["score_functions"]["jrm"]
    assert "device" not in factory.__code__.co_varnames


def test_the_lines_that_trl_users_copy(url, monkeypatch, tmp_path):
    page = pages.DOCS / "trainers" / "trl.md"
    assert len([line for line in first_block(page).splitlines() if line]) <= 3
    photo = (pages.ROOT / "examples" / "photo.jpg").read_bytes()
    (tmp_path / "edits").mkdir()
    (tmp_path / "edits" / "cat.png").write_bytes(photo)
    monkeypatch.chdir(tmp_path)
    columns = {"completions": [" cat\n"], "instruction": ["red"], "completion_ids": [[1]]}
    for word in ("edits/", "def edit("):
        reward = program(page, word, url)["reward"]
        [value] = reward(prompts=["draw"], source=[photo], **columns)
        assert isinstance(value, float)


def test_the_lines_that_flow_factory_users_copy():
    [block] = pages.blocks(pages.DOCS / "trainers" / "flow-factory.md", "yaml")
    assert yaml.safe_load(block) == {
        "rewards": {
            "name": "jrm",
            "reward_model": "flow_factory.rewards.my_reward_remote.RemotePointwiseRewardModel",
            "server_url": LOCAL,
        }
    }


def test_the_row_of_an_openrlhf_data_set(url, monkeypatch):
    monkeypatch.setenv("JRM_URL", url)
    monkeypatch.setenv("JRM_EDITED", f"{__name__}:source_of_the_scene")
    monkeypatch.chdir(pages.ROOT)
    page = pages.DOCS / "trainers" / "openrlhf.md"
    [row] = map(json.loads, pages.blocks(page, "json"))
    reward_func = program(page, "def reward_func")["reward_func"]
    query = f"<|im_start|>user\n{row['input']}<|im_end|>\n<|im_start|>assistant\ncat"
    assert reward_func([query], ["another"], [row["label"]])["rewards"].shape == (1,)


def source_of_the_scene(completion):
    assert completion == "cat"
    return pages.ROOT / "examples" / "scene" / "source.png"
