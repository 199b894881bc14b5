"""``python -m tests.support.impatient``: ``benchmarks.paced``, which starts a worker again and again without pauses."""

from benchmarks import paced
from jrm_service.scoring import batcher

if __name__ == "__main__":
    batcher._LONGEST_PAUSE_S = 0.0
    paced.main()
