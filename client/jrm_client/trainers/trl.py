"""Reward functions for TRL's GRPOTrainer and RLOOTrainer, synchronous and asynchronous.

TRL counts None as "no reward for this completion": it has no part in the baseline of its group, and its advantage is 0.
So a candidate that has no score is None, and nothing else is: a server that cannot be reached ends the run.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.metadata
import re
import statistics
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Literal, TypeAlias, Unpack

from jrm_client import arguments
from jrm_client.results import Score

from .scorer import Options, Scorer

Rewards: TypeAlias = list[float | None]
OnError: TypeAlias = Literal["none", "raise"]

_FIRST_WITH_NONE = (1, 6)  # earlier releases count None as a reward of 0


def jrm_reward(
    url: str | Sequence[str], *, on_error: OnError = "none", **options: Unpack[Options]
) -> Callable[..., Rewards]:
    """Return ``fn(prompts, completions, **columns) -> list[float | None]``, one reward for each completion.

    ``options`` are those of ``Options``; ``prompts`` and ``completions`` are the columns ``prompt`` and ``completion``.
    ``on_error="none"``: the reward is None where the candidate has no score, or its completion no picture; ``"raise"``
    ends the run there. The function can be pickled if ``edited`` can.

    Raises TypeError for an option of another name or type, and RuntimeError for ``"none"`` beside a TRL before 1.6, for
    which None is 0. The function raises ValueError for an ``edited`` that was not given and for a column that is
    missing, and whatever ``JRMClient`` raises.
    """
    return functools.partial(jrm, _scorer(url, on_error, options), on_error)


def async_jrm_reward(
    url: str | Sequence[str], *, on_error: OnError = "none", **options: Unpack[Options]
) -> Callable[..., Coroutine[Any, Any, Rewards]]:
    """Return ``jrm_reward`` as a coroutine function, which TRL runs beside its other asynchronous reward functions."""
    return functools.partial(async_jrm, _scorer(url, on_error, options), on_error)


def jrm(scorer: Scorer, on_error: OnError, /, prompts: Any, completions: Any, **columns: Any) -> Rewards:
    """Score the completions of a step, and write metrics and errors to TRL's log."""
    scores = scorer.scores(
        completions, {**columns, "prompt": prompts, "completion": completions}, on_error=_MODE[on_error]
    )
    _log(scores, columns)
    return [None if score is None or score.error is not None else score.reward for score in scores]


async def async_jrm(scorer: Scorer, on_error: OnError, /, *args: Any, **columns: Any) -> Rewards:
    """Run ``jrm`` in a thread, so that other rewards are computed meanwhile."""
    return await asyncio.to_thread(jrm, scorer, on_error, *args, **columns)


_MODE: Mapping[OnError, Literal["nan", "raise"]] = {"none": "nan", "raise": "raise"}


def _scorer(url: str | Sequence[str], on_error: OnError, options: Options) -> Scorer:
    arguments.choice(on_error, "on_error", ("none", "raise"))
    version = _trl_version()
    if on_error == "none" and version is not None and _release(version) < _FIRST_WITH_NONE:
        raise RuntimeError(
            f"TRL {version} counts None as a reward of 0, and would train on it. Install TRL 1.6 or newer, or pass "
            'on_error="raise", which ends the run instead'
        )
    return Scorer(url, **options)


def _trl_version() -> str | None:
    try:
        return importlib.metadata.version("trl")
    except importlib.metadata.PackageNotFoundError:
        return None


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _log(scores: Sequence[Score | None], columns: Mapping[str, Any]) -> None:
    """Log the mean of each dimension, the share of completions without a reward, and in the table the reasons."""
    if scores and (log_metric := columns.get("log_metric")):
        scored = [score for score in scores if score is not None and score.error is None]
        log_metric("jrm/without_reward", 1 - len(scored) / len(scores))
        for name in scored[0].dimensions if scored else ():
            log_metric(f"jrm/{name}", statistics.fmean(score.dimensions[name].mean for score in scored))
    if log_extra := columns.get("log_extra"):
        log_extra("jrm/error", [_reason(score) for score in scores])


def _reason(score: Score | None) -> str:
    if score is None:
        return "no picture"
    return "" if score.error is None else str(score.error)
