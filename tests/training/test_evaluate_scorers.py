"""Real scorers: a tiny checkpoint with random weights in this process, and behind a real server."""

import pytest
from PIL import Image

from jrm_client import APIConnectionError, Backoff, JRMClient
from jrm_service.scoring.backend import WorkerLost
from jrm_service.scoring.fakes import FakeBackend, FakePreparer, NaNBackend, RaisingBackend
from jrm_service.scoring.types import Score
from jrm_service.settings import Settings
from jrm_training.data import Edit, Group
from jrm_training.evaluate_results import EvaluationError, Failed
from jrm_training.evaluate_scorers import BackendScorer, Pooling, ServerScorer, open_scorer
from support import checkpoints, servers
from support.pictures import photo

THIN = Image.new("RGB", (1, 300))  # an aspect ratio that no model takes


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return checkpoints.write(tmp_path_factory.mktemp("tiny"), checkpoints.weighted(checkpoints.one_pass()))


@pytest.fixture(scope="module")
def local(checkpoint):
    return open_scorer(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def remote(checkpoint):
    with servers.serving(Settings(checkpoint=checkpoint, device="cpu")) as url, JRMClient(url) as client:
        yield ServerScorer(client)


def group(*edits, instruction="make it blue") -> Group:
    return Group(photo(64, 48), instruction, tuple(Edit(edit) for edit in edits))


def test_both_know_the_same_checkpoint(local, remote):
    for name in ("model", "fingerprint", "dimensions", "pooling"):
        assert getattr(local, name) == getattr(remote, name)
    assert local.pooling.weights == {"instruction_following": 3.0, "visual_quality": 0.5}


def test_both_give_the_same_scores(local, remote):
    edits = group(*(photo(64, 48, seed=n) for n in range(4)))
    for ours, theirs in zip(local.score(edits), remote.score(edits), strict=True):
        assert isinstance(ours, Score)
        assert ours.reward == pytest.approx(theirs.reward, abs=1e-5)
        assert ours.reward_std == pytest.approx(theirs.reward_std, abs=1e-5)
        assert list(ours.dimensions) == list(theirs.dimensions)


@pytest.mark.parametrize("scorer", ["local", "remote"])
def test_a_failed_edit_leaves_the_others_alone(scorer, request):
    good, bad, last = request.getfixturevalue(scorer).score(group(photo(), THIN, photo(seed=1)))
    assert isinstance(good, Score)
    assert isinstance(last, Score)
    assert isinstance(bad, Failed)
    assert bad.code == "image_too_large"


@pytest.mark.parametrize("scorer", ["local", "remote"])
def test_an_instruction_that_is_too_long_fails_every_edit(scorer, request):
    long = group(photo(), photo(seed=1), instruction="z" * 9000)
    assert [outcome.code for outcome in request.getfixturevalue(scorer).score(long)] == ["instruction_too_long"] * 2


def faked(backend) -> BackendScorer:
    names = ("instruction_following", "visual_quality")
    pooling = Pooling("mean", dict.fromkeys(names, 1.0))
    return BackendScorer(FakePreparer(), backend, model="f", fingerprint="f", dimensions=names, pooling=pooling)


def thin(candidate) -> bool:
    return candidate.edited.pixels.shape[1] < 20


MIXED = group(*(photo(width, 48) for width in (64, 16, 80, 96, 17)))


def test_only_the_edits_that_make_the_backend_raise_fail():
    outcomes = faked(RaisingBackend(FakeBackend(), when=thin)).score(MIXED)
    assert [isinstance(outcome, Failed) for outcome in outcomes] == [False, True, False, False, True]
    assert outcomes[1].code == "internal"
    assert [outcomes[n] for n in (0, 2, 3)] == [faked(FakeBackend()).score(MIXED)[n] for n in (0, 2, 3)]


def test_a_number_that_is_not_finite_is_a_failure():
    outcomes = faked(NaNBackend(FakeBackend(), when=thin)).score(MIXED)
    assert [getattr(outcome, "code", "ok") for outcome in outcomes] == [
        "ok",
        "non_finite_score",
        "ok",
        "ok",
        "non_finite_score",
    ]


def test_a_lost_device_ends_the_run():
    with pytest.raises(WorkerLost):
        faked(RaisingBackend(FakeBackend(), error=WorkerLost)).score(MIXED)


def test_a_fake_server_cannot_be_evaluated():
    with (
        servers.serving() as url,
        JRMClient(url) as client,
        pytest.raises(EvaluationError, match="names no dimensions"),
    ):
        ServerScorer(client)


def test_a_server_that_is_away_is_an_error_of_the_run():
    client = JRMClient("http://127.0.0.1:9", max_retries=0, backoff=Backoff(first=0.001, most=0.002))
    with client, pytest.raises(APIConnectionError):
        ServerScorer(client)


def test_labels_are_pooled_as_means_are():
    labels = {"a": 4.0, "b": 1.0, "c": 9.0}
    assert Pooling("mean", {"a": 3.0, "b": 1.0}).label(labels) == 3.25
    assert Pooling("min", {"a": 3.0, "b": 1.0}).label(labels) == 1.0
