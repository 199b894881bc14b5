"""Requests without a connection, what concerns every replica, and the policy: without a Ray that runs."""

import asyncio
from types import SimpleNamespace

import pytest

# Ray's own code uses pydantic in a deprecated way; whichever test imports it first would fail.
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")


def test_a_reply_comes_piece_by_piece():
    from jrm_service.ray.asgi_calls import call, call_buffered

    async def app(scope, receive, send):
        request = await receive()
        assert (scope["method"], scope["path"], scope["query_string"]) == ("POST", "/a", b"b=c")
        await send({"type": "http.response.start", "status": 201, "headers": [(b"x", b"y")]})
        for piece in (request["body"], b"", b"end"):
            await send({"type": "http.response.body", "body": piece, "more_body": piece != b"end"})

    async def run():
        arguments = (app, "POST", "/a?b=c", [(b"n", b"v")], b"begin")
        assert [piece async for piece in call(*arguments)] == [(201, [(b"x", b"y")]), b"begin", b"end"]
        assert await call_buffered(*arguments) == (201, [(b"x", b"y")], b"beginend")

    asyncio.run(run())


def test_a_caller_who_leaves_is_a_connection_that_broke():
    from jrm_service.ray.asgi_calls import call

    heard = asyncio.Event()

    async def app(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        assert (await receive())["type"] == "http.disconnect"
        heard.set()

    async def run():
        reply = call(app, "GET", "/", [], b"")
        await anext(reply)
        assert not heard.is_set()
        await reply.aclose()
        await asyncio.wait_for(heard.wait(), 10)

    asyncio.run(run())


def test_what_an_application_raises_is_raised():
    from jrm_service.ray.asgi_calls import call_buffered

    async def app(scope, receive, send):
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        asyncio.run(call_buffered(app, "GET", "/", [], b""))


def test_metrics_of_several_replicas_are_one_text():
    from jrm_service.ray.broadcast import merged

    head = "# HELP a_total A.\n# TYPE a_total counter\n"
    texts = {name: f'{head}a_total {value}\nb{{c="{{d e}}"}} {value}\n' for name, value in {"x": 1.0, "y": 2.0}.items()}
    assert merged(texts.items()) == (
        f'{head}a_total{{replica="x"}} 1.0\nb{{replica="x",c="{{d e}}"}} 1.0\n'
        'a_total{replica="y"} 2.0\nb{replica="y",c="{d e}"} 2.0\n'
    )


def test_there_is_a_replica_for_so_many_queued_candidates():
    from jrm_service.ray.autoscaling import QueuedCandidates

    policy = QueuedCandidates(10)
    context = SimpleNamespace(aggregated_metrics={"queued_candidates": {"a": 20.0, "b": 5.0}}, target_num_replicas=2)
    assert policy(context) == (2.5, {})
    context.aggregated_metrics = {}
    assert policy(context) == (2, {}), "nobody has told yet"
