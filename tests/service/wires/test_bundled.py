"""Every wire in front of the bundled checkpoint: its rewards are those of ``/v1/score`` for the same bytes."""

import math

import httpx
import pytest

from jrm_service.settings import Settings
from support import servers, wire_bodies
from support.cases import each
from support.pictures import encode, photo

PAIRS = [
    wire_bodies.Pair(encode(photo(96, 64, seed=0)), encode(photo(96, 64, seed=n)), "make the circle red")
    for n in range(1, 5)
]


@pytest.fixture(scope="module")
def server():
    with servers.serving(Settings(wires=wire_bodies.ALL), load=servers.parts_of) as url:
        yield url


@each("wire", wire_bodies.ALL.split(","))
def test_the_reward_is_that_of_our_own_route(wire, server):
    expected = wire_bodies.rewards_of_score(server, PAIRS)
    assert len(set(expected)) == len(PAIRS)
    assert wire_bodies.rewards_over(wire, server, PAIRS) == pytest.approx(expected, abs=1e-5)


def test_unirl_has_the_dimensions_beside_a_reward_that_is_their_mean(server):
    reply = httpx.post(f"{server}/score", json=wire_bodies.unirl(PAIRS[:1], names=["jrm-tiny"]), timeout=60).json()
    (metrics,) = [result["jrm-tiny"] for result in reply["results"]]
    assert list(metrics) == ["reward", "instruction_following", "visual_quality"]
    assert metrics["reward"] == pytest.approx(math.fsum(metrics.values()) / 3)


def test_execution_is_instruction_following(server):
    import pickle

    executed = wire_bodies.post_pickle(f"{server}/mode/score_execution", wire_bodies.edit_r1(PAIRS))
    groups = {"groups": [{"source": wire_bodies.b64(PAIRS[0].source), "instruction": PAIRS[0].instruction,
                          "edits": [wire_bodies.b64(pair.edited) for pair in PAIRS]}]}  # fmt: skip
    scores = httpx.post(f"{server}/v1/score", json=groups, timeout=60).json()["groups"][0]["scores"]
    expected = [score["dimensions"]["instruction_following"]["mean"] for score in scores]
    assert pickle.loads(executed.content)["scores"] == pytest.approx(expected, abs=1e-5)
