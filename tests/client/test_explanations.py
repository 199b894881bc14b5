"""Streamed critiques over real sockets."""

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from client.conftest import FAST
from client.scripted_server import Drop, Reply, ScriptedServer, Step, Stream, refusal, reward_of
from jrm_client import (
    APIConnectionError,
    APIResponseError,
    APIStatusError,
    APITimeoutError,
    AsyncJRMClient,
    ExplainDelta,
    ExplainDone,
    FingerprintMismatch,
    JRMClient,
)
from jrm_client.explanations import Transcript

Serve = Callable[..., ScriptedServer]
Connect = Callable[..., JRMClient]

FAILED = {"status": "error", "error": {"code": "deadline_exceeded", "message": "out of time"}}
PINNED = {"x-jrm-fingerprint": "f00d"}


def event(dimension: str, **content: object) -> bytes:
    return b"data: " + json.dumps({"dimension": dimension, **content}, ensure_ascii=False).encode() + b"\n\n"


FIRST = event("quality", delta='{"reas')
LAST = event("quality", explanation={"status": "ok", "reasoning": "fine"})
END = b"data: [DONE]\n\n"
WHOLE = Stream([FIRST, LAST, END])


def events(client: JRMClient, **options: Any) -> list[ExplainDelta | ExplainDone]:
    return list(client.explain_stream(b"S", b"A", "red", **options))


# --- what arrives -----------------------------------------------------------------------------------------------------


def test_events_are_typed_and_in_order(serve: Serve, connect: Connect) -> None:
    [delta, done] = events(connect(serve(WHOLE)))
    assert delta == ExplainDelta(dimension="quality", delta='{"reas')
    assert isinstance(done, ExplainDone)
    assert (done.dimension, done.explanation.status, done.explanation.reasoning) == ("quality", "ok", "fine")


def test_the_asynchronous_client(serve: Serve) -> None:
    url = serve(WHOLE).url

    async def use() -> list[str]:
        async with AsyncJRMClient(url) as client:
            return [type(one).__name__ async for one in client.explain_stream(b"S", b"A", "red")]

    assert asyncio.run(use()) == ["ExplainDelta", "ExplainDone"]


def test_what_is_sent(serve: Serve, connect: Connect) -> None:
    server = serve(WHOLE)
    events(connect(server, api_key="sk-1"), dimensions=["quality"], max_tokens=64, timeout=7)
    [request] = server.requests
    body = json.loads(request.body)
    assert (request.path, request.headers["accept"]) == ("/v1/explain", "text/event-stream")
    assert request.headers["authorization"] == "Bearer sk-1"
    assert (body["stream"], body["dimensions"], body["max_tokens"]) == (True, ["quality"], 64)
    assert 6000 < body["timeout_ms"] < 7000


def test_chunks_that_cut_through_events_and_letters(serve: Serve, connect: Connect) -> None:
    text = "ü" * 99 + "\u2028"
    stream = b": hello\n\n" + event("quality", delta=text) + LAST + END
    server = serve(Stream([stream[at : at + 7] for at in range(0, len(stream), 7)]))
    [delta, _] = events(connect(server))
    assert isinstance(delta, ExplainDelta)
    assert delta.delta == text


def test_dimensions_may_be_mixed(serve: Serve, connect: Connect) -> None:
    pieces = [event("a", delta="1"), event("b", delta="2"), event("a", delta="3")]
    pieces += [event("b", explanation=FAILED), event("a", explanation={"status": "truncated"}), END]
    received = events(connect(serve(Stream(pieces))))
    assert [one.dimension for one in received] == ["a", "b", "a", "b", "a"]


def test_a_dimension_that_failed_is_returned(serve: Serve, connect: Connect) -> None:
    [done] = events(connect(serve(Stream([event("quality", explanation=FAILED), END]))))
    assert isinstance(done, ExplainDone)
    assert done.explanation.error is not None
    assert done.explanation.error.code == "deadline_exceeded"


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_refusal_before_the_stream(serve: Serve, connect: Connect) -> None:
    with pytest.raises(APIStatusError, match="invalid_image") as caught:
        events(connect(serve(refusal(422, "invalid_image"))))
    assert (caught.value.status, caught.value.request_id) == (422, "req-7")


@pytest.mark.parametrize(
    "step",
    [
        Drop(),
        refusal(503, "explain_unavailable", headers={"retry-after": "0"}),
        Stream([], "broken"),
        Stream([b": hello\n\n"]),
        Stream([FIRST[:9]]),
    ],
)
def test_what_fails_before_the_first_event_is_asked_again(serve: Serve, connect: Connect, step: Step) -> None:
    server = serve(step, WHOLE)
    assert len(events(connect(server))) == 2
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (Stream([FIRST], "broken"), "broke off .*RemoteProtocolError"),
        (Stream([FIRST]), r"ended before \[DONE\]"),
        (Stream([FIRST, LAST]), r"ended before \[DONE\]"),
        (Stream([FIRST, LAST, END.rstrip()]), r"ended before \[DONE\]"),
    ],
)
def test_a_stream_that_ends_early_raises_after_what_it_gave(
    serve: Serve, connect: Connect, stream: Stream, message: str
) -> None:
    server = serve(stream)
    received: list[object] = []
    with pytest.raises(APIConnectionError, match=message) as caught:
        received.extend(connect(server).explain_stream(b"S", b"A", "red"))
    assert len(received) == stream.pieces.count(FIRST) + stream.pieces.count(LAST)
    assert caught.value.request_id
    assert len(server.requests) == 1  # never again after the first event: the text would begin anew


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            Reply(json={"explanations": {}}),
            "a stream was asked for and the reply of http://.*/v1/explain is of no type",
        ),
        (Stream([END]), "ends without an explanation"),
        (Stream([b"data: {\n\n"]), r"neither a delta nor an explanation: \{"),
    ],
)
def test_a_reply_that_is_no_such_stream_is_not_asked_for_again(
    serve: Serve, connect: Connect, step: Step, message: str
) -> None:
    server = serve(step)
    with pytest.raises(APIResponseError, match=message):
        events(connect(server))
    assert len(server.requests) == 1


def test_the_timeout_is_for_the_whole_stream(serve: Serve, connect: Connect) -> None:
    server = serve(Stream([FIRST], "open"))
    stream = connect(server).explain_stream(b"S", b"A", "red", timeout=0.3)
    assert isinstance(next(stream), ExplainDelta)
    with pytest.raises(APITimeoutError, match=r"timeout=0\.3 s"):
        next(stream)
    assert server.disconnected.wait(60)


def test_the_timeout_leaves_the_work_of_an_asynchronous_caller_alone(serve: Serve) -> None:
    url = serve(Stream([FIRST], "open")).url

    async def use() -> None:
        async with AsyncJRMClient(url) as client:
            stream = client.explain_stream(b"S", b"A", "red", timeout=0.3)
            await anext(stream)
            await asyncio.sleep(0.4)  # the deadline passes in here, and is told at the next step
            with pytest.raises(APITimeoutError):
                await anext(stream)

    asyncio.run(use())


def test_arguments_are_checked_before_anything_is_sent(serve: Serve, connect: Connect) -> None:
    server = serve()
    client = connect(server)
    with pytest.raises(ValueError, match="instruction: empty"):
        client.explain_stream(b"S", b"A", " ")
    with pytest.raises(TypeError, match="dimensions='quality': expected a list"):
        client.explain_stream(b"S", b"A", "red", dimensions="quality")
    with pytest.raises(ValueError, match="max_tokens=0"):
        client.explain_stream(b"S", b"A", "red", max_tokens=0)
    with pytest.raises(FileNotFoundError, match="edited"):
        next(client.explain_stream(b"S", "/no/such/file", "red"))
    client.explain_stream(b"S", b"A", "red")  # nor by a stream that nobody reads
    assert server.requests == []


# --- the contract, without a socket -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        ([b"[1]"], "neither a delta nor an explanation"),
        ([b'{"dimension": "quality"}'], "neither a delta nor an explanation"),
        ([b'{"dimension": "quality", "delta": 1}'], "neither a delta nor an explanation"),
        ([b'{"dimension": "quality", "delta": "\xff"}'], "neither a delta nor an explanation"),
        ([LAST[6:], FIRST[6:]], "goes on about quality"),
        ([LAST[6:], LAST[6:]], "goes on about quality"),
        ([FIRST[6:], b"[DONE]"], "without explanations of quality"),
        ([LAST[6:], b"[DONE]"], "without explanations of other"),
    ],
)
def test_what_breaks_the_contract(stream: list[bytes], message: str) -> None:
    transcript = Transcript(["other"] if message.endswith("other") else None)
    for data in stream[:-1]:
        transcript.read(data.strip())
    with pytest.raises(ValueError, match=message):
        transcript.read(stream[-1].strip())


def test_a_field_of_a_newer_server_is_ignored() -> None:
    assert Transcript(None).read(b'{"dimension": "a", "delta": "b", "new": 1}') == ExplainDelta(
        dimension="a", delta="b"
    )


# --- one checkpoint ---------------------------------------------------------------------------------------------------


def test_the_header_of_a_stream_has_the_fingerprint(serve: Serve, connect: Connect) -> None:
    client = connect(serve(Stream(WHOLE.pieces, headers=PINNED)), pin_fingerprint=True)
    assert len(events(client)) == 2
    assert client.pinned_fingerprint == "f00d"


def test_a_stream_of_another_checkpoint_gives_nothing(serve: Serve, connect: Connect) -> None:
    server = serve(Stream(WHOLE.pieces, headers=PINNED))
    with pytest.raises(FingerprintMismatch, match="pinned to beef"):
        next(connect(server, pin_fingerprint="beef").explain_stream(b"S", b"A", "red"))
    assert len(server.requests) == 1


def test_a_stream_that_does_not_tell_its_checkpoint(serve: Serve, connect: Connect) -> None:
    with pytest.raises(APIResponseError, match="no fingerprint, but this client is pinned"):
        events(connect(serve(WHOLE), pin_fingerprint=True))


# --- leaving early ----------------------------------------------------------------------------------------------------


def test_breaking_out_of_the_loop_closes_the_connection(serve: Serve, connect: Connect) -> None:
    server = serve(Stream([FIRST], "open"))
    client = connect(server)
    for _ in client.explain_stream(b"S", b"A", "red"):
        break
    assert server.disconnected.wait(60)
    assert client.score(b"S", b"A", "red").reward == reward_of(b"A")


def test_closing_the_iterator_closes_the_connection(serve: Serve, connect: Connect) -> None:
    server = serve(Stream([FIRST], "open"))
    stream = connect(server).explain_stream(b"S", b"A", "red")
    next(stream)
    stream.close()
    assert server.disconnected.wait(60)
    assert list(stream) == []


def test_closing_the_asynchronous_iterator(serve: Serve) -> None:
    server = serve(Stream([FIRST], "open"))

    async def use() -> None:
        async with AsyncJRMClient(server.url, backoff=FAST) as client:
            async with contextlib.aclosing(client.explain_stream(b"S", b"A", "red")) as stream:
                await anext(stream)
            assert await asyncio.to_thread(server.disconnected.wait, 60)

    asyncio.run(use())


# --- several replicas -------------------------------------------------------------------------------------------------


def test_an_open_stream_counts_as_outstanding(serve: Serve, connect: Connect) -> None:
    servers = [serve(then=Stream([FIRST], "open")) for _ in range(2)]
    client = connect(*servers)
    streams = [client.explain_stream(b"S", b"A", "red") for _ in range(2)]
    for stream in streams:
        next(stream)
    assert [len(server.requests) for server in servers] == [1, 1]
    streams[0].close()


def test_a_replica_whose_stream_breaks_is_ejected(serve: Serve, connect: Connect) -> None:
    broken, other = serve(then=Stream([FIRST], "broken")), serve(then=WHOLE)
    client = connect(broken, other)
    for _ in range(2):
        with contextlib.suppress(APIConnectionError):
            events(client)
    for _ in range(2):
        assert len(events(client)) == 2
    assert len(broken.requests) == 1
