"""Which device a name means, and what becomes of an exception on a device that is gone."""

import pytest
import torch

from jrm_service.errors import CheckpointError
from jrm_service.model.devices import answers, on_device, resolve_device
from jrm_service.scoring.backend import WorkerLost


def test_auto_is_a_device_that_is_there():
    assert resolve_device("auto") == ("cuda:0" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["meta", "mps", "gpu", "cpu:3", "cuda:99", "cuda:x", ""])
def test_what_is_not_there_is_refused(name):
    with pytest.raises(CheckpointError, match=f"device '{name}'"):
        resolve_device(name)


def test_the_cpu_answers():
    assert answers("cpu")
    assert not answers("cuda:99")


def test_an_error_on_a_living_device_stays_what_it_is():
    with pytest.raises(ValueError, match="a bug"), on_device("cpu"):
        raise ValueError("a bug")


@pytest.mark.parametrize(
    "error", [RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED"), torch.AcceleratorError("CUDA error")]
)
def test_an_error_on_a_dead_device_is_a_lost_worker(error):
    """A library on a dead device raises what it likes; the device itself is asked."""
    with pytest.raises(WorkerLost, match="cuda:0 is lost"), on_device("cuda:0", still_there=lambda device: False):
        raise error
