"""What all worker processes share: connecting to their server, ending with it, logging through it, and giving up."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from jrm_service.device.channel import Channel

    from .checkpoint import Checkpoint

logger = logging.getLogger(__name__)

DEVICE_LOST = 70
"""EX_SOFTWARE: the exit status of a worker whose device or engine is gone, which the server's log shows."""

_PR_SET_PDEATHSIG = 1


def connect() -> Channel:
    """Return the channel to the server that started this process as ``python -m MODULE FD PID``. Call it first.

    From then on the process ends with its server, however that ends, and its log goes through it.
    """
    descriptor, server = int(sys.argv[1]), int(sys.argv[2])
    end_with_parent()
    if os.getppid() != server:  # the server ended before the line above took effect
        os._exit(0)
    # A supervisor's SIGTERM may reach every process; the server drains, then ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end = socket.socket(fileno=descriptor)
    end.set_inheritable(False)

    from jrm_service.device.channel import Channel

    channel = Channel(end)
    _log_to(channel)
    return channel


def end_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends, even if this process is stopped. On other
    systems than Linux it ends when the channel closes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def require_same(checkpoint: Checkpoint, fingerprint: str | None) -> None:
    """Raise CheckpointError unless the checkpoint has the served ``fingerprint``; None: it is not known yet."""
    from jrm_service.errors import CheckpointError

    if fingerprint is not None and fingerprint != checkpoint.fingerprint:
        raise CheckpointError(
            [f"the checkpoint has become another: fingerprint {checkpoint.fingerprint}, not {fingerprint}"]
        )


def give_up(channel: Channel, error: Exception) -> NoReturn:
    """End a process that cannot start; if the checkpoint or the settings are at fault, send the problems first."""
    from jrm_service.device.channel import NotLoaded
    from jrm_service.errors import CheckpointError, ExplainSetupError

    if isinstance(error, CheckpointError | ExplainSetupError):
        channel.send(NotLoaded(error.problems))
    else:
        logger.error("loading failed", exc_info=error)
    os._exit(1)


def _log_to(channel: Channel) -> None:
    """Send log records to the server, which writes them in its own format; what C code prints goes to stderr."""
    from jrm_service.device.channel import LogLine

    class ToServer(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with suppress(OSError):  # the server is gone, and so is this process in a moment
                channel.send(LogLine(record.name, record.levelno, self.format(record)))

    handler = ToServer()
    handler.setFormatter(logging.Formatter())  # the message, followed by a traceback
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(True)
