"""Completions and columns -> scores, for the trainers that call a function with a whole batch of text."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack

from jrm_client.aio import DEFAULT_TIMEOUT, OnError
from jrm_client.client import JRMClient
from jrm_client.ranks import Outcome, Ranks
from jrm_client.results import Score
from jrm_client.retry import MAX_RETRIES

from .columns import Columns, Draw


class Options(TypedDict, total=False):
    """What the reward functions of text trainers take besides the URL.

    The first four are those of ``Columns``; ``distributed`` is that of ``jrm_client.trainers.flow_grpo``; the others
    are those of ``JRMClient``, where ``pin_fingerprint`` is True unless it is given.
    """

    edited: str | Draw | None
    source: str | None
    instruction: str
    source_root: str | os.PathLike[str] | None
    api_key: str | None
    timeout: float
    max_retries: int
    pin_fingerprint: bool | str
    distributed: Any


class Scorer:
    """Scores batches of completions. Safe to call from several threads; after a fork it opens connections anew.

    Where ``torch.distributed`` is initialised, every rank must make it and call it equally often: a call that fails
    on one rank raises the same error on all of them.
    """

    def __init__(self, url: str | Sequence[str], **options: Unpack[Options]) -> None:
        if unknown := sorted(options.keys() - Options.__annotations__.keys()):
            raise TypeError(f"no option is called {unknown[0]!r}; there are {', '.join(Options.__annotations__)}")
        self._columns = Columns.of(options)
        self._client = JRMClient(
            url,
            api_key=options.get("api_key"),
            timeout=options.get("timeout", DEFAULT_TIMEOUT),
            max_retries=options.get("max_retries", MAX_RETRIES),
            pin_fingerprint=options.get("pin_fingerprint", True),
        )
        self._ranks = Ranks(options.get("distributed"))

    def scores(
        self, completions: Sequence[Any], columns: Mapping[str, Any], *, on_error: OnError = "raise"
    ) -> list[Score | None]:
        """Return the score of each completion.

        Under ``on_error="raise"`` an edit without a score raises ScoreError, and a completion without a picture
        ValueError. Under ``"nan"`` the first has NaN and its ``error``, and the second is None. Raises what ``Columns``
        and ``JRMClient`` raise, or else what the call of another rank raised.
        """
        scores: list[Score | None] = [None] * len(completions)

        def call() -> Outcome:
            drawn = {
                index: pair for index, pair in enumerate(self._columns.pairs(completions, columns)) if pair is not None
            }
            if on_error == "raise" and len(drawn) < len(completions):
                missing = next(index for index in range(len(completions)) if index not in drawn)
                raise ValueError(
                    f"completions[{missing}]: edited gave None for it, and this trainer cannot leave a candidate out; "
                    "give an image for every completion"
                )
            for index, score in zip(drawn, self._client.score_batch(drawn.values(), on_error=on_error), strict=True):
                scores[index] = score
            return Outcome({}, True, self._client.pinned_fingerprint)

        self._ranks.agree(call)
        return scores

    def close(self) -> None:
        """Close the connections. The end of the program does so too."""
        self._client.close()
        self._ranks.close()
