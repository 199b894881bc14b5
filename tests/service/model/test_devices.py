"""Which device a name means, and what becomes of an exception on a device that is gone."""

import weakref

import pytest
import torch

from jrm_service.errors import CheckpointError
from jrm_service.model.devices import is_out_of_memory, is_responsive, on_device, resolve_device
from jrm_service.scoring.backend import OutOfMemory, WorkerLost


def test_auto_is_a_device_that_is_there():
    assert resolve_device("auto") == ("cuda:0" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["meta", "mps", "gpu", "cpu:3", "cuda:99", "cuda:x", ""])
def test_what_is_not_there_is_refused(name):
    with pytest.raises(CheckpointError, match=f"device '{name}'"):
        resolve_device(name)


def test_the_cpu_answers():
    assert is_responsive("cpu")
    assert not is_responsive("cuda:99")


def test_a_device_without_a_byte_left_answers_and_a_dead_one_does_not():
    """Whoever fills a device, maybe another process, does not break it."""

    def full(_device):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")

    def dead(_device):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def well(_device):
        pass

    for run, wait, expected in [(well, dead, True), (full, well, True), (full, dead, False), (dead, well, False)]:
        assert is_responsive("cuda:0", run, wait) == expected, (run, wait)
    with pytest.raises(OutOfMemory), on_device("cuda:0", still_there=lambda device: is_responsive(device, full, well)):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


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


def test_a_cpu_that_runs_out_of_memory_says_so():
    with pytest.raises(OutOfMemory, match="cpu has too little memory"), on_device("cpu"):
        torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_a_lack_of_memory_has_many_types(error):
    assert is_out_of_memory(error)
    with pytest.raises(OutOfMemory), on_device("cpu"):
        raise error


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), ValueError("out of memory"), KeyError("x")])
def test_a_bug_is_no_lack_of_memory(error):
    assert not is_out_of_memory(error)


def test_a_dead_device_is_not_merely_out_of_memory():
    with pytest.raises(WorkerLost), on_device("cuda:0", still_there=lambda device: False):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_dead_device_is_told_even_where_its_memory_cannot_be_given_back(monkeypatch):
    def dead():
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "empty_cache", dead)
    with pytest.raises(WorkerLost), on_device("cuda:0", still_there=lambda device: False):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_what_the_failed_batch_held_is_released_before_the_next_is_tried():
    class Tensor:
        """Something that can be watched."""

    def fail(held):
        held.append(weakref.ref(tensor := Tensor()))
        assert tensor
        raise MemoryError

    held = []
    with pytest.raises(OutOfMemory) as caught, on_device("cpu"):
        fail(held)
    assert caught.value.__cause__ is not None  # the traceback is still there, for the log
    assert held[0]() is None
