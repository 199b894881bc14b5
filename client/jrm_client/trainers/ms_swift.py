"""A plugin file for ms-swift 4: ``--external_plugins .../jrm_client/trainers/ms_swift.py --reward_funcs jrm``.

Configured by environment variables (``jrm_client.trainers.environment``). The columns are those of the data set.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jrm_client.trainers import environment
from jrm_client.trainers.scorer import Scorer

# ms-swift puts the folder of a plugin file first on sys.path, where our trl.py would be imported in place of TRL.
sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]

from swift.rewards import AsyncORM, orms  # noqa: E402 - after the line above


class JRM(AsyncORM):
    """The reward of each completion's picture.

    A candidate without a score raises: ms-swift counts NaN and None as a reward of 0.
    """

    def __init__(self, args: Any = None, **kwargs: Any) -> None:
        super().__init__(args, **kwargs)
        self._scorer = Scorer(environment.url(), **environment.options())

    async def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float]:
        """Return a reward for each completion. Raises ScoreError if one has none, and what ``Scorer.scores`` raises."""
        scores = await asyncio.to_thread(self._scorer.scores, completions, columns)
        return [score.reward for score in scores if score is not None]


orms["jrm"] = JRM
