"""Chats over real sockets: what is retried, what ends a run, and what nobody gets to see."""

import asyncio
import json
import socket
import threading

import pytest

from jrm_client.retry import Backoff
from jrm_training.annotate.endpoint import MAX_ATTEMPTS, Endpoint, EndpointError, RequestRefused
from support.scripted_endpoint import Reply, ScriptedEndpoint

KEY = "sk-very-secret"


class AtOnce(Backoff):
    """Notes what it was told about a failure, and waits for nothing."""

    def delay(self, failures, retry_after):
        DELAYS.append((failures, retry_after))
        return 0.0


DELAYS: list[tuple[int, float | None]] = []


@pytest.fixture(autouse=True)
def _no_delays():
    DELAYS.clear()


def chat(url, **options):
    async def ask():
        async with Endpoint(url, "some-model", api_key=KEY, backoff=AtOnce(), **options) as endpoint:
            return await endpoint.chat([{"role": "user", "content": "hello"}], {"type": "object"})

    return asyncio.run(ask())


def answering(*replies):
    """Replies in turn; the last one for ever."""
    left = list(replies)
    return ScriptedEndpoint(lambda _: left.pop(0) if len(left) > 1 else left[0])


def test_what_is_sent_and_what_comes_back():
    with answering(Reply("hi")).serving() as endpoint:
        answer = chat(endpoint.url, extra={"temperature": 0, "max_tokens": 5})
    assert (answer.text, answer.cut, answer.tokens_in, answer.tokens_out) == ("hi", False, 1000, 100)
    (asked,) = endpoint.asked
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.body["model"] == "some-model"
    assert asked.body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert (asked.body["temperature"], asked.body["max_tokens"]) == (0, 5)


@pytest.mark.parametrize(("wanted", "sent"), [("json", {"type": "json_object"}), ("none", None)])
def test_other_response_formats(wanted, sent):
    with answering(Reply("hi")).serving() as endpoint:
        chat(endpoint.url, response_format=wanted)
    assert endpoint.asked[0].body.get("response_format") == sent


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
def test_what_may_pass_is_tried_again(status):
    with answering(Reply("busy", status), Reply("hi")).serving() as endpoint:
        assert chat(endpoint.url).text == "hi"
    assert DELAYS == [(1, None)]


def test_retry_after_is_handed_on():
    replies = (Reply("busy", 429, {"retry-after": "7"}), Reply("busy", 503, {"retry-after": "x"}), Reply("hi"))
    with answering(*replies).serving() as endpoint:
        chat(endpoint.url)
    assert DELAYS == [(1, 7.0), (2, None)]


def test_it_is_given_up_in_the_end():
    with (
        answering(Reply("out of order", 503)).serving() as endpoint,
        pytest.raises(EndpointError, match=f"failed {MAX_ATTEMPTS} times, most recently with HTTP 503: out of order"),
    ):
        chat(endpoint.url)
    assert len(endpoint.asked) == MAX_ATTEMPTS


def test_an_endpoint_that_does_not_answer_in_time_is_asked_again():
    released = threading.Event()

    def slow_once(asked):
        if len(endpoint.asked) == 1:
            released.wait(30)
        return Reply("hi")

    endpoint = ScriptedEndpoint(slow_once)
    with endpoint.serving():
        try:
            assert chat(endpoint.url, timeout=0.5).text == "hi"
        finally:
            released.set()
    assert len(endpoint.asked) == 2


def test_nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(EndpointError, match="ConnectError"):
            chat(f"http://127.0.0.1:{free.getsockname()[1]}/v1")


@pytest.mark.parametrize("status", [401, 403, 404, 302])
def test_what_no_row_is_to_blame_for_ends_the_run(status):
    with answering(Reply("go away", status)).serving() as endpoint, pytest.raises(EndpointError) as raised:
        chat(endpoint.url)
    assert f"HTTP {status}: go away" in str(raised.value)
    assert KEY not in str(raised.value)
    assert len(endpoint.asked) == 1


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_a_request_that_is_refused(status):
    with answering(Reply("image too large", status)).serving() as endpoint, pytest.raises(RequestRefused) as raised:
        chat(endpoint.url)
    assert str(raised.value) == f"HTTP {status}: image too large"
    assert len(endpoint.asked) == 1


@pytest.mark.parametrize(
    "body", [b"<html>", b"[]", b'{"choices": []}', b'{"choices": [{"message": {"content": 7}}]}', b"\xff"]
)
def test_what_is_no_chat_completion_ends_the_run(body):
    with (
        answering(Reply(body=body)).serving() as endpoint,
        pytest.raises(EndpointError, match="not with a chat completion"),
    ):
        chat(endpoint.url)


def test_odd_answers_are_answers():
    def body(message, **more):
        return json.dumps({"choices": [{"message": message} | more]}).encode()

    replies = (
        Reply(body=body({"content": None, "refusal": "I can not"})),
        Reply(body=body({"content": "half \ud83d"}, finish_reason="length")),
        Reply(body=body({})),
    )
    with answering(*replies).serving() as endpoint:
        refusal, half, nothing = (chat(endpoint.url) for _ in replies)
    assert (refusal.text, refusal.tokens_in, refusal.cut) == ("I can not", None, False)
    assert (half.text, half.cut) == ("half ?", True)
    assert nothing.text == ""


@pytest.mark.parametrize("url", ["localhost:8000/v1", "ftp://host/v1", "http://", f"http://user:{KEY}@ho st/v1"])
def test_a_url_that_cannot_be(url):
    with pytest.raises(ValueError, match=r"does not begin|has spaces") as raised:
        Endpoint(url, "m")
    assert KEY not in str(raised.value)
