"""What becomes of a request when the last device is lost, or has no memory left."""

import pytest

from jrm_service.errors import DeviceLost, InternalError, InvalidImage, NoMemory, NotReady, NoWorker
from jrm_service.scoring.outcomes import Outcome
from jrm_service.scoring.service import _without_device
from jrm_service.scoring.types import Score

GOOD = Score(1.0, None, {})
WAITING, ON_DEVICE = NoWorker("no worker is alive"), NoWorker("the worker died", on_device=True)
CROWDED = NoMemory("no memory left")
TWICE = InternalError("the worker died; this was already its retry")


def outcomes(*results) -> list[Outcome]:
    return [Outcome(result) for result in results]


def test_without_a_loss_nothing_changes():
    some = outcomes(GOOD, InvalidImage("x"), TWICE)
    assert _without_device(some) == some


@pytest.mark.parametrize(
    ("results", "refusal"),
    [
        ((GOOD, WAITING), NotReady),
        ((GOOD, CROWDED), NotReady),
        ((CROWDED, ON_DEVICE), DeviceLost),
        ((GOOD, WAITING, ON_DEVICE), DeviceLost),
        ((InvalidImage("x"), ON_DEVICE), DeviceLost),
    ],
)
def test_another_server_can_take_the_request(results, refusal):
    with pytest.raises(refusal):
        _without_device(outcomes(*results))


def test_a_candidate_that_was_lost_twice_keeps_the_request_here():
    kept = _without_device(outcomes(GOOD, TWICE, WAITING, ON_DEVICE, CROWDED))
    assert [type(outcome.result) for outcome in kept] == [Score, *[InternalError] * 4]
