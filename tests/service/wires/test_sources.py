"""Several source images and none, over the wires whose clients send as many as they have."""

import pickle

import httpx
import pytest

from jrm_service.scoring.fakes import FakePreparer
from jrm_service.settings import Settings
from support import servers, wire_bodies
from support.cases import each
from support.pictures import encode, photo

FIRST, SECOND, EDITED = (encode(photo(40, 40, seed=n)) for n in range(3))
PAIR = wire_bodies.Pair(FIRST, EDITED, "put the hat on the dog")
SETTINGS = Settings(backend="fake", wires=wire_bodies.ALL)


def tensors(*changed: dict) -> dict:
    kept = wire_bodies.kserve([PAIR])["inputs"][1:]
    return {"inputs": [*changed, *kept]}


def requests(sources: list[bytes]) -> dict[str, tuple[str, dict]]:
    """Route and body of each wire that can say so many sources."""
    images = [wire_bodies.b64(source) for source in sources]
    turns = [{"text": PAIR.instruction, "image_b64": image} for image in (*images, wire_bodies.b64(EDITED))]
    source = {"name": "source", "shape": [1, len(images)], "datatype": "BYTES", "data": images}
    part = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}} for image in images]
    text = {"type": "text", "text": PAIR.instruction}
    bodies = {
        "unirl": ("/score", {"requests": [{"history": turns, "required_rewards": ["jrm"]}]}),
        "flow-factory": ("/compute", wire_bodies.flow_factory([PAIR]) | {"condition_images": [images]}),
        "kserve": ("/v2/models/jrm/infer", tensors(source) if images else tensors()),
        "rerank": ("/v1/rerank", wire_bodies.rerank([PAIR]) | {"query": {"content": [*part, text]}}),
        "editscore": (
            "/",
            wire_bodies.editscore([PAIR]) | {"input_images": [[wire_bodies.picture(source) for source in sources]]},
        ),
    }
    if not sources:
        bodies["edit-r1"] = ("/mode/logits_non_cot", wire_bodies.edit_r1([PAIR]) | {"ref_images": None})
        bodies["deepgen"] = ("/", wire_bodies.deepgen([PAIR]) | {"images": {"edited": [EDITED]}})
    return bodies


def ask(url: str, wire: str, sources: list[bytes]) -> tuple[int, dict]:
    route, body = requests(sources)[wire]
    if wire in ("edit-r1", "deepgen", "editscore"):
        reply = wire_bodies.post_pickle(f"{url}{route}", body)
        return reply.status_code, pickle.loads(reply.content)
    reply = httpx.post(f"{url}{route}", json=body, timeout=60)
    return reply.status_code, reply.json()


def reward_of(wire: str, reply: dict) -> float:
    match wire:
        case "unirl":
            return reply["results"][0]["jrm"]["reward"]
        case "kserve":
            return reply["outputs"][0]["data"][0]
        case "rerank":
            return reply["results"][0]["relevance_score"]
        case "edit-r1" | "deepgen":
            return reply["scores"][0]
        case _:
            return reply["rewards"][0]


def served(most: int):
    """A server whose checkpoint takes so many sources at most."""
    return servers.serving(SETTINGS, load=lambda: servers.fake_parts(preparer=FakePreparer(max_sources=most)))


@each(("most", "sources"), [(3, [FIRST, SECOND]), (3, [SECOND, FIRST]), (0, [])], ids=["two", "two, turned", "none"])
def test_the_reward_is_that_of_our_own_route(most, sources):
    images = [wire_bodies.b64(source) for source in sources]
    body = {"edited": wire_bodies.b64(EDITED), "instruction": PAIR.instruction} | ({"source": images} if images else {})
    with served(most) as url:
        (score,) = httpx.post(f"{url}/v1/score", json=body).json()["groups"][0]["scores"]
        for wire in requests(sources):
            status, reply = ask(url, wire, sources)
            assert status == 200, (wire, reply)
            assert reward_of(wire, reply) == score["reward"], wire


@each("nothing", [{"edited": [EDITED]}, {"edited": [EDITED], "source": None}, {"edited": [EDITED], "source": []}])
def test_of_deepgen_a_source_that_is_null_is_none(nothing):
    with served(0) as url:
        reply = wire_bodies.post_pickle(url, wire_bodies.deepgen([PAIR]) | {"images": nothing})
        assert reply.status_code == 200, reply.content


@pytest.mark.parametrize(("most", "sources"), [(1, [FIRST, SECOND]), (1, []), (0, [FIRST]), (2, [FIRST] * 3)])
def test_what_the_checkpoint_does_not_take_is_refused(most, sources):
    with served(most) as url:
        for wire in requests(sources):
            status, reply = ask(url, wire, sources)
            assert status == (200 if wire == "flow-factory" else 400), (wire, reply)
            assert "source image" in str(reply), (wire, reply)
