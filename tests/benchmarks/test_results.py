"""Measurements survive the file, and a layout can be measured again without the others."""

from benchmarks.results import Measured, read, save

from jrm_service.bench.rounds import Rates
from jrm_service.bench.server import Load


def measured(rate: float) -> Measured:
    rates = Rates([{"a": rate, "b": 2 * rate}, {"a": rate, "b": 3 * rate}])
    return Measured(rates, rates, rates, [Load(2, [0.5, -0.25], [0.1, 0.3], 0.4)])


def test_what_is_read_is_what_was_saved(tmp_path):
    save({"paper": measured(1.0)}, tmp_path / "new" / "file.json")
    found = read(tmp_path / "new" / "file.json")
    assert found == {"paper": measured(1.0)}
    assert found["paper"].loads[0].rate == 5


def test_other_layouts_stay(tmp_path):
    file = tmp_path / "file.json"
    save({"paper": measured(1.0), "short": measured(2.0)}, file)
    save({"paper": measured(3.0)}, file)
    assert read(file) == {"short": measured(2.0), "paper": measured(3.0)}
