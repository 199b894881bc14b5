"""The composition root: the only place that wires settings, model, queue and HTTP together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, NoReturn, Protocol

from fastapi import FastAPI
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from .api import docs_page, openapi
from .api import errors as api_errors
from .api.access_log import record_of
from .api.admin import PATHS as ADMIN_PATHS
from .api.admin import admin_router
from .api.explain import explain_router
from .api.gate import Gate
from .api.guards import BodyLimits, BodyReader, RequestContext
from .api.keyfile import KeyFile
from .api.keys import Scopes
from .api.limits import RequestSlots
from .api.methods import Methods
from .api.ops import PROBES, SERVING, PartState, ops_router
from .api.page import routes as page
from .api.page.files import static_files
from .api.score import score_router
from .api.score_path import ScorePath, Wire, refusal
from .api.watch.recorder import Recorder
from .api.watch.routes import watch_router
from .api.watch.store import RecentGroups
from .api.watch.window import Window
from .errors import (
    CheckpointError,
    ExplainDisabled,
    ExplainSetupError,
    JRMError,
    MissingExtra,
    NotReady,
    RequestError,
    TracesError,
)
from .explain.runtime import ExplainRuntime
from .explain.worker import MODULE
from .metrics import Metrics
from .score_runtime import OnFailed, Parts, ScoreRuntime
from .scoring.backend import StartFailed
from .scoring.line import WaitingLine
from .scoring.types import ServedModel
from .settings import Settings
from .versions import installed
from .wires.rewards import accepted_names
from .wires.routes import PROBES as WIRE_PROBES
from .wires.routes import check_scales, uses_root, warn_of_raw_rewards, wire_at, wires_of, wires_router
from .workers import explaining_runtime, score_loader

if TYPE_CHECKING:
    from .api.tracing import RequestTraces

logger = logging.getLogger(__name__)

_EXPECTED = (JRMError, StartFailed)  # their messages say what is wrong; a traceback would add nothing


class ServerPart(Protocol):
    """One part of the server: scores or critiques."""

    async def drain(self) -> None: ...  # noqa: D102
    async def stop(self) -> None: ...  # noqa: D102
    def state(self) -> tuple[PartState, str]: ...  # noqa: D102
    def model(self) -> ServedModel: ...  # noqa: D102


class Application:
    """The ASGI application, with what its server needs to shut it down gracefully."""

    def __init__(
        self, asgi: ASGIApp, parts: Mapping[str, ServerPart], metrics: Metrics, end_streams: Callable[[], None]
    ) -> None:
        self._asgi = asgi
        self._parts = parts
        self._end_streams = end_streams
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 - ASGI
        await self._asgi(scope, receive, send)

    async def drain(self) -> None:
        """Drain all parts. Call it before the listeners close: callers then get 503, not a refused connection."""
        self.end_streams()
        await asyncio.gather(*(part.drain() for part in self._parts.values()))

    def states(self) -> dict[str, tuple[PartState, str]]:
        """The state of each part and, if it is not ready, the reason."""
        return {name: part.state() for name, part in self._parts.items()}

    def end_streams(self) -> None:
        """End the streams that would otherwise last as long as their readers stay."""
        self._end_streams()


def create_app(
    settings: Settings,
    *,
    load: Callable[[], Parts] | None = None,
    on_ready: Callable[[ServedModel], None] = lambda _model: None,
    on_failed: OnFailed = lambda _error: None,
    explain_module: str = MODULE,
) -> Application:
    """Return the ASGI application. It answers at once, and becomes ready when the model is loaded and warm.

    ``load`` replaces the source of scores in the settings, and runs in a thread; ``explain_module`` is the module that
    the process for critiques runs. ``on_failed`` is called with later failures: a checkpoint that a worker refuses, or
    a worker that can no longer be started.

    Raises KeysError for a keys file that cannot be used, RedisURLError for a Redis URL with an unknown option,
    MissingExtra for traces without OpenTelemetry, TracesError if its variables are wrong, and ExplainSetupError if
    critiques obviously cannot be served.
    """
    metrics = Metrics(_registry())
    metrics.show_build(version("jrm-serve"), installed("torch"), installed("transformers"))
    traces = _request_traces(settings, metrics)
    wires = wires_of(settings.wire_names, normalized=settings.normalized_wires, further_names=settings.reward_name_list)
    if settings.serves_score:
        warn_of_raw_rewards(settings.wire_names, normalized=settings.normalized_wires)
    line = WaitingLine(max_body_bytes=settings.max_bodies_bytes, max_queue=settings.max_queue)
    check = partial(check_scales, settings.normalized_wires)
    loader = score_loader(settings, load)
    scoring = ScoreRuntime(settings, loader, check, line, metrics, on_failed) if settings.serves_score else None
    explaining = explaining_runtime(settings, explain_module, metrics, on_failed) if settings.serves_explain else None
    parts: dict[str, ServerPart] = {
        name: part for name, part in (("score", scoring), ("explain", explaining)) if part is not None
    }
    for name, part in parts.items():
        metrics.ready.labels(name).set_function(partial(_takes_requests, part))
    main = next(iter(parts.values()))
    started = asyncio.Event()
    recorder = _recorder(settings, metrics)

    async def start() -> None:
        try:
            await _start(scoring, explaining)
        except Exception as error:
            # The problems of these two are printed line by line by ``on_failed``.
            if not isinstance(error, CheckpointError | ExplainSetupError):
                logger.log(logging.ERROR, "start-up failed: %s", error, exc_info=not isinstance(error, _EXPECTED))
            on_failed(error)
        else:
            started.set()
            model = main.model()
            if scoring is None:  # else ScoreRuntime has shown it
                metrics.show_model(model=model.name, fingerprint=model.fingerprint, facts=model.description)
            on_ready(model)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(start())]
        if recorder is not None:
            tasks.append(asyncio.create_task(recorder.run()))
        yield
        for task in tasks:
            task.cancel()  # a loading thread cannot be stopped, but is not waited for
        await asyncio.gather(*tasks, return_exceptions=True)
        if recorder is not None:
            recorder.stop()
        await asyncio.gather(*(part.stop() for part in parts.values()))
        if traces is not None:
            await asyncio.to_thread(traces.close)

    app = FastAPI(
        title="JRM Serve",
        version=version("jrm-serve"),
        description="Rewards for image edits from a JRM checkpoint.",
        lifespan=lifespan,
        redirect_slashes=False,  # an unknown path is a 404, not a redirect to the host that the caller named
        docs_url=None,  # see api.docs_page
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    bodies = BodyReader(
        BodyLimits(
            max_bytes=settings.max_body_bytes,
            idle_timeout_s=settings.body_timeout_s,
            total_timeout_s=settings.body_total_timeout_s,
        ),
        line,
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
        score_path = ScorePath(
            scoring.service,
            bodies,
            scoring.quota(),
            max_candidates=settings.max_candidates,
            max_image_pixels=settings.max_image_pixels,
            recorder=recorder,
        )
        app.include_router(score_router(score_path, [wire for name, wire in wires.items() if name == "unirl"]))
        app.include_router(wires_router(score_path, wires, scoring.served, settings.reward_name_list))
    app.include_router(
        explain_router(explaining.service if explaining else _disabled, bodies, enabled=explaining is not None)
    )
    in_force = lambda: limits | ({"max_batch_tokens": scoring.batch_tokens} if scoring is not None else {})  # noqa: E731
    app.include_router(
        ops_router(
            started=started.is_set,
            states=lambda: application.states(),
            model=main.model,
            reward_names=lambda: accepted_names(main.model(), settings.reward_name_list) if scoring else [],
            limits=in_force,
            metrics=metrics,
        )
    )
    keys = KeyFile(settings.api_keys_file, metrics) if settings.api_keys_file else None
    scopes = Scopes(keys.current if keys else None)
    app.include_router(watch_router(recorder, main.model, scores=scoring is not None, scopes=scopes))
    if settings.admin:
        root = None if settings.backend == "fake" else settings.reload_root
        app.include_router(admin_router(scoring, scopes, explains=explaining is not None, reload_root=root))
    api_errors.install(app)
    openapi.install(app, guarded=keys is not None, max_sources=partial(_max_sources, main))
    docs = docs_page.install(app)
    page_files = static_files() if settings.page else {}
    page.install(app, page_files, documentation=docs, greets=scoring is not None and uses_root(wires))
    documentation = {docs_page.DOCS, *([app.openapi_url] if app.openapi_url else []), *page.open_paths(page_files)}
    probes = PROBES.union(*(wire_probes for name, wire_probes in WIRE_PROBES.items() if name in wires and scoring))
    gate = Gate(
        Methods(app, probes=probes),
        find=keys.find if keys else None,
        slots=RequestSlots(settings.max_requests),
        open_paths=probes | documentation,
        uncounted_paths=ADMIN_PATHS,
        is_open=page.is_page if page_files else lambda _scope: False,
        refuse=partial(_refuse, wires),
    )
    routes = {path for route in app.routes if (path := getattr(route, "path", None))}
    outermost = RequestContext(gate, metrics, routes=routes, quiet=probes, observer=traces)
    application = Application(outermost, parts, metrics, recorder.close if recorder is not None else lambda: None)
    return application


def _refuse(wires: Mapping[str, Wire], scope: Scope, error: RequestError) -> Response:
    """The reply to a request that is refused at the gate, in the format of its path's clients."""
    wire = wire_at(wires, scope)
    return api_errors.domain_error_reply(error) if wire is None else refusal(record_of(scope), wire, error)


def _recorder(settings: Settings, metrics: Metrics) -> Recorder | None:
    if not settings.keep_recent or not settings.serves_score:
        return None
    half = settings.keep_recent_mb * 500_000  # the other half is for groups that wait to be recorded
    return Recorder(RecentGroups(settings.keep_recent, half), Window(), metrics, max_waiting_bytes=half)


def _takes_requests(part: ServerPart) -> float:
    state, _ = part.state()
    return float(state in SERVING)


def _max_sources(part: ServerPart) -> int | None:
    """The most source images that the served model takes; None while it loads, or if it does not say."""
    try:
        most: int | None = part.model().description.get("image", {}).get("max_sources")
    except NotReady:
        return None
    return most


async def _start(scoring: ScoreRuntime | None, explaining: ExplainRuntime | None) -> None:
    """Start both parts. Raises the first error of either.

    The explain worker checks its checkpoint while the scorer loads, before vLLM is loaded. On a shared device the
    scorer then takes its memory and measures the rest, and vLLM takes the share that was left for it, in the same order
    as when vLLM is restarted.
    """
    try:
        async with asyncio.TaskGroup() as starting:
            if scoring is not None:
                starting.create_task(scoring.start())
            if explaining is not None:
                starting.create_task(explaining.open())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    if explaining is not None:
        await explaining.start(None if scoring is None else scoring.model().fingerprint)


def _disabled() -> NoReturn:
    raise ExplainDisabled("this process serves scores only", retry_after=60)


def _request_traces(settings: Settings, metrics: Metrics) -> RequestTraces | None:
    """Raises MissingExtra, TracesError."""
    if settings.otlp_endpoint is None:
        return None
    try:
        from .api.tracing import RequestTraces

        return RequestTraces(settings.otlp_endpoint, metrics)
    except ModuleNotFoundError as error:
        problem = f"otlp_endpoint needs {error.name}: pip install 'jrm-serve[otel]'"
        raise MissingExtra(problem) from error
    except (ValueError, OSError) as error:  # invalid OTEL_… variables, which it reads as early as on import
        raise TracesError(
            f"otlp_endpoint: OpenTelemetry refuses its environment variables (OTEL_…): {error}"
        ) from error


def _registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry
