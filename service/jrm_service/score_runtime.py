"""The scoring half of a server: loaded, warmed, drained and stopped. With ``app``, all that reads the settings."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .api.limits import CandidateQuota, LocalQuota
from .api.ops import SERVING, PartState
from .errors import Draining, NotReady
from .metrics import Metrics
from .scoring.backend import Backend, Preparer, Worker
from .scoring.batcher import Batcher, State
from .scoring.cache import ScoreCache, scope_of
from .scoring.fitting import DEFAULT_TOKENS
from .scoring.line import WaitingLine
from .scoring.planner import BatchCost, unshared_tokens
from .scoring.service import ImageLimits, ScoreService
from .scoring.types import ServedModel
from .settings import Settings

if TYPE_CHECKING:
    from .api.redis_quota import RedisQuota
    from .redis import RedisLink
    from .scoring.redis_store import RedisScores

logger = logging.getLogger(__name__)

OnFailed = Callable[[BaseException], None]


@dataclass(frozen=True, slots=True)
class Parts:
    """What a source of scores in this process provides, such as fakes."""

    model: ServedModel
    preparer: Preparer
    backends: Sequence[Backend[Any]]
    cost: BatchCost = unshared_tokens
    batch_tokens: int = DEFAULT_TOKENS  # the budget of a batch, unless the settings have one


@dataclass(frozen=True, slots=True)
class Started:
    """A source of scores whose workers take batches: a checkpoint on devices, or Parts in threads."""

    model: ServedModel
    preparer: Preparer
    workers: Sequence[Worker]
    cost: BatchCost = unshared_tokens
    batch_tokens: int = DEFAULT_TOKENS  # the budget of a batch, unless the settings have one


class ScoreRuntime:
    """What scores behind the routes: loading, ready, draining, failed.

    ``check`` raises for what was loaded and cannot be served with these settings.
    """

    def __init__(
        self,
        settings: Settings,
        load: Callable[[], Awaitable[Started]],
        check: Callable[[ServedModel], None],
        line: WaitingLine,
        metrics: Metrics,
        on_failed: OnFailed,
    ) -> None:
        self.metrics = metrics
        self._line = line
        metrics.watch_line(depth=lambda: line.places_taken, limit=settings.max_queue)
        self._settings = settings
        self._load = load
        self._check = check
        self._on_failed = on_failed
        self._service: ScoreService | None = None
        self._redis = _redis_link(settings, self.metrics)
        self._shared_quota = _redis_quota(settings, self._redis, self.metrics)
        self._stored: RedisScores | None = None
        self._state: PartState = "loading"
        self._reason = "the model is being loaded"
        self.batch_tokens = settings.max_batch_tokens  # None until it was measured
        self._patience_s = 5.0  # for a call that is on a device when the server stops, unless it had its time already

    async def start(self) -> None:
        """Load, check what was loaded, open the queue. Raises what these raise, and then no worker is left."""
        parts: Started | None = None
        try:
            parts = await self._load()
            self._check(parts.model)
            cache = self._score_cache(parts.model)
            if self._redis is not None:
                await self._redis.connect()
            batcher = Batcher(
                parts.workers,
                max_batch_tokens=self._batch_tokens(parts),
                hang_timeout_s=self._settings.hang_timeout_s,
                metrics=self.metrics,
                cost=parts.cost,
                on_score=cache.remember,
                on_drained=self._line.drained,
                on_failed=self._worker_failed,
            )
            batcher.start()
        except BaseException as error:
            self._state, self._reason = "failed", type(error).__name__
            if parts is not None:
                await asyncio.gather(*(worker.end() for worker in parts.workers))
            raise
        self._service = ScoreService(
            parts.model,
            parts.preparer,
            batcher,
            self._line,
            cache=cache,
            limits=ImageLimits(
                max_pixels=self._settings.max_image_pixels,
                max_decoded_bytes=self._settings.max_decoded_bytes,
                max_prepared_bytes=self._settings.max_prepared_bytes,
            ),
            max_instruction_chars=self._settings.max_instruction_chars,
            threads=self._settings.preprocess_threads,
            metrics=self.metrics,
        )
        model = parts.model
        self.metrics.show_model(model=model.name, fingerprint=model.fingerprint, facts=model.description)
        self.metrics.expect_rewards(model.description.get("dimensions") or ())
        self._state, self._reason = "ready", ""

    def _batch_tokens(self, parts: Started) -> int:
        self.batch_tokens = self._settings.max_batch_tokens or parts.batch_tokens
        return self.batch_tokens

    def _worker_failed(self, error: BaseException) -> None:
        self._patience_s = 0.0  # whatever still hangs had its time
        if self._service is not None and not self._service.batcher.alive:
            self._service.abandon()  # nothing will score it, so draining must not wait for it
        self._on_failed(error)

    async def drain(self) -> None:
        """Refuse new work and finish what was admitted, for at most the grace period. Calling it again is harmless."""
        self._state, self._reason = "draining", "the server is shutting down"
        if self._service is not None:
            try:
                async with asyncio.timeout(self._settings.grace_s):
                    await self._service.drain()
            except TimeoutError:
                self._patience_s = 0.0
                logger.warning("gave up on unfinished candidates after %g s", self._settings.grace_s)

    async def stop(self) -> None:
        """Let go of the devices; what is unfinished fails."""
        self._state, self._reason = "draining", "the server is shutting down"
        if self._service is not None:
            await self._service.batcher.stop(self._patience_s)
            self._service.abandon()
            self._service.close()
        if self._stored is not None:
            await self._stored.close()
        if self._shared_quota is not None:
            await self._shared_quota.close()
        if self._redis is not None:
            await self._redis.close()

    def quota(self) -> CandidateQuota:
        """What counts the candidates of API keys: for all replicas where there is a Redis, else for this server."""
        return LocalQuota() if self._shared_quota is None else self._shared_quota

    def _score_cache(self, model: ServedModel) -> ScoreCache:
        """The cache of what this model scores."""
        settings = self._settings
        if self._redis is not None:
            from .scoring.redis_store import RedisScores

            self._stored = RedisScores(
                self._redis, prefix=settings.redis_prefix, ttl_s=settings.cache_ttl_s, metrics=self.metrics
            )
        return ScoreCache(
            scope_of(model),
            max_entries=settings.cache_entries,
            metrics=self.metrics,
            dimensions=model.description.get("dimensions"),
            store=self._stored,
        )

    def service(self) -> ScoreService:
        """The service that scores. Raises NotReady or Draining."""
        state, reason = self.state()
        if state == "draining":
            raise Draining("the server is shutting down; send the request to another replica", retry_after=5)
        if self._service is None or state == "failed":
            raise NotReady(f"not ready to score: {reason}", retry_after=5)
        return self._service

    def model(self) -> ServedModel:
        """What is served. Raises NotReady while it loads."""
        if self._service is None:
            raise NotReady(f"not ready: {self._reason}", retry_after=5)
        return self._service.model

    def served(self) -> ServedModel:
        """What is served, while requests are taken. Raises NotReady or Draining."""
        state, reason = self.state()
        if state not in SERVING:
            self.service()
            raise NotReady(f"not ready to score: {reason}", retry_after=5)
        return self.model()

    def state(self) -> tuple[PartState, str]:
        """State of scoring and, when it is not ready, why."""
        if self._state != "ready" or self._service is None:
            return self._state, self._reason
        states = self._service.batcher.states
        away = sum(not state.alive for state in states)
        if away == 0:
            return "ready", ""
        reason = f"{away} of {len(states)} workers are away"
        if away < len(states):
            return "degraded", reason
        return ("failed" if all(state is State.FAILED for state in states) else "restarting"), reason


def _redis_link(settings: Settings, metrics: Metrics) -> RedisLink | None:
    """Raises RedisURLError."""
    if settings.redis_url is None:
        return None
    from .redis import RedisLink  # the client library takes its time to import, and a server on its own needs none

    return RedisLink(settings.redis_url.get_secret_value(), timeout_s=settings.redis_timeout_s, metrics=metrics)


def _redis_quota(settings: Settings, link: RedisLink | None, metrics: Metrics) -> RedisQuota | None:
    if link is None:
        return None
    from .api.redis_quota import RedisQuota

    return RedisQuota(link, prefix=settings.redis_prefix, metrics=metrics)
