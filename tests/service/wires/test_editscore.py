"""EditScore: PIL images from a pickle, and lists as long as the edits."""

import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from jrm_service.errors import ImageTooLarge, InvalidImage
from jrm_service.images.decode import decode
from jrm_service.settings import Settings
from jrm_service.wires.pickle_allowlist import PILState
from jrm_service.wires.pickles import loads
from jrm_service.wires.pil_images import image_file
from support import servers, wire_bodies
from support.cases import each
from support.pictures import encode, photo, rotated_by_exif, transparent

MAX_PIXELS = 1_000_000


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


PICTURES = {
    "RGB": photo(31, 17),
    "L": photo(31, 17).convert("L"),
    "LA": photo(31, 17).convert("LA"),
    "1": photo(31, 17).convert("1"),
    "P": photo(31, 17).quantize(7),
    "RGBA": opened(transparent()).convert("RGBA"),
    "PNG file": opened(encode(photo(31, 17))),
    "JPEG file": opened(encode(photo(31, 17), "JPEG")),
    "WebP file": opened(encode(photo(31, 17), "WEBP")),
}


@each("name", PICTURES)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickled_image_has_the_pixels_of_its_file(name, protocol):
    state = loads(pickle.dumps(PICTURES[name], protocol))
    assert isinstance(state, PILState)
    ours = decode(image_file(state, max_pixels=MAX_PIXELS))
    saved = decode(encode(PICTURES[name].copy()))
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(saved))


def test_pixels_are_as_the_trainer_has_them_whatever_its_file_says():
    """A file's orientation was for whoever opened it."""
    image = opened(rotated_by_exif())
    state = loads(pickle.dumps(image))
    assert decode(image_file(state, max_pixels=MAX_PIXELS)).size == image.size


RGB = [{}, "RGB", (2, 2), None, bytes(12)]


@each(
    "state",
    [
        None,
        [],
        {},
        RGB[:4],
        [{}, "CMYK", (2, 2), None, bytes(16)],
        [{}, ["RGB"], (2, 2), None, bytes(12)],
        [{}, "RGB", (2, 3), None, bytes(12)],
        [{}, "RGB", (0, 2), None, b""],
        [{}, "RGB", (-2, -2), None, bytes(12)],
        [{}, "RGB", (2.0, 2), None, bytes(12)],
        [{}, "RGB", (True, 4), None, bytes(12)],
        [{}, "RGB", (2,), None, bytes(12)],
        [{}, "RGB", (2, 2), None, "x" * 12],
        [{}, "1", (9, 1), None, bytes(1)],
        [{}, "P", (2, 2), None, bytes(4)],
        [{}, "P", (2, 2), [256, 0, 0], bytes(4)],
        [{}, "P", (2, 2), [0, 0], bytes(4)],
        [{}, "P", (2, 2), [0] * 771, bytes(4)],
    ],
    ids=lambda state: str(state)[:60],
)
def test_a_state_that_is_none_is_an_invalid_image(state):
    with pytest.raises(InvalidImage):
        image_file(PILState(state), max_pixels=MAX_PIXELS)


def test_too_many_pixels_are_refused_before_anything_is_made_of_them():
    with pytest.raises(ImageTooLarge):
        image_file(PILState([{}, "1", (2**30, 2**30), None, b""]), max_pixels=MAX_PIXELS)


@pytest.fixture(scope="module")
def url():
    with servers.serving(Settings(backend="fake", wires="editscore")) as url:
        yield url


def test_every_list_is_as_long_as_the_edits(url):
    pairs = [
        wire_bodies.Pair(encode(photo(40, 40)), encode(photo(40, 40, seed=n)), "make it blue") for n in range(1, 4)
    ]
    reply = pickle.loads(wire_bodies.post_pickle(url, wire_bodies.editscore(pairs)).content)
    rewards = wire_bodies.rewards_of_score(url, pairs)
    assert reply["rewards"] == reply["strict_rewards"] == rewards
    assert reply["scores"] == [1.0 if reward >= 0.5 else 0.0 for reward in rewards]
    assert reply["reasoning"] == [""] * 3
    assert [meta["original_index"] for meta in reply["meta_data"]] == [0, 1, 2]
    assert [meta["id"] for meta in reply["meta_data"]] == ["0", "1", "2"]


@each(
    "changes",
    [
        {"meta_datas": ["no JSON"]},
        {"meta_datas": [json.dumps({"id": 1})]},
        {"meta_datas": ["[" * 50 + "]" * 50]},
        {"meta_datas": [{"instruction": "a dict"}]},
        {"input_images": [wire_bodies.picture(encode(photo(40, 40)))]},
        {"input_images": [[b"bytes"]]},
        {"input_images": [[]]},
        {"input_images": [[wire_bodies.picture(encode(photo(40, 40)))] * 2]},
        {"output_image": [b"bytes"]},
        {"output_image": wire_bodies.picture(encode(photo(40, 40)))},
        {"output_image": [], "input_images": [], "meta_datas": []},
    ],
    ids=lambda changes: str(changes)[:50],
)
def test_what_is_no_request_is_400(changes, url):
    pair = wire_bodies.Pair(encode(photo(40, 40)), encode(photo(40, 40, seed=1)), "make it blue")
    reply = wire_bodies.post_pickle(url, wire_bodies.editscore([pair]) | changes)
    assert reply.status_code == 400
    assert set(pickle.loads(reply.content)) == {"error"}
    assert "PILState" not in str(pickle.loads(reply.content))
