"""What the metrics tell about rewards: their distribution, groups without spread, and what made them."""

import base64

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from jrm_service.scoring.fakes import FakeBackend, NaNBackend
from jrm_service.scoring.types import Dimension, Score
from support import servers
from support.pictures import encode, photo

SOURCE, *EDITS = (base64.b64encode(encode(photo(40, 40, seed=n))).decode() for n in range(5))


def read(url: str) -> dict[tuple[str, ...], float]:
    """Sample name and label values -> value."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}


def ask(url: str, *edits: str, instruction: str = "x") -> list[dict]:
    """The scores of one group."""
    request = {"groups": [{"source": SOURCE, "instruction": instruction, "edits": list(edits)}]}
    reply = httpx.post(f"{url}/v1/score", json=request, timeout=60)
    assert reply.status_code == 200, reply.text
    return reply.json()["groups"][0]["scores"]


class ConstantBackend(FakeBackend):
    """Thinks the same of every edit."""

    def score(self, batch):
        scored = super().score(batch)
        scored.outcomes[:] = [Score(-0.5, None, {"quality": Dimension(-0.5, None)})] * len(scored.outcomes)
        return scored


def test_every_score_counts_cached_or_not_and_no_error_does():
    backend = NaNBackend(FakeBackend(), when=lambda candidate: candidate.instruction == "nan")
    with servers.serving(load=lambda: servers.fake_parts(backend)) as url:
        first = ask(url, *EDITS[:2], "!!!")
        again = ask(url, *EDITS[:2])
        httpx.post(f"{url}/v1/score", json={"source": SOURCE, "edited": EDITS[0], "instruction": "nan"})
        counted = read(url)
    assert [score["cached"] for score in again] == [True, True]
    rewards = [score["reward"] for score in (*first[:2], *again)]
    assert counted["jrm_reward_count", ""] == len(rewards)
    total = (
        counted["jrm_reward_magnitude_total", "", "positive"] - counted["jrm_reward_magnitude_total", "", "negative"]
    )
    assert total == pytest.approx(sum(rewards))
    assert counted["jrm_reward_squares_total", ""] == pytest.approx(sum(reward**2 for reward in rewards))
    for dimension in first[0]["dimensions"]:
        assert counted["jrm_reward_count", dimension] == len(rewards)


def test_groups_are_told_apart_by_their_spread():
    with servers.serving(load=lambda: servers.fake_parts(ConstantBackend())) as url:
        ask(url, *EDITS)
        ask(url, EDITS[0])
        ask(url, EDITS[0], "!!!")
        counted = read(url)
    assert counted["jrm_groups_total", "zero"] == 1
    assert counted["jrm_groups_total", "some"] == 0
    with servers.serving() as url:
        ask(url, *EDITS)
        ask(url, EDITS[0], EDITS[0])
        counted = read(url)
    assert counted["jrm_groups_total", "zero"] == 1
    assert counted["jrm_groups_total", "some"] == 1
    assert counted["jrm_group_reward_std_count",] == 2


def test_the_model_and_what_it_runs_on_are_named(tiny_server):
    info = httpx.get(f"{tiny_server}/v1/info").json()
    versions = info["versions"] | {"version": info["versions"]["jrm-serve"]}
    counted = read(tiny_server)
    build, model = ({key[1:] for key in counted if key[0] == f"jrm_{what}_info"} for what in ("build", "model"))
    assert build == {tuple(versions[name] for name in sorted(("version", "python", "torch", "transformers")))}
    assert model == {tuple(info[name] for name in sorted(("model", "fingerprint", "device", "dtype", "engine")))}
