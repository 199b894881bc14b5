"""Devices: resolving names, checking that a device still answers, moving weights, and measuring GPU memory."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch

from jrm_service.errors import CheckpointError
from jrm_service.scoring.backend import OutOfMemory, WorkerLost

# Out of memory has an exception type of its own only when torch's allocator notices it first.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "STATUS_ALLOC_FAILED")


def resolve_device(name: str) -> str:
    """``auto`` is the first GPU, or the CPU without one. Raises CheckpointError for a device that does not exist."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda:0" if gpus else "cpu"
    if name == "cpu":
        return name
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if match is None:
        raise CheckpointError([f"device '{name}': not a device name; use auto, cpu or cuda:0"])
    index = int(match[1] or 0)
    if index >= gpus:
        raise CheckpointError([f"device '{name}': torch sees {gpus} GPUs here; use --device cpu or check the driver"])
    return f"cuda:{index}"


def use_full_float32() -> None:
    """Make float32 mean float32 on GPUs, for this process.

    By default cuDNN's convolutions round it to 10 bits (TF32), and so do matrix products if a library has allowed it:
    golden scores were off by 9e-4 on an H100.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def _run_a_little(device: str) -> None:
    torch.zeros(1, device=device).add_(1).item()


def is_responsive(
    device: str,
    run: Callable[[str], object] = _run_a_little,
    wait: Callable[[str], object] = torch.cuda.synchronize,
) -> bool:
    """Whether a device still runs work. After a sticky error every call on it fails.

    A device whose memory is completely full, perhaps by other processes, cannot ``run`` anything new, but it still
    answers ``wait``.
    """
    if device == "cpu":
        return True
    try:
        try:
            run(device)
        except Exception as error:
            if not is_out_of_memory(error):
                return False
            wait(device)
    except Exception:  # whatever the driver raises: it did not answer
        return False
    return True


def device_bytes(device: str) -> int:
    """The GPU memory that this process holds through torch; 0 on a CPU, whose memory is the host's."""
    return torch.cuda.memory_reserved(device) if device.startswith("cuda") else 0


def move_weights(module: torch.nn.Module, device: str) -> None:
    """Move every parameter and buffer, bit for bit; those that move from a GPU to the host get pinned memory."""

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device == torch.device(device):
            return tensor
        pinned = device == "cpu" and tensor.is_cuda
        return torch.empty_like(tensor, device=device, pin_memory=pinned).copy_(tensor)

    replace_tensors(module, moved)


def replace_tensors(module: torch.nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Replace each parameter's data and each buffer by the result of ``change``; shared tensors stay shared."""
    changed: dict[torch.Tensor, torch.Tensor] = {}  # by identity
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.data = change(parameter.data)
        for owner in list(module.modules()):
            for name, buffer in list(owner.named_buffers(recurse=False, remove_duplicate=False)):
                if buffer not in changed:
                    changed[buffer] = change(buffer)
                setattr(owner, name, changed[buffer])


def put_away(modules: Sequence[torch.nn.Module], device: str) -> None:
    """Move weights to the host, and free all GPU memory that torch holds: none of it may be in use."""
    for module in modules:
        move_weights(module, "cpu")
    if device.startswith("cuda"):
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()


def bring_back(modules: Sequence[torch.nn.Module], device: str) -> None:
    """Move weights back, and free the pinned memory that they had, which torch would keep for later copies."""
    for module in modules:
        move_weights(module, device)
    if device.startswith("cuda"):
        empty_host_cache()


def empty_host_cache(accelerator: Any = torch.accelerator, private: Any = torch._C) -> None:
    """Give back pinned memory that nothing uses. Until 2.11, torch had no public name for it."""
    empty = getattr(accelerator, "empty_host_cache", None) or private._host_emptyCache
    empty()


def release_memory(device: str) -> None:
    """Free the GPU memory that torch holds but does not use, so that the next allocation finds room in one piece."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


class GPUMemory:
    """Implements ``DeviceMemory`` for a GPU; ``spared`` is the share of its memory that is left for another process.

    Use one at a time per device: torch counts the peak for the whole process.
    """

    def __init__(self, device: str, spared: float = 0.0) -> None:
        self._device = device
        self._spared = spared

    def free(self) -> int:
        """Free bytes of the device apart from the spared share, and at most the rest of this process's own share."""
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self._device)
        allowed = int(total * torch.cuda.get_per_process_memory_fraction(self._device))
        return min(free - int(total * self._spared), allowed - torch.cuda.memory_reserved(self._device))

    def peak(self, run: Callable[[], object]) -> int:
        """Peak bytes of torch's tensors during ``run``, beyond those that exist now."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        run()
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_allocated(self._device) - before


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU or the host was out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


@contextmanager
def on_device(device: str, still_there: Callable[[str], bool] = is_responsive) -> Iterator[None]:
    """Run model code: an error becomes WorkerLost if the device no longer answers, OutOfMemory if memory ran out.

    The error's own type is not enough: on a dead device a library raises RuntimeError, as for a bug, and being out of
    memory, after which the device is fine, may be reported as an accelerator error.
    """
    try:
        yield
    except Exception as error:
        out_of_memory = is_out_of_memory(error)
        if out_of_memory:
            # Free the tensors of the frames that failed, so that the next attempt has room.
            traceback.clear_frames(error.__traceback__)
            with suppress(Exception):  # on a dead device this fails as well, and that is asked next
                release_memory(device)
        if not still_there(device):
            raise WorkerLost(f"{device} is lost") from error
        if out_of_memory:
            raise OutOfMemory(f"{device} has too little memory for the batch") from error
        raise
