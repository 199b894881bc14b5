"""What a body may cost: an image that is there once is read once, and what is too many is refused before it is read."""

import json
import pickle
from collections import Counter

import pytest
from starlette.datastructures import Headers

from jrm_service.api.score_path import IncomingRequest, Wire
from jrm_service.errors import InvalidRequest, PayloadTooLarge
from jrm_service.wires.editscore import EditScoreWire
from jrm_service.wires.kserve import KServeWire
from jrm_service.wires.pickle_allowlist import PILState
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


def incoming(*, max_candidates: int = COUNT, max_sources: int = 1) -> IncomingRequest:
    path = {"model": "jrm", "mode": "logits_non_cot"}
    return IncomingRequest(Headers(), path, bytearray(), FAKE_MODEL, max_candidates, 1_000_000, max_sources)


def tensor(name: str, values: list[str], shape: list[int] | None = None) -> dict:
    return {"name": name, "shape": shape or [len(values)], "datatype": "BYTES", "data": values}


def kserve(source: dict) -> dict:
    edits, instructions = [wire_bodies.b64(EDITED)] * COUNT, [pair.instruction for pair in PAIRS]
    return {"inputs": [source, tensor("edited", edits), tensor("instruction", instructions)]}


def content_of(wire: str, pairs: list[wire_bodies.Pair]) -> object:
    """A body as the wire reads it."""
    body = getattr(wire_bodies, wire.replace("-", "_"))(pairs)
    return loads(pickle.dumps(body)) if wire in ("edit-r1", "deepgen", "editscore") else body


def images_read(wire: Wire, content: object, incoming: IncomingRequest) -> int:
    """How many images were decoded from their text, made a file, or hashed, whichever is more."""
    counted: Counter[str] = calls(lambda: wire.read(content, incoming))
    return max(counted["read_base64"], counted["image_file"], counted["ImageInput.of"])


@each("wire", WIRES)
def test_too_many_candidates_are_refused_before_an_image_is_read(wire):
    served, content = WIRES[wire](Rewards()), content_of(wire, PAIRS)
    with pytest.raises(PayloadTooLarge, match="50 candidates in one request, the limit is 49"):
        served.read(content, incoming(max_candidates=COUNT - 1))
    assert images_read(served, content, incoming(max_candidates=COUNT - 1)) == 0
    assert images_read(served, content, incoming()) > 0


def test_of_kserve_a_source_that_is_there_once_is_read_once():
    shared = kserve(tensor("source", [wire_bodies.b64(SOURCE)] * 3, [1, 3]))
    assert images_read(KServeWire(Rewards()), shared, incoming(max_sources=3)) == 3 + COUNT


def test_of_kserve_too_many_sources_are_refused_before_one_is_read():
    many = kserve(tensor("source", [wire_bodies.b64(SOURCE)] * 200, [1, 200]))
    with pytest.raises(InvalidRequest, match="takes 1 to 3 source images, got 200"):
        KServeWire(Rewards()).read(many, incoming(max_sources=3))
    assert images_read(KServeWire(Rewards()), many, incoming(max_sources=3)) == 0


class Text(str):
    """Counts how often it is read from one end to the other."""

    read = 0

    def isspace(self) -> bool:
        Text.read += 1
        return super().isspace()


@each("wire", ["edit-r1", "deepgen"])
def test_of_a_pickle_an_instruction_that_is_named_often_is_looked_at_once(wire):
    content = content_of(wire, PAIRS)
    content["prompts"] = [Text(" x" * 1000)] * COUNT
    Text.read = 0
    assert len(WIRES[wire](Rewards()).read(content, incoming()).groups) == 1
    assert Text.read == 1


def test_of_rerank_the_instruction_is_one_object_for_all_documents():
    content = content_of("rerank", PAIRS[:1])
    content["query"]["content"] += [{"type": "text", "text": "y" * 1000}]
    content["documents"] *= COUNT
    wire = WIRES["rerank"](Rewards())
    assert calls(lambda: wire.read(content, incoming()))["_Content.text"] == 1


@each("wire", ["edit-r1", "deepgen", "editscore"])
def test_of_a_pickle_an_object_that_is_named_often_is_read_once(wire):
    content = content_of(wire, PAIRS)  # in which pickle itself names the bytes of a file once
    if wire == "editscore":
        content["output_image"] = content["output_image"][:1] * COUNT
        content["input_images"] = [[content["input_images"][0][0]] for _ in range(COUNT)]
    served = WIRES[wire](Rewards())
    assert images_read(served, content, incoming()) == 2
    groups = served.read(content, incoming()).groups
    assert len(groups) == COUNT
    assert len({group.edits[0].name for group in groups}) == COUNT  # each is still told apart in messages


def test_of_editscore_a_document_that_is_named_often_is_parsed_once():
    content = content_of("editscore", PAIRS)
    content["meta_datas"] = content["meta_datas"][:1] * COUNT
    counted = calls(lambda: EditScoreWire(Rewards()).read(content, incoming()))
    assert counted["JSONDecoder.decode"] == 1
    content["meta_datas"] = [json.dumps({"instruction": "x"} | {f"{n}": n for n in range(5000)})] * COUNT
    with pytest.raises(InvalidRequest, match="5001 keys"):  # of which each candidate would get a copy
        EditScoreWire(Rewards()).read(content, incoming())


def test_of_editscore_pixels_that_are_there_once_make_one_file():
    content = content_of("editscore", PAIRS[:2])
    pixels = content["output_image"][0].state
    content["output_image"] = [PILState(tuple(pixels)), PILState((*pixels[:2], (4, 16), *pixels[3:]))]
    assert images_read(EditScoreWire(Rewards()), content, incoming()) == 3  # two sources and an edit
    with pytest.raises(InvalidRequest, match=r"output_image\[1\]: has its pixels in common"):
        EditScoreWire(Rewards()).read(content, incoming())


def test_of_editscore_images_of_one_byte_are_no_copies_of_each_other():
    content = content_of("editscore", PAIRS[:3])
    content["output_image"] = [PILState(({}, "L", (1, 1), None, bytes([7]))) for _ in range(3)]
    assert sum(len(group.edits) for group in EditScoreWire(Rewards()).read(content, incoming()).groups) == 3


def test_of_editscore_too_many_sources_are_refused_before_one_is_read():
    content = content_of("editscore", PAIRS)
    content["input_images"] = [content["input_images"][0] * 1000] * COUNT
    with pytest.raises(InvalidRequest, match="takes one source image, got 1000"):
        EditScoreWire(Rewards()).read(content, incoming())
    assert images_read(EditScoreWire(Rewards()), content, incoming()) == 0
