"""Ratios are taken within a round."""

import pytest

from jrm_service.bench.rounds import Rates

RATES = Rates([{"a": 1.0, "b": 2.0}, {"a": 10.0, "b": 30.0}, {"a": 4.0, "b": 4.0}])


def test_a_slow_round_slows_everybody_and_moves_no_ratio():
    assert RATES.rate("b") == 4.0
    assert RATES.ratios("b", "a") == [2.0, 3.0, 1.0]
    assert RATES.ratio("b", "a") == 2.0


def test_the_table_gives_ratios_to_each_base():
    last = RATES.table("who", "a", "b").splitlines()[-1]
    assert [cell.strip() for cell in last.split("|")[1:-1]] == ["b", "4.00", "2.00", "1.00", "1.00-3.00"]


def test_every_other_round_goes_backwards():
    order = []
    turns = {name: lambda name=name: order.append(name) or [name] for name in "abc"}
    rates = Rates()
    rates.run(turns)
    rates.run(turns)
    assert order == ["a", "b", "c", "c", "b", "a"]
    assert rates.names == ["a", "b", "c"]


def test_what_is_counted_is_what_was_scored():
    rates = Rates()
    rates.run({"one": lambda: [0.5], "none": list})
    assert rates.rate("one") > 0
    assert rates.rate("none") == pytest.approx(0)


def test_who_ran_by_itself_is_added_round_by_round():
    rates = Rates([{"a": 1.0, "c": 2.0}, {"a": 2.0, "c": 3.0}])
    rates.add("b", [4.0, 2.0])
    assert rates.names == ["a", "b", "c"]
    assert rates.ratios("b", "a") == [4.0, 1.0]
    with pytest.raises(ValueError, match="shorter"):
        rates.add("d", [1.0])
