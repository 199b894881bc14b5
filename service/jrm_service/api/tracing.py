"""Traces of requests, sent to an OpenTelemetry collector. Imported only if one is set: it needs the extra [otel]."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Mapping, Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from jrm_service.metrics import Metrics, begin
from jrm_service.versions import installed

from .access_log import RequestRecord

_PATH = "/v1/traces"

logger = logging.getLogger(__name__)


class RequestTraces:
    """Implements RequestObserver: one server span for each request, in the caller's trace if it sent ``traceparent``.

    Its children come from the times in the reply: ``preprocess``, and the ``queue`` and ``inference`` of the candidate
    that took longest, placed so that inference ends with the last score. Attributes are those of HTTP's semantic
    conventions, and counts and names under ``jrm.``: nothing of a request's content.

    A thread sends spans in batches; no request waits for it. When there are too many they are dropped, and when the
    collector does not accept them they are lost; ``jrm_trace_spans_total`` or the log shows both.

    ``OTEL_…`` variables, read by OpenTelemetry itself, set the rest: headers, certificates, sampling, resource.

    Args:
        endpoint: URL of the collector, as in ``OTEL_EXPORTER_OTLP_ENDPOINT``, with or without ``/v1/traces``.
        metrics: counts the spans.
        flush_s: the longest that ``close`` takes, in seconds; spans that are not sent by then are lost.
    """

    def __init__(self, endpoint: str, metrics: Metrics, *, flush_s: float = 2.0) -> None:
        endpoint = endpoint.rstrip("/").removesuffix(_PATH) + _PATH
        self._flush_s = flush_s
        self._exporter = _CountedExporter(OTLPSpanExporter(endpoint), metrics)
        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("jrm_service")
        self._propagator = TraceContextTextMapPropagator()

    def observe(
        self, record: RequestRecord, headers: Mapping[str, str], *, method: str, route: str | None, status: int
    ) -> None:
        """Make the spans of a request that was just answered. ``route`` is None for a path that is not in the API."""
        ended, ended_ns = time.perf_counter(), time.time_ns()

        def at(moment: float) -> int:
            """Convert a time of ``perf_counter`` to nanoseconds since the epoch."""
            return ended_ns - round((ended - moment) * 1e9)

        context = self._propagator.extract(headers)
        span = self._tracer.start_span(
            f"{method} {route}" if route else method,
            context,
            SpanKind.SERVER,
            _attributes(record, method, route, status),
            start_time=at(record.started),
        )
        if span.is_recording():
            inside = set_span_in_context(span, context)
            for name, begin, end in stages(record):
                self._tracer.start_span(name, inside, start_time=at(begin)).end(at(end))
            if status >= 500:
                span.set_status(Status(StatusCode.ERROR, record.outcome))
        span.end(ended_ns)

    def close(self) -> None:
        """Send the remaining spans. Blocks for ``flush_s`` seconds at most."""
        sending = threading.Thread(target=self._provider.shutdown, name="jrm-traces", daemon=True)
        sending.start()
        sending.join(self._flush_s)
        self._exporter.shutdown()


def stages(record: RequestRecord) -> list[tuple[str, float, float]]:
    """Name, begin and end of each measured stage, in ``perf_counter`` time. Stages that took no time are left out."""
    began, ended = record.scoring_began, record.scoring_ended
    if began is None or ended is None:
        return []
    preprocessed = min(ended, began + (record.preprocess_ms or 0.0) / 1e3)
    inferring = max(began, ended - (record.inference_ms or 0.0) / 1e3)
    queued = max(began, inferring - (record.queue_ms or 0.0) / 1e3)
    measured = [("preprocess", began, preprocessed), ("queue", queued, inferring), ("inference", inferring, ended)]
    return [(name, begin, end) for name, begin, end in measured if end > begin]


def _attributes(record: RequestRecord, method: str, route: str | None, status: int) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue | None] = {
        "http.request.method": "_OTHER" if method == "OTHER" else method,
        "http.route": route,
        "http.response.status_code": status,
        "http.request.body.size": record.body_bytes,
        "error.type": record.outcome if status >= 500 else None,
        "jrm.request_id": record.request_id,
        "jrm.outcome": record.outcome,
        "jrm.key": record.key.name if record.key else None,
        "jrm.wire": record.wire or None,
        "jrm.candidates": record.candidates,
        "jrm.failed": record.failed,
        "jrm.cached": record.cached,
        "jrm.images": record.images,
        "jrm.tokens": record.tokens,
        "jrm.tokens_computed": record.tokens_computed,
    }
    return {name: value for name, value in attributes.items() if value is not None}


def _resource() -> Resource:
    ours = {"service.name": "jrm-serve", "service.instance.id": str(uuid.uuid4())}
    named = {"service.version": installed("jrm-serve") or "none"}
    return (
        Resource.create().merge(Resource(ours | named)).merge(OTELResourceDetector().detect())
    )  # the user's values win


class _CountedExporter(SpanExporter):
    """Counts the spans that were sent or lost, and logs only when that changes."""

    def __init__(self, inner: SpanExporter, metrics: Metrics) -> None:
        self._inner = inner
        self._metrics = metrics
        for outcome in ("sent", "failed"):
            begin(metrics.trace_spans, outcome)
        self._works = True
        self._closing = threading.Lock()
        self._closed = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._inner.export(spans)
        works = result is SpanExportResult.SUCCESS
        self._metrics.trace_spans.labels("sent" if works else "failed").inc(len(spans))
        if works != self._works:
            self._works = works
            if works:
                logger.info("traces reach the collector again")
            else:
                logger.warning("traces do not reach the collector; going on without them")
        return result

    def shutdown(self) -> None:
        with self._closing:
            closed, self._closed = self._closed, True
        if not closed:
            self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)
