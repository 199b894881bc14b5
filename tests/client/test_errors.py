import pickle
import re

import pytest

from jrm_client import (
    APIConnectionError,
    APIResponseError,
    APIStatusError,
    APITimeoutError,
    CandidateError,
    Dimension,
    FingerprintMismatch,
    JRMError,
    Score,
    ScoreError,
    errors,
)

GOOD = Score(0.5, 0.1, {"quality": Dimension(0.5, 0.1)}, False, "m", "f")
BAD = CandidateError("edits[1]: truncated PNG", code="invalid_image", request_id="r-1")

ERRORS = [
    APIConnectionError("no reply", request_id="r-1"),
    APITimeoutError("too late"),
    APIStatusError("refused", status=429, code="overloaded", param="groups", request_id="r-1", retry_after=2.5),
    APIResponseError("nonsense", request_id="r-1"),
    FingerprintMismatch("another", replica="http://b", pinned="f00d", served="beef", request_id="r-1"),
    BAD,
    ScoreError({1: BAD}, [GOOD, None]),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_survive_pickling(error: JRMError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert copy.request_id == error.request_id
    assert {k: str(v) for k, v in vars(copy).items()} == {k: str(v) for k, v in vars(error).items()}


def test_one_base_class_catches_everything() -> None:
    assert all(isinstance(error, JRMError) for error in ERRORS)


def test_a_timeout_is_a_timeout_error() -> None:
    with pytest.raises(TimeoutError):
        raise APITimeoutError("too late")


def test_a_score_error_names_the_first_failure_and_keeps_the_scores() -> None:
    error = ScoreError({1: BAD}, [GOOD, None])
    assert "1 of 2" in str(error)
    assert "candidate 1: invalid_image: edits[1]: truncated PNG [request r-1]" in str(error)
    assert error.failed[1].code == "invalid_image"
    assert error.scores == [GOOD, None]
    assert error.request_id == "r-1"


def test_the_tree_names_every_error() -> None:
    drawn = re.findall(r"^[├└]── (\w+)", errors.__doc__ or "", re.MULTILINE)
    assert set(drawn) == {type(error).__name__ for error in ERRORS}
    assert set(drawn) == {kind.__name__ for kind in JRMError.__subclasses__()}
