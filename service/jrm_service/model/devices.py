"""Devices: which one a name means, and whether one is still there."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch

from jrm_service.errors import CheckpointError
from jrm_service.scoring.backend import OutOfMemory, WorkerLost

# A lack of memory has a type of its own only where torch's allocator finds it first.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "STATUS_ALLOC_FAILED")


def resolve_device(name: str) -> str:
    """``auto`` is the first GPU, or the CPU without one. Raises CheckpointError for a device that is not there."""
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
    """For this process: float32 is float32 on a GPU, too.

    cuDNN's convolutions round it to 10 bits (TF32) unless told otherwise, and products where a library has allowed it:
    golden scores were off by 9e-4 on an H100.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def _run_a_little(device: str) -> None:
    torch.zeros(1, device=device).add_(1).item()


def answers(
    device: str,
    run: Callable[[str], object] = _run_a_little,
    wait: Callable[[str], object] = torch.cuda.synchronize,
) -> bool:
    """Whether a device still runs work. After a sticky error every call on it fails.

    One whose memory is full to the last byte, maybe with what other processes hold, cannot ``run`` anything new; it
    still answers when it is waited for.
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
    """What this process holds of a GPU's memory through torch; 0 on a CPU, whose memory is the host's own."""
    return torch.cuda.memory_reserved(device) if device.startswith("cuda") else 0


def move_weights(module: torch.nn.Module, device: str) -> None:
    """Move every parameter and buffer, bit for bit; on the host they are pinned where a GPU is what they come from."""

    def there(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device == torch.device(device):
            return tensor
        pinned = device == "cpu" and tensor.is_cuda
        return torch.empty_like(tensor, device=device, pin_memory=pinned).copy_(tensor)

    replace_tensors(module, there)


def replace_tensors(module: torch.nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Put what ``change`` makes of each parameter's data and each buffer in its place; what is shared stays shared."""
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
    """Move weights to the host, and give back to a GPU all that torch keeps of it: nothing there may be in use."""
    for module in modules:
        move_weights(module, "cpu")
    if device.startswith("cuda"):
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()


def bring_back(modules: Sequence[torch.nn.Module], device: str) -> None:
    """Move weights back, and give back the pinned memory that they had, which torch would keep for later copies."""
    for module in modules:
        move_weights(module, device)
    if device.startswith("cuda"):
        empty_host_cache()


def empty_host_cache(accelerator: Any = torch.accelerator, private: Any = torch._C) -> None:
    """Give back pinned memory that nothing uses. Until 2.11, torch had no public name for it."""
    empty = getattr(accelerator, "empty_host_cache", None) or private._host_emptyCache
    empty()


def release_memory(device: str) -> None:
    """Give back to a GPU what torch keeps of it and nothing uses, so that what comes next finds room in one piece."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


class GPUMemory:
    """Implements ``DeviceMemory`` for a GPU; ``spared`` is the share of its memory that another process takes later.

    One at a time on a device: the height is counted by torch, for the whole process.
    """

    def __init__(self, device: str, spared: float = 0.0) -> None:
        self._device = device
        self._spared = spared

    def free(self) -> int:
        """Bytes that the driver has left, beyond what is spared; no more than is left of this process's share."""
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self._device)
        allowed = int(total * torch.cuda.get_per_process_memory_fraction(self._device))
        return min(free - int(total * self._spared), allowed - torch.cuda.memory_reserved(self._device))

    def peak(self, run: Callable[[], object]) -> int:
        """Bytes that torch's tensors take at the height of ``run``, beyond those that are there now."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        run()
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_allocated(self._device) - before


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was asked for that is not there, on a GPU or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


@contextmanager
def on_device(device: str, still_there: Callable[[str], bool] = answers) -> Iterator[None]:
    """Run model code: what it raises becomes WorkerLost if the device no longer answers, OutOfMemory if it was that.

    The error's own type says too little: a library on a dead device raises RuntimeError as for a bug, and a lack of
    memory, after which the device is fine, may come as an accelerator error.
    """
    try:
        yield
    except Exception as error:
        out_of_memory = is_out_of_memory(error)
        if out_of_memory:
            # The tensors of the frames that failed: without them, what is tried next finds the room that it needs.
            traceback.clear_frames(error.__traceback__)
            with suppress(Exception):  # on a dead device this fails as well, and that is asked next
                release_memory(device)
        if not still_there(device):
            raise WorkerLost(f"{device} is lost") from error
        if out_of_memory:
            raise OutOfMemory(f"{device} has too little memory for the batch") from error
        raise
