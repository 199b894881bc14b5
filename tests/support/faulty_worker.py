"""A worker process, ``python -m support.faulty_worker``, with a few instructions that bring it down."""

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from jrm_service.model import main
from jrm_service.model.engine import TrieScorer
from jrm_service.scoring.backend import OutOfMemory
from jrm_service.scoring.types import Candidate


class FaultyScorer(TrieScorer):
    """Does what a candidate's instruction says."""

    def collate(self, candidates: Sequence[Candidate]):
        return {candidate.instruction for candidate in candidates}, super().collate(candidates)

    def score(self, batch):
        instructions, rows = batch
        for instruction in instructions:
            what, _, once = instruction.partition(" once ")
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
        return super().score(rows)


if __name__ == "__main__":
    from jrm_service.model import checkpoint_source

    checkpoint_source._SCORERS["trie"] = FaultyScorer
    sys.exit(main.main())
