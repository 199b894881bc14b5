"""What every worker process does first and last: follow its server, log through it, and say why it gives up."""

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
"""EX_SOFTWARE: the exit status, which the server's log shows, of a worker whose device or engine is gone."""

_PR_SET_PDEATHSIG = 1


def connect() -> Channel:
    """The channel to the server that started this process as ``python -m MODULE FD PID``. Call it before all else.

    From here on the process ends with its server, whatever ends that, and its log goes through it.
    """
    descriptor, server = int(sys.argv[1]), int(sys.argv[2])
    end_with_parent()
    if os.getppid() != server:  # it ended before it could be followed
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
    """Be killed when the thread that started this process ends. The kernel sees to it even when this process is
    stopped; elsewhere than on Linux the end of the channel is the signal."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def require_same(checkpoint: Checkpoint, fingerprint: str | None) -> None:
    """Raise CheckpointError unless the checkpoint has the fingerprint that is served, if there is one yet."""
    from jrm_service.errors import CheckpointError

    if fingerprint is not None and fingerprint != checkpoint.fingerprint:
        raise CheckpointError(
            [f"the checkpoint has become another: fingerprint {checkpoint.fingerprint}, not {fingerprint}"]
        )


def give_up(channel: Channel, error: Exception) -> NoReturn:
    """End the process, for it cannot be started; where the checkpoint or the settings are to blame, say so first."""
    from jrm_service.device.channel import NotLoaded
    from jrm_service.errors import CheckpointError, ExplainSetupError

    if isinstance(error, CheckpointError | ExplainSetupError):
        channel.send(NotLoaded(error.problems))
    else:
        logger.error("loading failed", exc_info=error)
    os._exit(1)


def _log_to(channel: Channel) -> None:
    """Records go through the server, which writes them in its own format; what C code prints goes to stderr."""
    from jrm_service.device.channel import LogLine

    class ToServer(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with suppress(OSError):  # the server is gone, and so is this process in a moment
                channel.send(LogLine(record.name, record.levelno, self.format(record)))

    handler = ToServer()
    handler.setFormatter(logging.Formatter())  # the message, and a traceback behind it
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(True)
