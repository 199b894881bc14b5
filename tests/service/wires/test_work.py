"""What a body may cost: an image that is there once is read once, and what is too many is refused before it is read."""

import pickle
from collections import Counter

import pytest
from starlette.datastructures import Headers

from jrm_service.api.wire import Sent, Wire
from jrm_service.errors import InvalidRequest, PayloadTooLarge
from jrm_service.wires.kserve import KServeWire
from jrm_service.wires.pickles import loads
from jrm_service.wires.rewards import Rewards
from jrm_service.wires.routes import WIRES
from support import wire_bodies
from support.cases import each
from support.counting import calls
from support.pictures import encode, photo
from support.servers import FAKE_MODEL

SOURCE, EDITED = (encode(photo(8, 8, seed=n)) for n in range(2))
COUNT = 50
PAIRS = [wire_bodies.Pair(SOURCE, EDITED, f"edit {n}") for n in range(COUNT)]


def sent(*, max_candidates: int = COUNT, max_sources: int = 1) -> Sent:
    path = {"model": "jrm", "mode": "logits_non_cot"}
    return Sent(Headers(), path, bytearray(), FAKE_MODEL, max_candidates, 1_000_000, max_sources)


def tensor(name: str, values: list[str], shape: list[int] | None = None) -> dict:
    return {"name": name, "shape": shape or [len(values)], "datatype": "BYTES", "data": values}


def kserve(source: dict) -> dict:
    edits, instructions = [wire_bodies.b64(EDITED)] * COUNT, [pair.instruction for pair in PAIRS]
    return {"inputs": [source, tensor("edited", edits), tensor("instruction", instructions)]}


def content_of(wire: str, pairs: list[wire_bodies.Pair]) -> object:
    """A body as the wire reads it."""
    body = getattr(wire_bodies, wire.replace("-", "_"))(pairs)
    return loads(pickle.dumps(body)) if wire in ("edit-r1", "deepgen", "editscore") else body


def images_read(wire: Wire, content: object, sent: Sent) -> int:
    """How many images were decoded from their text, made a file, or hashed, whichever is more."""
    counted: Counter[str] = calls(lambda: wire.read(content, sent))
    return max(counted["read_base64"], counted["image_file"], counted["ImageInput.of"])


@each("wire", WIRES)
def test_too_many_candidates_are_refused_before_an_image_is_read(wire):
    served, content = WIRES[wire](Rewards()), content_of(wire, PAIRS)
    with pytest.raises(PayloadTooLarge, match="50 candidates in one request, the limit is 49"):
        served.read(content, sent(max_candidates=COUNT - 1))
    assert images_read(served, content, sent(max_candidates=COUNT - 1)) == 0
    assert images_read(served, content, sent()) > 0


def test_of_kserve_a_source_that_is_there_once_is_read_once():
    shared = kserve(tensor("source", [wire_bodies.b64(SOURCE)] * 3, [1, 3]))
    assert images_read(KServeWire(Rewards()), shared, sent(max_sources=3)) == 3 + COUNT


def test_of_kserve_too_many_sources_are_refused_before_one_is_read():
    many = kserve(tensor("source", [wire_bodies.b64(SOURCE)] * 200, [1, 200]))
    with pytest.raises(InvalidRequest, match="takes 1 to 3 source images, got 200"):
        KServeWire(Rewards()).read(many, sent(max_sources=3))
    assert images_read(KServeWire(Rewards()), many, sent(max_sources=3)) == 0
