"""A worker process, ``python -m support.faulty_worker``, with the fake model: it starts in no time. A few instructions
bring it down."""

import os
import signal
import sys
import time
from pathlib import Path

from jrm_service.device.channel import Channel, Load, Loaded
from jrm_service.errors import CheckpointError
from jrm_service.model import main
from jrm_service.scoring.backend import OutOfMemory
from jrm_service.scoring.fakes import FakeBackend
from jrm_service.scoring.token_budget import DEFAULT_TOKENS
from jrm_service.scoring.types import ServedModel


class FaultyBackend(FakeBackend):
    """Does what a candidate's instruction says."""

    def score(self, batch):
        for candidate in batch:
            what, _, once = candidate.instruction.partition(" once ")
            if once and Path(once).exists():
                continue
            if once and what in ("segfault", "stop", "hang"):
                Path(once).touch()
            if what == "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            elif what == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            elif what == "hang":
                time.sleep(3600)
            elif what == "raise":
                raise RuntimeError("raised for a test")
            elif what == "no memory":
                raise OutOfMemory("for a test")
        return super().score(batch)


def load_fake(load: Load, channel: Channel) -> FaultyBackend:
    """In place of the bundled checkpoint; there is nothing to prepare candidates with, which FakePreparer does."""
    if load.checkpoint is not None:
        raise CheckpointError([f"{load.checkpoint}: refused for a test"])
    backend = FaultyBackend(load.devices[load.number])
    model = ServedModel("jrm-fake", "fake", {"device": backend.device, "precision": "float32"})
    channel.send(Loaded(model, None, None, DEFAULT_TOKENS))
    return backend


if __name__ == "__main__":
    main._load = load_fake
    sys.exit(main.main())
