"""The scoring half of a server: loading, reloading, sleeping, draining and stopping."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .api.limits import CandidateQuota, LocalQuota
from .api.ops import SERVING, PartState
from .errors import CheckpointError, DeadlineExceeded, Draining, NotReady, ReloadFailed, Sleeping
from .metrics import Metrics
from .scoring.backend import Backend, Preparer, SleepLevel, StartFailed, Worker
from .scoring.batcher import Batcher
from .scoring.cache import ScoreCache, scope_of
from .scoring.line import WaitingLine
from .scoring.planner import BatchCost, unshared_tokens
from .scoring.service import ImageLimits, ScoreService
from .scoring.token_budget import DEFAULT_TOKENS
from .scoring.types import ServedModel
from .scoring.worker_slot import State
from .settings import Settings

if TYPE_CHECKING:
    from .api.redis_quota import RedisQuota
    from .redis_link import RedisLink
    from .scoring.redis_store import RedisScores

logger = logging.getLogger(__name__)

OnFailed = Callable[[BaseException], None]
Loader = Callable[[Path | None], Awaitable["RunningModel"]]
"""Loads a checkpoint, by default that of the settings, and starts its workers."""

_RETRY_AFTER_S = 5.0


@dataclass(frozen=True, slots=True)
class Parts:
    """A model in this process, such as fakes, with what serving it needs."""

    model: ServedModel
    preparer: Preparer
    backends: Sequence[Backend[Any]]
    cost: BatchCost = unshared_tokens
    batch_tokens: int = DEFAULT_TOKENS  # the budget of a batch, unless the settings have one


@dataclass(frozen=True, slots=True)
class RunningModel:
    """A model whose workers accept batches: a checkpoint on devices, or Parts in threads."""

    model: ServedModel
    preparer: Preparer
    workers: Sequence[Worker]
    cost: BatchCost = unshared_tokens
    batch_tokens: int = DEFAULT_TOKENS  # the budget of a batch, unless the settings have one


class ScoreRuntime:
    """The scoring side behind the routes, in one of the states loading, ready, sleeping, draining, failed.

    ``check`` raises for a loaded model that cannot be served with these settings.
    """

    def __init__(
        self,
        settings: Settings,
        load: Loader,
        check: Callable[[ServedModel], None],
        line: WaitingLine,
        metrics: Metrics,
        on_failed: OnFailed,
    ) -> None:
        self.metrics = metrics
        self._line = line
        metrics.sleeping.set_function(lambda: float(self._level is not None))
        metrics.watch_line(depth=lambda: line.places_taken, limit=settings.max_queue)
        self._settings = settings
        self._load = load
        self._check = check
        self._on_failed = on_failed
        self._service: ScoreService | None = None
        self._redis = _redis_link(settings, self.metrics)
        self._shared_quota = _redis_quota(settings, self._redis, self.metrics)
        self._stored: RedisScores | None = None
        self._changing = asyncio.Lock()  # a wake must not overtake a sleep, nor either of them a reload
        self._level: SleepLevel | None = None  # set while asleep
        self._awake = asyncio.Event()
        self._awake.set()
        self._retiring: dict[ScoreService, asyncio.Task[None]] = {}
        self._state: PartState = "loading"
        self._reason = "the model is being loaded"
        self.batch_tokens = settings.max_batch_tokens  # None until it was measured
        self._patience_s = 5.0  # for a batch that is on a device when the server stops, unless it had its time already

    async def start(self) -> None:
        """Load the model, check it and open the queue. If any of these raises, no worker is left."""
        try:
            if self._redis is not None:
                await self._redis.connect()
            self._service = await self._loaded(None)
        except BaseException as error:
            self._state, self._reason = "failed", type(error).__name__
            raise
        self._state, self._reason = "ready", ""

    async def _loaded(self, checkpoint: Path | None) -> ScoreService:
        """Return the service of a checkpoint. If loading raises, no worker is left."""
        parts = await self._load(checkpoint)
        try:
            self._check(parts.model)
            return self._serving(parts)
        except BaseException:
            await asyncio.gather(*(worker.end() for worker in parts.workers))
            raise

    def _serving(self, parts: RunningModel) -> ScoreService:
        cache = self._score_cache(parts.model)
        batcher = Batcher(
            parts.workers,
            max_batch_tokens=self._batch_tokens(parts),
            hang_timeout_s=self._settings.hang_timeout_s,
            metrics=self.metrics,
            cost=parts.cost,
            on_score=cache.remember,
            on_drained=self._line.drained,
            on_failed=lambda error: self._worker_failed(batcher, error),
        )
        service = ScoreService(
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
        batcher.start()
        model = parts.model
        self.metrics.show_model(model=model.name, fingerprint=model.fingerprint, facts=model.description)
        self.metrics.expect_rewards(model.description.get("dimensions") or ())
        return service

    def _batch_tokens(self, parts: RunningModel) -> int:
        self.batch_tokens = self._settings.max_batch_tokens or parts.batch_tokens
        return self.batch_tokens

    def _worker_failed(self, batcher: Batcher, error: BaseException) -> None:
        retiring = next((service for service in self._retiring if service.batcher is batcher), None)
        if retiring is not None:  # the served model does not depend on it
            logger.error("a worker of %s, which was replaced, is gone: %s", retiring.model.fingerprint, error)
            if not batcher.alive:
                retiring.abandon()
            return
        self._patience_s = 0.0  # a batch that still hangs had its time
        if self._service is not None and not self._service.batcher.alive:
            self._service.abandon()  # nothing will score it, so draining must not wait for it
        self._on_failed(error)

    async def drain(self) -> None:
        """Refuse new work and finish admitted candidates, for at most the grace period. May be called again."""
        self._state, self._reason = "draining", "the server is shutting down"
        self._awake.set()  # requests that wait for a wake are then refused
        if self._service is not None:
            if self._level is not None and not self._service.batcher.alive:
                self._service.abandon()  # it will not be woken any more
            try:
                async with asyncio.timeout(self._settings.grace_s):
                    await self._service.drain()
            except TimeoutError:
                self._patience_s = 0.0
                logger.warning("gave up on unfinished candidates after %g s", self._settings.grace_s)

    async def stop(self) -> None:
        """Release the devices; unfinished candidates fail."""
        self._state, self._reason = "draining", "the server is shutting down"
        for task in self._retiring.values():
            task.cancel()
        for service in [*self._retiring, *([self._service] if self._service is not None else [])]:
            await service.batcher.stop(self._patience_s)
            service.abandon()
            service.close()
        if self._stored is not None:
            await self._stored.close()
        if self._shared_quota is not None:
            await self._shared_quota.close()
        if self._redis is not None:
            await self._redis.close()

    def quota(self) -> CandidateQuota:
        """The quota of API keys: for all replicas if there is a Redis, else for this server."""
        return LocalQuota() if self._shared_quota is None else self._shared_quota

    def _score_cache(self, model: ServedModel) -> ScoreCache:
        """The cache of this model's scores."""
        settings = self._settings
        if self._redis is not None and self._stored is None:
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

    async def service(self, patience_s: float) -> ScoreService:
        """The score service. While it sleeps, this waits for it, unless the settings refuse requests meanwhile.

        Raises NotReady, Draining, Sleeping, and DeadlineExceeded after ``patience_s``.
        """
        if not self._awake.is_set():
            self._running()
            if self._settings.when_sleeping == "refuse":
                raise Sleeping("the server sleeps; POST /v1/wake wakes it", retry_after=_RETRY_AFTER_S)
            try:
                async with asyncio.timeout(patience_s):
                    await self._awake.wait()
            except TimeoutError:
                raise DeadlineExceeded(f"the server slept for the whole {patience_s:g} s") from None
        return self._running()

    def _running(self) -> ScoreService:
        """The service, awake or not. Raises NotReady or Draining."""
        state, reason = self.state()
        if state == "draining":
            raise Draining(
                "the server is shutting down; send the request to another replica", retry_after=_RETRY_AFTER_S
            )
        if self._service is None or state == "failed":
            raise NotReady(f"not ready to score: {reason}", retry_after=_RETRY_AFTER_S)
        return self._service

    # --- operators ----------------------------------------------------------------------------------------------------

    async def sleep(self, level: SleepLevel) -> SleepLevel:
        """Release the devices until ``wake``; returns when they are free, with the level in force.

        Batches on a device are finished. Depending on ``when_sleeping``, earlier requests wait like later ones, or are
        finished before later ones are refused. Raises NotReady or Draining.
        """
        async with self._changing:
            service = await self._settled()
            if self._level is None and self._settings.when_sleeping == "refuse":
                await self._close(service)
            return await self._put_to_sleep(service, level)

    async def wake(self) -> None:
        """Take the devices again and continue scoring; returns at once if the server is awake.

        Raises CheckpointError if the checkpoint has changed, and NotReady if a device cannot be taken; the server then
        stays asleep. Raises Draining.
        """
        async with self._changing:
            service = await self._settled()
            if self._level is not None:
                await self._rouse(service)

    async def reload(self, checkpoint: Path, *, beside: bool) -> None:
        """Serve another checkpoint, or reload the same one; returns once it is served, and wakes a sleeping server.

        With ``beside``, the old checkpoint serves until the new one has passed its self-test, and memory holds both.
        Otherwise the old one finishes its requests and is dropped first, and new requests wait or are refused as during
        sleep. Raises CheckpointError, ReloadFailed if no worker starts, and Draining; the old checkpoint is then
        restored, awake or asleep as before, or, if that fails, the server sleeps.
        """
        async with self._changing:
            old = await self._settled()
            was_awake = self._level is None
            if was_awake and not beside:
                await self._close(old)
            if not was_awake or not beside:
                await self._put_to_sleep(old, "drop")
            try:
                self._service = await self._loaded(checkpoint)
            except Exception as error:
                if was_awake and not beside:
                    await self._restore(old)
                if isinstance(error, StartFailed):
                    raise ReloadFailed(f"no worker starts with it: {error}") from error
                raise
            if not was_awake:
                old.abandon("another checkpoint is served now")  # requests that waited for the old one to wake
            self._open()
            self._retiring[old] = asyncio.create_task(self._retire(old))

    async def _settled(self) -> ScoreService:
        """The service, once those that it replaced have released their devices. Raises NotReady or Draining."""
        await asyncio.gather(*self._retiring.values())
        return self._running()

    async def _close(self, service: ScoreService) -> None:
        """Admit no more requests, and wait for those in progress."""
        self._level = "host"
        self._awake.clear()
        await service.wait_for_requests()

    async def _put_to_sleep(self, service: ScoreService, level: SleepLevel) -> SleepLevel:
        self._level = self._level or level
        self._awake.clear()
        self._level = kept = await service.batcher.sleep(level)
        return kept

    async def _rouse(self, service: ScoreService) -> None:
        try:
            await service.batcher.wake()
        except BaseException as error:
            self._level = "drop"
            if not isinstance(error, StartFailed):
                raise
            if error.problems:
                raise CheckpointError(error.problems) from error
            raise NotReady(f"still asleep, a device cannot be taken: {error}", retry_after=_RETRY_AFTER_S) from error
        self._line.woken()
        self._open()

    async def _restore(self, service: ScoreService) -> None:
        """Serve the old checkpoint again; if that fails, the server sleeps, and the log has the reason."""
        try:
            await self._rouse(service)
        except (CheckpointError, NotReady) as error:
            logger.error("the previous checkpoint %s cannot be restored: %s", service.model.fingerprint, error)

    def _open(self) -> None:
        self._level = None
        self._awake.set()

    async def _retire(self, service: ScoreService) -> None:
        """Let a service that was replaced finish its requests, all of which have deadlines, and end it."""
        await service.wait_for_requests()
        await service.batcher.stop(self._patience_s)
        service.close()
        del self._retiring[service]

    def model(self) -> ServedModel:
        """The model that is served. Raises NotReady while it loads."""
        if self._service is None:
            raise NotReady(f"not ready: {self._reason}", retry_after=_RETRY_AFTER_S)
        return self._service.model

    def served(self) -> ServedModel:
        """The model that is served, while requests are accepted. Raises NotReady, Sleeping or Draining."""
        state, reason = self.state()
        if state not in SERVING:
            self._running()
            kind = Sleeping if state == "sleeping" else NotReady
            raise kind(f"not ready to score: {reason}", retry_after=_RETRY_AFTER_S)
        return self.model()

    def state(self) -> tuple[PartState, str]:
        """The state of scoring and, if it is not ready, the reason."""
        if self._state != "ready" or self._service is None:
            return self._state, self._reason
        if self._level is not None:
            return "sleeping", "POST /v1/wake wakes it"
        states = self._service.batcher.states
        unavailable = sum(not state.alive for state in states)
        if unavailable == 0:
            return "ready", ""
        reason = f"{unavailable} of {len(states)} workers are unavailable"
        if unavailable < len(states):
            return "degraded", reason
        return ("failed" if all(state is State.FAILED for state in states) else "restarting"), reason


def _redis_link(settings: Settings, metrics: Metrics) -> RedisLink | None:
    """Raises RedisURLError."""
    if settings.redis_url is None:
        return None
    from .redis_link import RedisLink  # importing the client library takes long, and a single server does not need it

    return RedisLink(settings.redis_url.get_secret_value(), timeout_s=settings.redis_timeout_s, metrics=metrics)


def _redis_quota(settings: Settings, link: RedisLink | None, metrics: Metrics) -> RedisQuota | None:
    if link is None:
        return None
    from .api.redis_quota import RedisQuota

    return RedisQuota(link, prefix=settings.redis_prefix, metrics=metrics)
