"""What keeps a server from explaining is said before anything is started."""

import pytest

from jrm_service.app import create_app
from jrm_service.errors import ExplainSetupError
from jrm_service.settings import Settings
from support import checkpoints


def problems(**settings) -> str:
    with pytest.raises(ExplainSetupError) as raised:
        create_app(Settings(device="cpu", **settings))
    return "\n".join(raised.value.problems)


def test_a_cache_that_cannot_fit_is_refused_with_the_arithmetic():
    told = problems(serve="score,explain", explain_cache_gib=1e6)
    assert "1000000.00 GiB (explain_cache_gib)" in told
    assert "GiB of memory are free" in told


def test_a_cache_too_small_for_one_sequence_is_refused():
    assert "one sequence of 2048 tokens needs 0.01 GiB" in problems(serve="explain", explain_cache_gib=0.001)


def test_a_fake_has_no_language_head():
    assert "--backend fake has no language head" in problems(serve="explain", backend="fake")


def test_a_checkpoint_that_explains_nothing(tmp_path):
    path = checkpoints.write(tmp_path, checkpoints.one_pass() | {"explain": {}})
    assert "has no 'explain'" in problems(serve="explain", checkpoint=path)
