"""Candidates per minute, counted for all replicas together in Redis."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha1
from typing import Any

from redis.asyncio import Redis

from jrm_service.metrics import Metrics
from jrm_service.redis_link import RedisLink, Unavailable

from .limits import GRACE, LocalQuota

# limits.TokenBucket in one atomic step, on Redis's clock, since the replicas' clocks may differ. Times are whole
# microseconds, which a Lua number holds exactly. A missing bucket counts as full, so one expires when it would be full.
_SCRIPT = """
local candidates, per_minute, operation, grace = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local kept = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens, at = tonumber(kept[1]) or per_minute, tonumber(kept[2]) or now
tokens = math.min(per_minute, tokens + math.max(0, now - at) * per_minute / 60000000)
local seconds = 0
if operation == 'refund' then
  tokens = math.min(per_minute, tokens + candidates)
else
  local lacking = math.min(candidates, per_minute) - tokens
  if lacking > grace then
    seconds = lacking * 60 / per_minute
  else
    tokens = tokens - candidates
  end
end
redis.call('HSET', KEYS[1], 'tokens', string.format('%.17g', tokens), 'at', string.format('%.0f', now))
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', (per_minute - tokens) * 60000 / per_minute + 1000))
return string.format('%.17g', seconds)
"""
_SHA = sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()  # its name, as Redis itself gives it


@dataclass(frozen=True, slots=True, eq=False)
class _Question:
    """One run of the script. ``answer`` gets its seconds, or Unavailable; it is cancelled when nobody waits for it."""

    name: str
    arguments: tuple[str, ...]
    answer: asyncio.Future[float]


class RedisQuota:
    """Implements CandidateQuota for all processes that share a Redis and a prefix. Use it from one event loop.

    Each call takes at most ``link.timeout_s`` seconds; calls that arrive during a round trip share the next one.
    Without Redis each process counts for itself, like LocalQuota, so a fleet of N then grants up to N times the rate;
    ``jrm_quota_fallback_total`` counts how often. The local count is kept up to date at all times, so that an outage of
    Redis does not give every key a fresh minute's worth.

    Redis must be 5 or later. It keeps one hash for each key, for about as long as its bucket takes to fill.

    Args:
        link: the connection; it is not closed here.
        prefix: what the names of keys in Redis begin with.
        metrics: counts the fallbacks.
        local: counts while Redis cannot.
    """

    def __init__(self, link: RedisLink, *, prefix: str, metrics: Metrics, local: LocalQuota | None = None) -> None:
        self._link = link
        self._prefix = f"{prefix}quota:"
        self._metrics = metrics
        self._local = LocalQuota() if local is None else local
        self._questions: list[_Question] = []
        self._asking: asyncio.Task[None] | None = None

    async def spend(self, name: str, candidates: int, per_minute: int) -> float:
        """Take this many, or return the seconds until they would be granted."""
        try:
            seconds = await self._ask("spend", name, candidates, per_minute)
        except Unavailable:
            self._metrics.quota_fallbacks.inc()
            return await self._local.spend(name, candidates, per_minute)
        if seconds == 0.0:
            await self._local.spend(name, candidates, per_minute)
        return seconds

    async def refund(self, name: str, candidates: int, per_minute: int) -> None:
        """Give back what was spent on a request that was refused after all; lost when Redis does not answer."""
        await self._local.refund(name, candidates, per_minute)
        try:
            await self._ask("refund", name, candidates, per_minute)
        except Unavailable:
            self._metrics.quota_fallbacks.inc()

    async def close(self) -> None:
        """Stop asking Redis; no call may be in progress."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    async def _ask(self, operation: str, name: str, candidates: int, per_minute: int) -> float:
        """Seconds to wait, 0.0 when granted. Raises Unavailable."""
        answer: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        arguments = (str(candidates), str(per_minute), operation, str(GRACE))
        self._questions.append(_Question(self._prefix + name, arguments, answer))
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_all(), name="jrm-redis-quota")
        try:
            async with asyncio.timeout(self._link.timeout_s):
                return await answer
        except TimeoutError:
            raise Unavailable("timeout") from None

    async def _ask_all(self) -> None:
        while self._questions:
            questions, self._questions = [question for question in self._questions if not question.answer.done()], []
            if not questions:
                return
            try:
                replies = await self._link.call("quota", partial(_run, questions))
            except Unavailable as error:
                replies = [error] * len(questions)
            for question, reply in zip(questions, replies, strict=True):
                if question.answer.done():
                    continue
                if isinstance(reply, float):
                    question.answer.set_result(reply)
                else:
                    question.answer.set_exception(reply)


async def _run(questions: Sequence[_Question], redis: Redis) -> list[float | Unavailable]:
    """Run the script for each question in one round trip, which loads it first in case Redis does not have it."""
    async with redis.pipeline(transaction=False) as pipeline:
        pipeline.script_load(_SCRIPT)
        for question in questions:
            pipeline.evalsha(_SHA, 1, question.name, *question.arguments)
        _, *replies = await pipeline.execute(raise_on_error=False)
    return [_seconds(reply) for reply in replies]


def _seconds(reply: Any) -> float | Unavailable:
    """An error belongs to one question: Redis is out of memory, or its bucket's key holds another type."""
    if isinstance(reply, Exception):
        return Unavailable(type(reply).__name__)
    try:
        seconds = float(reply)
    except (TypeError, ValueError):
        return Unavailable("not a number")
    return seconds if 0.0 <= seconds < math.inf else Unavailable("not a time to wait")
