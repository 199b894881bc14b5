import io

import numpy as np
import pytest
from benchmarks.encoding import WAYS, Wire, measure, report
from PIL import Image

from jrm_service.bench.rounds import Rates

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", WAYS)
def test_no_way_loses_anything(name):
    encode, _ = WAYS[name]
    data = encode(PIXELS.transpose(2, 0, 1).astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), PIXELS)


def test_every_way_is_measured_in_every_round():
    rates, sizes = measure(count=3, side=16, rounds=2)
    assert [list(one) for one in rates.rounds] == [list(WAYS)] * 2
    assert sizes["PPM (the default)"] == len(b"P6\n16 16\n255\n") + 3 * 16 * 16


def test_encoding_and_sending_add_up():
    text = report(Rates([{"a": 10.0, "b": 5.0}]), {"a": 1e6, "b": 5e5}, 100, [Wire(0.1)])
    first, second = (line.split("|")[2:-1] for line in text.splitlines()[2:])
    assert [float(cell) for cell in first[2:]] == [10.0, 10.0 + 8.0, 1.0]
    assert [float(cell) for cell in second[2:]] == [20.0, 20.0 + 4.0, 1.33]
