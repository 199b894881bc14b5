"""Scores as bytes: exact, and nothing but a score is one."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jrm_service.scoring import score_format
from jrm_service.scoring.types import Dimension, Score

KEY = b"k" * 32
FINITE = st.floats(allow_nan=False, allow_infinity=False)
STD = st.none() | FINITE
SCORES = st.builds(
    Score,
    FINITE,
    STD,
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.builds(Dimension, FINITE, STD)),
)
SCORE = Score(0.1, None, {"visual_quality": Dimension(1 / 3, 2.5)})


def forged(document: object) -> bytes:
    """What somebody might write who knows the format but not its rules."""
    body = json.dumps(document).encode()
    return score_format._FORMAT + score_format._digest(KEY, body) + body


@given(score=SCORES)
def test_every_float_comes_back_bit_for_bit(score: Score) -> None:
    back = score_format.decode(KEY, score_format.encode(KEY, score))
    assert repr(back) == repr(score)  # tells -0.0 from 0.0
    assert back == score
    assert list(back.dimensions) == list(score.dimensions)


@given(place=st.integers(0), flip=st.integers(1, 255))
def test_a_damaged_byte_is_not_a_score(place: int, flip: int) -> None:
    value = bytearray(score_format.encode(KEY, SCORE))
    value[place % len(value)] ^= flip
    with pytest.raises(ValueError, match="not a score of this key"):
        score_format.decode(KEY, bytes(value))


@given(value=st.binary(max_size=200))
def test_garbage_is_not_a_score(value: bytes) -> None:
    with pytest.raises(ValueError, match="not a score"):
        score_format.decode(KEY, value)


def test_the_score_of_another_key_is_not_this_ones() -> None:
    with pytest.raises(ValueError, match="not a score of this key"):
        score_format.decode(b"other", score_format.encode(KEY, SCORE))


def test_another_format_is_not_read() -> None:
    with pytest.raises(ValueError, match="not a score of this key"):
        score_format.decode(KEY, b"JRM2" + score_format.encode(KEY, SCORE)[4:])


def test_other_dimensions_are_not_the_checkpoints() -> None:
    value = score_format.encode(KEY, SCORE)
    assert score_format.decode(KEY, value, ["visual_quality"]) == SCORE
    for names in ([], ["instruction_following"], ["visual_quality", "instruction_following"]):
        with pytest.raises(ValueError, match="other dimensions"):
            score_format.decode(KEY, value, names)


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"reward": 1.0, "reward_std": None},
        {"reward": None, "reward_std": None, "dimensions": {}},
        {"reward": "1.0", "reward_std": None, "dimensions": {}},
        {"reward": True, "reward_std": None, "dimensions": {}},
        {"reward": math.nan, "reward_std": None, "dimensions": {}},
        {"reward": 1.0, "reward_std": math.inf, "dimensions": {}},
        {"reward": 1.0, "reward_std": None, "dimensions": {"x": [1.0]}},
        {"reward": 1.0, "reward_std": None, "dimensions": {"x": [math.nan, 1.0]}},
        {"reward": 1.0, "reward_std": None, "dimensions": {"x": [1.0, [1.0]]}},
        {"reward": 1.0, "reward_std": None, "dimensions": [["x", 1.0, 1.0]]},
    ],
)
def test_what_has_the_right_digest_must_still_be_a_score(document: object) -> None:
    with pytest.raises(ValueError, match="not"):
        score_format.decode(KEY, forged(document))


def test_a_score_that_is_not_finite_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        score_format.encode(KEY, Score(math.nan, None, {}))
