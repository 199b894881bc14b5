"""The composition root: the only place that wires settings, model, queue and HTTP together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, NoReturn, Protocol

from fastapi import FastAPI
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from starlette.types import ASGIApp, Receive, Scope, Send

from .api import errors as api_errors
from .api import openapi, pages
from .api.explain import explain_router
from .api.gate import Gate
from .api.guards import BodyLimits, BodyReader, RequestContext
from .api.keyfile import KeyFile
from .api.limits import RequestSlots
from .api.methods import Methods
from .api.ops import PROBES, SERVING, PartState, ops_router
from .api.score import score_router
from .device.channel import Load
from .device.process import ProcessWorker, load_all
from .errors import CheckpointError, ExplainDisabled, ExplainSetupError, JRMError, MissingExtra, TracesError
from .explain.service import ExplainLimits
from .metrics import Metrics
from .model.trie import BATCH_COSTS
from .score_runtime import OnFailed, Parts, ScoreRuntime, Started
from .scoring.backend import StartFailed
from .scoring.fakes import FakeBackend, FakePreparer
from .scoring.line import WaitingLine
from .scoring.local import LocalWorker
from .scoring.preparing import CheckpointPreparer
from .scoring.types import ServedModel, joined_kernels
from .settings import Settings
from .threads import in_daemon_thread
from .versions import installed

if TYPE_CHECKING:
    from .api.tracing import RequestTraces
    from .explain.runtime import ExplainRuntime
    from .model.source import CheckpointSource

logger = logging.getLogger(__name__)

_EXPECTED = (JRMError, StartFailed)  # they say what is wrong; a traceback would say nothing more


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
    Raises at once KeysError for a keys file that cannot be used, RedisURLError for a Redis URL with an option that
    there is not, MissingExtra for traces without OpenTelemetry, TracesError where its variables are wrong; where
    critiques are to be served, also ExplainSetupError, CheckpointError and PipelineDrift. ``on_failed`` is told of what
    goes wrong later: what a worker finds wrong with the checkpoint, or that one does not start any more.
    """
    metrics = Metrics(_registry())
    metrics.show_build(version("jrm-serve"), installed("torch"), installed("transformers"))
    traces = _request_traces(settings, metrics)
    source = _source(settings) if settings.serves_explain and settings.backend != "fake" else None
    line = WaitingLine(max_body_bytes=settings.max_bodies_bytes, max_queue=settings.max_queue)
    scoring = (
        ScoreRuntime(settings, _loader(settings, load), line, metrics, on_failed) if settings.serves_score else None
    )
    explaining = _explaining(settings, source, metrics) if settings.serves_explain else None
    parts: dict[str, Served] = {
        name: part for name, part in (("score", scoring), ("explain", explaining)) if part is not None
    }
    for name, part in parts.items():
        metrics.ready.labels(name).set_function(partial(_takes_requests, part))
    main = next(iter(parts.values()))
    started = asyncio.Event()

    async def start() -> None:
        try:
            await asyncio.gather(*(part.start() for part in parts.values()))
        except Exception as error:
            if not isinstance(error, CheckpointError):  # whose problems are shown line by line, by whoever is told
                logger.log(logging.ERROR, "start-up failed: %s", error, exc_info=not isinstance(error, _EXPECTED))
            on_failed(error)
        else:
            started.set()
            model = main.model()
            if scoring is None:  # else it has shown itself
                metrics.show_model(model=model.name, fingerprint=model.fingerprint, facts=model.description)
            on_ready(model)

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
        redirect_slashes=False,  # a path that is not ours is a 404, and no redirect to the host that the caller named
        docs_url=None,  # see api.pages
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
        limit = settings.max_candidates
        app.include_router(score_router(scoring.service, bodies, scoring.quota(), max_candidates=limit))
    app.include_router(
        explain_router(explaining.service if explaining else _disabled, bodies, enabled=explaining is not None)
    )
    states = lambda: {name: part.state() for name, part in parts.items()}  # noqa: E731
    in_force = lambda: limits | ({"max_batch_tokens": scoring.batch_tokens} if scoring is not None else {})  # noqa: E731
    app.include_router(
        ops_router(started=started.is_set, states=states, model=main.model, limits=in_force, metrics=metrics)
    )
    api_errors.install(app)
    keys = KeyFile(settings.api_keys_file, metrics) if settings.api_keys_file else None
    openapi.install(app, guarded=keys is not None)
    pages.install(app)
    documentation = {pages.DOCS, *([app.openapi_url] if app.openapi_url else [])}
    gate = Gate(
        Methods(app, probes=PROBES),
        find=keys.find if keys else None,
        slots=RequestSlots(settings.max_requests),
        open_paths=PROBES | documentation,
    )
    routes = {path for route in app.routes if (path := getattr(route, "path", None))}
    outermost = RequestContext(gate, metrics, routes=routes, quiet=PROBES, observer=traces)
    return Application(outermost, list(parts.values()))


def _takes_requests(part: Served) -> float:
    state, _ = part.state()
    return float(state in SERVING)


def _source(settings: Settings) -> CheckpointSource:
    """Check what can be checked now. Raises CheckpointError."""
    from .model.source import open_source  # imports torch, which a fake does not need

    return open_source(
        settings.checkpoint,
        settings.devices,
        settings.dtype,
        settings.engine,
        quantize=settings.quantize,
        self_test=settings.self_test,
        allow_pipeline_drift=settings.allow_pipeline_drift,
    )


def _loader(settings: Settings, load: Callable[[], Parts] | None) -> Callable[[], Awaitable[Started]]:
    if load is None and settings.backend != "fake":
        return partial(_in_processes, settings)
    return partial(_in_threads, load or partial(_fakes, settings))


def _fakes(settings: Settings) -> Parts:
    """Made-up scores from this process."""
    devices = ["cpu" if device == "auto" else device for device in settings.devices]
    model = ServedModel(
        "jrm-fake", "fake", {"device": ",".join(devices), "dtype": None, "precision": "float32", "backend": "fake"}
    )
    return Parts(model, FakePreparer(), [FakeBackend(device=device) for device in devices])


async def _in_threads(load: Callable[[], Parts]) -> Started:
    """Backends of this process, each in a thread of its own."""
    parts = await in_daemon_thread(load)
    workers = [LocalWorker(backend) for backend in parts.backends]
    await asyncio.gather(*(worker.start() for worker in workers))
    return Started(parts.model, parts.preparer, workers, parts.cost, parts.batch_tokens)


async def _in_processes(settings: Settings) -> Started:
    """One process for each device, and what they tell of the checkpoint. Raises CheckpointError, StartFailed."""
    workers = [
        ProcessWorker(
            Load(
                checkpoint=None if settings.checkpoint is None else str(settings.checkpoint),
                devices=settings.devices,
                number=number,
                dtype=settings.dtype,
                engine=settings.engine,
                quantize=settings.quantize,
                cuda_graphs=settings.cuda_graphs,
                self_test=settings.self_test,
                allow_pipeline_drift=settings.allow_pipeline_drift,
                # Every weight is read for it: once is enough.
                hashed=number == 0,
                measured=settings.max_batch_tokens is None,
                # vLLM may have taken its share of the GPU by now, or not yet.
                spared=settings.explain_gpu_share if settings.serves_explain else 0.0,
            ),
            start_timeout_s=settings.start_timeout_s,
        )
        for number in range(len(settings.devices))
    ]
    loaded = await load_all(workers)
    first = loaded[0]
    tests = [one.model.description["self_test"] for one in loaded]
    facts = {
        "device": ",".join(one.model.description["device"] for one in loaded),
        "self_test": None if None in tests else max(tests, key=lambda test: test["max_deviation"]),
        "kernels": joined_kernels([one.model.description["kernels"] for one in loaded]),
    }
    return Started(
        replace(first.model, description={**first.model.description, **facts}),
        CheckpointPreparer(first),
        workers,
        BATCH_COSTS[settings.engine],
        min(one.batch_tokens for one in loaded),
    )


def _explaining(settings: Settings, source: CheckpointSource | None, metrics: Metrics) -> ExplainRuntime:
    """Raises ExplainSetupError when critiques cannot be served with these settings on this machine."""
    if source is None:
        raise ExplainSetupError(["serve explain: --backend fake has no language head"])
    from .explain.runtime import ExplainRuntime
    from .explain.vllm_engine import EngineSettings
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
        partial(source.described, engine="vllm"),
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
    except (ValueError, OSError) as error:  # what it reads from OTEL_… variables, as early as when it is imported
        raise TracesError(
            f"otlp_endpoint: OpenTelemetry refuses its environment variables (OTEL_…): {error}"
        ) from error


def _registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry
