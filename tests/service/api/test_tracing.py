"""Traces as a collector gets them, from a real server that has been stopped: nothing is sent later."""

from __future__ import annotations

import base64
import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from prometheus_client import CollectorRegistry

from jrm_service.api import tracing
from jrm_service.api.access_log import RequestRecord
from jrm_service.api.keys import Key, digest
from jrm_service.api.tracing import RequestTraces, stages
from jrm_service.metrics import Metrics
from jrm_service.scoring.fakes import FakeBackend, RaisingBackend
from jrm_service.settings import Settings
from support import collector, servers
from support.collector import Collector, attributes, begin
from support.pictures import encode, photo

RED, BLUE = (base64.b64encode(encode(photo(40, 40, seed=n))).decode() for n in range(2))
SECRET = "jrm_alice-secret"
INSTRUCTION = "turn the hedgehog into a teapot"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def ask(url: str, *edits: str, instruction: str = INSTRUCTION, **headers: str) -> httpx.Response:
    request = {"groups": [{"source": RED, "instruction": instruction, "edits": list(edits)}]}
    headers = {"authorization": f"Bearer {SECRET}"} | headers
    return httpx.post(f"{url}/v1/score", json=request, headers=headers, timeout=60)


@contextlib.contextmanager
def traced(**settings) -> Iterator[tuple[str, Collector]]:
    """A server, and the collector that has all of its traces when the block has ended."""
    backend = RaisingBackend(FakeBackend(), when=lambda candidate: candidate.instruction == "break")
    with collector.collecting() as collected:
        options = Settings(backend="fake", otlp_endpoint=collected.url, **settings)
        with servers.serving(options, load=lambda: servers.fake_parts(backend)) as url:
            yield url, collected


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text(Key("alice", digest(SECRET.encode())).line())
    return path


# --- what is sent ---


def test_a_request_is_a_span_that_says_what_it_did(keys):
    with traced(api_keys_file=keys) as (url, collected):
        reply = ask(url, RED, BLUE, "!!!", **{"x-request-id": "step-7"})
    [span] = collected.roots
    usage = reply.json()["usage"]
    assert span.name == "POST /v1/score"
    assert attributes(span) == {
        "http.request.method": "POST",
        "http.route": "/v1/score",
        "http.response.status_code": 200,
        "http.request.body.size": int(reply.request.headers["content-length"]),
        "jrm.request_id": "step-7",
        "jrm.outcome": "partial",
        "jrm.key": "alice",
        "jrm.candidates": 3,
        "jrm.failed": 1,
        "jrm.cached": 0,
        "jrm.images": usage["images"],
        "jrm.tokens": usage["tokens"],
        "jrm.tokens_computed": usage["tokens_computed"],
    }
    assert set(collected.paths) == {"/v1/traces"}


def test_its_children_are_the_times_of_the_reply():
    with traced() as (url, collected):
        timings = ask(url, BLUE).json()["timings_ms"]
    [span] = collected.roots
    children = collected.children(span)
    for name, child in children.items():
        assert span.start_time_unix_nano <= begin(child) < child.end_time_unix_nano <= span.end_time_unix_nano
        took_ms = (child.end_time_unix_nano - begin(child)) / 1e6
        assert took_ms == pytest.approx(timings[name], abs=0.002)
        assert child.trace_id == span.trace_id
    assert set(children) == {"preprocess", "queue", "inference"}


def test_a_score_that_was_cached_has_no_time_in_the_queue():
    with traced() as (url, collected):
        ask(url, BLUE)
        ask(url, BLUE)
    assert set(collected.children(collected.roots[1])) == {"preprocess"}


@pytest.mark.parametrize(
    ("body", "status", "outcome", "failed"),
    [
        (b"{", 400, "invalid_request", False),
        (b'{"source": "%s", "edited": "%s", "instruction": "break"}' % (2 * (RED.encode(),)), 500, "internal", True),
    ],
)
def test_only_what_the_server_did_wrong_is_an_error(body, status, outcome, failed):
    with traced() as (url, collected):
        httpx.post(f"{url}/v1/score", content=body, headers={"content-type": "application/json"})
    [span] = collected.roots
    assert attributes(span)["http.response.status_code"] == status
    assert attributes(span)["jrm.outcome"] == outcome
    assert attributes(span).get("error.type") == (outcome if failed else None)
    assert span.status.code == (Status.STATUS_CODE_ERROR if failed else Status.STATUS_CODE_UNSET)


def test_probes_are_not_traced_and_a_path_of_nobodys_is_not_told():
    with traced() as (url, collected):
        httpx.get(f"{url}/metrics")
        httpx.get(f"{url}/health/live")
        httpx.get(f"{url}/etc/passwd")
    [span] = collected.roots
    assert span.name == "GET"
    assert "http.route" not in attributes(span)


def test_nothing_secret_and_nothing_of_a_requests_content_is_sent(keys):
    with traced(api_keys_file=keys) as (url, collected):
        ask(url, BLUE, "part:of-a-secret", cookie="session=hunter2", **{"user-agent": "hedgehog"})
        httpx.post(f"{url}/v1/score?key={SECRET}", headers={"authorization": "Bearer jrm_another-secret"})
    assert len(collected.roots) == 2
    for word in (b"secret", b"hunter2", b"hedgehog", b"teapot", BLUE[:40].encode()):
        assert word not in collected.raw


# --- whose trace it is ---


def test_the_callers_trace_goes_on():
    with traced() as (url, collected):
        ask(url, BLUE, traceparent=f"00-{TRACE}-{PARENT}-01", tracestate="vendor=1")
    [span] = collected.roots
    assert (span.trace_id.hex(), span.parent_span_id.hex(), span.trace_state) == (TRACE, PARENT, "vendor=1")
    assert {child.trace_id for child in collected.children(span).values()} == {span.trace_id}


@pytest.mark.parametrize("given", ["", "00-0-0-01", f"00-{'0' * 32}-{PARENT}-01", "x" * 1000])
def test_without_a_valid_parent_it_begins_a_trace_of_its_own(given):
    with traced() as (url, collected):
        for _ in range(2):
            assert ask(url, BLUE, traceparent=given).status_code == 200
    assert {span.parent_span_id for span in collected.roots} == {b""}
    assert len({span.trace_id for span in collected.roots}) == 2


def test_a_caller_who_does_not_sample_is_not_traced():
    with traced() as (url, collected):
        ask(url, BLUE, traceparent=f"00-{TRACE}-{PARENT}-00")
    assert collected.spans == []


def test_the_service_has_a_name_of_the_users_choice(monkeypatch):
    names = []
    for chosen in (None, "reward"):
        if chosen:
            monkeypatch.setenv("OTEL_SERVICE_NAME", chosen)
        with traced() as (url, collected):
            ask(url, BLUE)
        [resource] = [one.resource for request in collected.requests for one in request.resource_spans]
        names += [one.value.string_value for one in resource.attributes if one.key == "service.name"]
    assert names == ["jrm-serve", "reward"]


# --- when nobody takes it ---


def test_a_collector_that_refuses_is_counted_and_told_once(caplog):
    metrics = Metrics(CollectorRegistry())
    with collector.collecting(status=400) as collected:
        traces = RequestTraces(collected.url, metrics)
        traces.observe(RequestRecord("mine"), {}, method="GET", route="/v1/info", status=200)
        traces.close()
    assert metrics.registry.get_sample_value("jrm_trace_spans_total", {"outcome": "failed"}) == 1
    assert [one.getMessage() for one in caplog.records if one.name == tracing.__name__] == [
        "traces do not reach the collector; going on without them"
    ]


def test_a_collector_that_never_answers_delays_no_request_and_the_end_only_for_a_moment():
    """It takes the connection, and the exporter would wait for its answer for 10 seconds."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        traces = RequestTraces(endpoint, Metrics(CollectorRegistry()), flush_s=0.1)
        for _ in range(3_000):  # more than wait for the collector
            traces.observe(RequestRecord("mine"), {}, method="GET", route="/v1/info", status=200)
        traces.close()
        [sending] = [thread for thread in threading.enumerate() if thread.name == "jrm-traces"]
    sending.join()


# --- without OpenTelemetry ---


def run(program: str) -> str:
    """What a program prints about applications."""
    begin = "import sys; from jrm_service.app import create_app; from jrm_service.settings import Settings\n"
    return subprocess.run([sys.executable, "-c", begin + program], capture_output=True, text=True, check=True).stdout


def test_without_the_setting_nothing_of_it_is_imported():
    program = """
create_app(Settings(backend="fake"))
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    assert run(program) == "[]\n"


def test_where_it_is_not_installed_the_setting_says_what_to_install():
    program = """
from jrm_service.errors import MissingExtra
sys.modules["opentelemetry"] = None  # as Python itself marks what cannot be imported
try:
    create_app(Settings(backend="fake", otlp_endpoint="http://127.0.0.1:4318"))
except MissingExtra as error:
    print(error.problems)
"""
    assert "pip install 'jrm-serve[otel]'" in run(program)


# --- stages ---


def record(preprocess: float, queue: float, inference: float) -> RequestRecord:
    """Milliseconds; scoring began at 10 and ended at 11 seconds."""
    times = {"preprocess_ms": preprocess, "queue_ms": queue, "inference_ms": inference}
    return RequestRecord("", scoring_began=10.0, scoring_ended=11.0, **times)


def test_inference_ends_with_the_last_score():
    assert stages(record(300.0, 250.0, 500.0)) == [
        ("preprocess", 10.0, 10.3),
        ("queue", 10.25, 10.5),
        ("inference", 10.5, 11.0),
    ]


def test_no_stage_is_longer_than_scoring():
    """The longest wait and the longest batch may be those of two candidates, one after the other."""
    assert stages(record(2000.0, 900.0, 800.0)) == [
        ("preprocess", 10.0, 11.0),
        ("queue", 10.0, pytest.approx(10.2)),
        ("inference", pytest.approx(10.2), 11.0),
    ]


def test_a_request_that_was_never_scored_has_no_stages():
    assert stages(RequestRecord("")) == []
