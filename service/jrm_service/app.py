"""The composition root: the only place that wires settings, model, queue and HTTP together."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

from fastapi import FastAPI
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from starlette.types import ASGIApp, Receive, Scope, Send

from .api import errors as api_errors
from .api import openapi
from .api.explain import explain_router
from .api.gate import Gate
from .api.guards import BodyLimits, BodyReader, RequestContext
from .api.keyfile import KeyFile
from .api.limits import CandidateQuota, LocalQuota, RequestSlots
from .api.ops import PROBES, PartState, ops_router
from .api.score import score_router
from .errors import Draining, ExplainDisabled, ExplainSetupError, JRMError, MissingExtra, NotReady
from .explain.service import ExplainLimits
from .metrics import Metrics
from .scoring.backend import Backend, Preparer
from .scoring.batcher import Batcher
from .scoring.cache import ScoreCache, scope_of
from .scoring.fakes import FakeBackend, FakePreparer
from .scoring.fitting import DEFAULT_TOKENS
from .scoring.planner import BatchCost, unshared_tokens
from .scoring.service import ImageLimits, ScoreService
from .scoring.types import ServedModel
from .settings import Settings
from .versions import installed

if TYPE_CHECKING:
    from .api.redis_quota import RedisQuota
    from .api.tracing import RequestTraces
    from .explain.runtime import ExplainRuntime
    from .model.source import CheckpointSource
    from .redis import RedisLink
    from .scoring.redis_store import RedisScores

logger = logging.getLogger(__name__)

T = TypeVar("T")
OnFailed = Callable[[BaseException], None]


@dataclass(frozen=True, slots=True)
class Parts:
    """What a source of scores provides: a checkpoint on devices, or fakes."""

    model: ServedModel
    preparer: Preparer
    backends: Sequence[Backend[Any]]
    cost: BatchCost = unshared_tokens
    batch_tokens: int = DEFAULT_TOKENS  # the budget of a batch, unless the settings have one


class Runtime:
    """The running server behind the routes: loading, ready, draining, failed."""

    def __init__(self, settings: Settings, load: Callable[[], Parts], metrics: Metrics, on_failed: OnFailed) -> None:
        self.metrics = metrics
        self._settings = settings
        self._load = load
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
        """Load in a thread, warm every device, open the queue. Raises what loading raises."""
        try:
            parts = await _in_daemon_thread(self._load)
            cache = self._score_cache(parts.model)
            if self._redis is not None:
                await self._redis.connect()
            batcher = Batcher(
                parts.backends,
                max_batch_tokens=self._batch_tokens(parts),
                max_queue=self._settings.max_queue,
                hang_timeout_s=self._settings.hang_timeout_s,
                metrics=self.metrics,
                cost=parts.cost,
                on_score=cache.remember,
                on_all_lost=lambda: self._on_failed(RuntimeError("every worker is lost")),
            )
            await batcher.start()
        except BaseException as error:
            self._state, self._reason = "failed", type(error).__name__
            raise
        self._service = ScoreService(
            parts.model,
            parts.preparer,
            batcher,
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
        self._show(parts.model)
        self._state, self._reason = "ready", ""

    def _batch_tokens(self, parts: Parts) -> int:
        self.batch_tokens = self._settings.max_batch_tokens or parts.batch_tokens
        return self.batch_tokens

    async def drain(self) -> None:
        """Refuse new work and finish what was admitted, for at most the grace period. Calling it again is harmless."""
        self._state, self._reason = "draining", "the server is shutting down"
        if self._service is not None:
            try:
                async with asyncio.timeout(self._settings.grace_s):
                    await self._service.batcher.drain()
            except TimeoutError:
                self._patience_s = 0.0
                logger.warning("gave up on unfinished candidates after %g s", self._settings.grace_s)

    async def stop(self) -> None:
        """Let go of the devices; what is unfinished fails."""
        self._state, self._reason = "draining", "the server is shutting down"
        if self._service is not None:
            await self._service.batcher.stop(self._patience_s)
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

    def _show(self, model: ServedModel) -> None:
        facts = {name: str(model.description.get(name) or "none") for name in ("device", "dtype", "engine")}
        dimensions = model.description.get("dimensions") or ()
        self.metrics.show_model(model=model.name, fingerprint=model.fingerprint, dimensions=dimensions, **facts)

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

    def state(self) -> tuple[PartState, str]:
        """State of scoring and, when it is not ready, why."""
        if self._state != "ready" or self._service is None:
            return self._state, self._reason
        alive, workers = self._service.batcher.alive, len(self._service.batcher.workers)
        if alive == 0:
            return "failed", "no worker is alive"
        return ("ready", "") if alive == workers else ("degraded", f"{workers - alive} of {workers} workers are lost")


class Served(Protocol):
    """A part of what one process serves: scores or critiques."""

    async def start(self) -> None: ...  # noqa: D102
    async def drain(self) -> None: ...  # noqa: D102
    async def stop(self) -> None: ...  # noqa: D102
    def state(self) -> tuple[PartState, str]: ...  # noqa: D102
    def model(self) -> ServedModel: ...  # noqa: D102


class Application:
    """The ASGI application, and what its server needs to end it gracefully."""

    def __init__(self, asgi: ASGIApp, parts: Sequence[Served]) -> None:
        self._asgi = asgi
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 - ASGI
        await self._asgi(scope, receive, send)

    async def drain(self) -> None:
        """Call it before the listeners close, so that callers read 503 ``draining`` and not a refused connection."""
        await asyncio.gather(*(part.drain() for part in self._parts))


def create_app(
    settings: Settings,
    *,
    load: Callable[[], Parts] | None = None,
    on_ready: Callable[[ServedModel], None] = lambda _model: None,
    on_failed: OnFailed = lambda _error: None,
) -> Application:
    """The ASGI application. It answers from the first moment and becomes ready when the model is loaded and warm.

    ``load`` replaces the source of scores that the settings name; it runs in a thread.
    Raises at once CheckpointError for a checkpoint whose files do not agree, KeysError for a keys file that cannot be
    used, RedisURLError for a Redis URL with an option that there is not, MissingExtra for traces without OpenTelemetry,
    ExplainSetupError where critiques are to be served and cannot be. ``on_failed`` is told of what goes wrong later:
    while the weights are read, or when the last worker is lost and nothing will be scored any more.
    """
    metrics = Metrics(_registry())
    metrics.show_build(version("jrm-serve"), installed("torch"), installed("transformers"))
    traces = _request_traces(settings, metrics)
    source = None if load or settings.backend == "fake" else _source(settings)
    scoring = (
        Runtime(settings, load or _loader(settings, source), metrics, on_failed) if settings.serves_score else None
    )
    explaining = _explaining(settings, source, metrics) if settings.serves_explain else None
    parts: dict[str, Served] = {
        name: part for name, part in (("score", scoring), ("explain", explaining)) if part is not None
    }
    main = next(iter(parts.values()))

    async def start() -> None:
        try:
            await asyncio.gather(*(part.start() for part in parts.values()))
        except Exception as error:
            logger.log(logging.ERROR, "start-up failed: %s", error, exc_info=not isinstance(error, JRMError))
            on_failed(error)
        else:
            on_ready(main.model())

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(start())
        yield
        starting.cancel()  # a loading thread cannot be stopped, but nobody waits for it
        await asyncio.gather(starting, return_exceptions=True)
        await asyncio.gather(*(part.stop() for part in parts.values()))
        if traces is not None:
            await asyncio.to_thread(traces.close)

    app = FastAPI(
        title="JRM Serve",
        version=version("jrm-serve"),
        description="Rewards for image edits from a JRM checkpoint.",
        lifespan=lifespan,
    )
    bodies = BodyReader(
        BodyLimits(
            max_bytes=settings.max_body_bytes,
            max_bytes_of_all=settings.max_bodies_bytes,
            idle_timeout_s=settings.body_timeout_s,
            total_timeout_s=settings.body_total_timeout_s,
        )
    )
    limits = {
        "max_body_bytes": settings.max_body_bytes,
        "body_timeout_s": settings.body_timeout_s,
        "max_requests": settings.max_requests,
        "max_candidates": settings.max_candidates,
        "max_instruction_chars": settings.max_instruction_chars,
        "max_image_pixels": settings.max_image_pixels,
        "max_queue": settings.max_queue,
    }
    if scoring is not None:
        limit = settings.max_candidates
        app.include_router(score_router(scoring.service, bodies, scoring.quota(), max_candidates=limit))
    app.include_router(
        explain_router(explaining.service if explaining else _disabled, bodies, enabled=explaining is not None)
    )
    states = lambda: {name: part.state() for name, part in parts.items()}  # noqa: E731
    in_force = lambda: limits | ({"max_batch_tokens": scoring.batch_tokens} if scoring is not None else {})  # noqa: E731
    app.include_router(ops_router(states=states, model=main.model, limits=in_force, metrics=metrics))
    api_errors.install(app)
    keys = KeyFile(settings.api_keys_file, metrics) if settings.api_keys_file else None
    openapi.install(app, guarded=keys is not None)
    documentation = (app.docs_url, app.redoc_url, app.openapi_url, app.swagger_ui_oauth2_redirect_url)
    gate = Gate(
        app,
        find=keys.find if keys else None,
        slots=RequestSlots(settings.max_requests),
        open_paths=PROBES | {path for path in documentation if path},
    )
    routes = {path for route in app.routes if (path := getattr(route, "path", None))}
    outermost = RequestContext(gate, metrics, routes=routes, quiet=PROBES, observer=traces)
    return Application(outermost, list(parts.values()))


def _source(settings: Settings) -> CheckpointSource:
    """Check what can be checked now. Raises CheckpointError."""
    from .model.source import open_source  # imports torch, which a fake does not need

    return open_source(
        settings.checkpoint, settings.devices, settings.dtype, settings.engine, self_test=settings.self_test
    )


def _loader(settings: Settings, source: CheckpointSource | None) -> Callable[[], Parts]:
    """What loads the scores' source, or makes the fake one."""
    if source is None:
        preparer = FakePreparer()
        devices = ["cpu" if device == "auto" else device for device in settings.devices]
        model = ServedModel("jrm-fake", "fake", {"device": ",".join(devices), "dtype": None, "backend": "fake"})
        backends = [FakeBackend(device=device) for device in devices]
        return lambda: Parts(model, preparer, backends)

    def load() -> Parts:
        model, backends = source.load()
        if settings.max_batch_tokens is not None:
            return Parts(model, source.preparer, backends, source.cost)
        # vLLM may have taken its share of the GPU by now, or not yet.
        spared = settings.explain_gpu_share if settings.serves_explain else 0.0
        return Parts(model, source.preparer, backends, source.cost, source.batch_tokens(backends, spared=spared))

    return load


def _explaining(settings: Settings, source: CheckpointSource | None, metrics: Metrics) -> ExplainRuntime:
    """Raises ExplainSetupError when critiques cannot be served with these settings on this machine."""
    if source is None:
        raise ExplainSetupError(["serve explain: --backend fake has no language head"])
    from .explain.engine import EngineSettings
    from .explain.runtime import ExplainRuntime
    from .model.explained import explainable, require_memory

    checkpoint, device = source.checkpoint, source.devices[0]
    context = min(settings.explain_context, checkpoint.config.text_config.max_position_embeddings)
    require_memory(
        checkpoint,
        device,
        dtype=source.dtype,
        context=context,
        share=settings.explain_gpu_share,
        cache_gib=settings.explain_cache_gib,
        scorer=settings.serves_score,
    )
    return ExplainRuntime(
        source.described,
        explainable(checkpoint),
        EngineSettings(
            path=checkpoint.path,
            device=device,
            dtype=source.dtype,
            context=context,
            concurrency=settings.explain_concurrency,
            gpu_share=settings.explain_gpu_share,
            cache_gib=settings.explain_cache_gib,
        ),
        ExplainLimits(
            max_pixels=settings.max_image_pixels,
            max_decoded_bytes=settings.max_decoded_bytes,
            max_instruction_chars=settings.max_instruction_chars,
            max_tokens=settings.explain_max_tokens,
            max_requests=settings.explain_max_requests,
            context=context,
        ),
        threads=settings.preprocess_threads,
        grace_s=settings.grace_s,
        metrics=metrics,
    )


def _disabled() -> NoReturn:
    raise ExplainDisabled("this process serves scores only", retry_after=60)


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


def _request_traces(settings: Settings, metrics: Metrics) -> RequestTraces | None:
    """Raises MissingExtra."""
    if settings.otlp_endpoint is None:
        return None
    try:
        from .api.tracing import RequestTraces
    except ModuleNotFoundError as error:
        problem = f"otlp_endpoint needs {error.name}: pip install 'jrm-serve[otel]'"
        raise MissingExtra(problem) from error
    return RequestTraces(settings.otlp_endpoint, metrics)


async def _in_daemon_thread(work: Callable[[], T]) -> T:
    """The result of ``work``. Unlike asyncio's own threads, this one keeps no process from ending half-way."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)  # type: ignore[arg-type]
        else:
            future.set_exception(error)

    def run() -> None:
        try:
            outcome: tuple[T | None, BaseException | None] = (work(), None)
        except BaseException as error:
            outcome = (None, error)
        with suppress(RuntimeError):  # the loop has ended: nobody waits
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, name="jrm-load", daemon=True).start()
    return await future


def _registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry
