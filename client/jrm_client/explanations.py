"""``POST /v1/explain``: the language head's critiques, whole or as they are written."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeAlias

import PIL.Image
from pydantic import TypeAdapter, ValidationError

from . import arguments, protocol, sse, wire
from .deadline import Deadline
from .errors import APIConnectionError, APIResponseError
from .images import ImageFormat, ImageInput, encode
from .overlay import draw
from .pin import Pin
from .transport import StreamedReply, Transport

PATH = "/v1/explain"


class Explanation(protocol.Explanation):
    """The critique of one dimension, as it is on the wire, with a picture of its regions."""

    def overlay(self, edited: ImageInput) -> PIL.Image.Image:
        """Return an RGB copy of the edited image, at its own size, with the regions' boxes and labels drawn on it.

        ``edited`` is the image that was explained, in any form that the client takes. Raises ValueError when a box
        lies outside of it, so that it cannot be that image, and what ``images.decode`` raises for one that cannot be
        read.
        """
        return draw(edited, self.edit_regions)


class ExplainDone(protocol.ExplainDone):
    """``stream``: the whole explanation of one dimension, after its last delta."""

    explanation: Explanation


class ExplainResponse(protocol.ExplainResponse):
    """The reply of ``/v1/explain``."""

    explanations: Mapping[str, Explanation]


ExplainEvent: TypeAlias = protocol.ExplainDelta | ExplainDone

_event: TypeAdapter[ExplainEvent] = TypeAdapter(ExplainEvent)
_END = protocol.STREAM_END.encode()


@dataclass(frozen=True, slots=True)
class Question:
    """One edit, and what is asked about it. Raises TypeError or ValueError for what the contract does not allow."""

    source: arguments.Sources
    edited: ImageInput
    instruction: str
    dimensions: Sequence[str] | None
    max_tokens: int
    image_format: ImageFormat

    def __post_init__(self) -> None:
        arguments.instruction(self.instruction, "instruction")
        arguments.dimensions(self.dimensions)
        arguments.integer(self.max_tokens, "max_tokens", 1)

    def body(self, *, stream: bool) -> Callable[[int], dict[str, Any]]:
        """Return a function from ``timeout_ms`` to httpx's body arguments. Reads and encodes the images."""
        *sources, edited = (
            base64.b64encode(encode(image, name, self.image_format)).decode()
            for name, image in (*arguments.sources(self.source, "source").items(), ("edited", self.edited))
        )

        def of_attempt(timeout_ms: int) -> dict[str, Any]:
            request = protocol.ExplainRequest(
                source=wire.source_value(sources),
                edited=edited,
                instruction=self.instruction,
                dimensions=arguments.dimensions(self.dimensions),
                max_tokens=int(self.max_tokens),
                stream=stream,
                timeout_ms=timeout_ms,
            )
            return {"json": request.model_dump(exclude_none=True)}

        return of_attempt


async def explain(transport: Transport, pin: Pin, question: Question, deadline: Deadline) -> dict[str, Explanation]:
    """Return the explanations by dimension. Raises APIResponseError if one that was asked for is missing."""

    def read(reply: wire.Reply) -> dict[str, Explanation]:
        response = wire.parse(ExplainResponse, reply)
        pin.check(response.fingerprint, reply)
        if missing := set(question.dimensions or ()) - response.explanations.keys():
            raise APIResponseError(f"the reply lacks explanations of {_list(missing)}", request_id=reply.request_id)
        return dict(response.explanations)

    body = await asyncio.to_thread(question.body, stream=False)
    return await transport.call("POST", PATH, body, read, deadline)


async def explain_stream(
    transport: Transport, pin: Pin, question: Question, seconds: float
) -> AsyncGenerator[ExplainEvent, None]:
    """Yield the events as they arrive, within ``seconds`` of the first step. Closing it closes the connection.

    Attempts are repeated up to the first event. A stream that ends before its last event raises APIConnectionError, one
    that breaks the contract APIResponseError.
    """
    deadline = Deadline.after(seconds)

    async def begin(reply: StreamedReply) -> tuple[ExplainEvent | None, _Events]:
        _check_head(reply.head)
        pin.check(reply.head.headers.get(protocol.FINGERPRINT_HEADER), reply.head)
        events = _Events(reply, Transcript(question.dimensions))
        return await events.next(), events

    async with contextlib.AsyncExitStack() as stack:
        async with deadline.bound():
            body = await asyncio.to_thread(question.body, stream=True)
            event, events = await stack.enter_async_context(transport.stream(PATH, body, begin, deadline))
        while event is not None:
            yield event
            async with deadline.bound():
                event = await events.next()


class Transcript:
    """The events of a stream so far, checked against the contract. Pure.

    A dimension's deltas come before its one explanation. The stream ends after the explanations of all dimensions that
    were asked for (``dimensions``; None: any) or begun.
    """

    def __init__(self, dimensions: Sequence[str] | None) -> None:
        self._expected = set(dimensions or ())
        self._done: set[str] = set()

    def read(self, data: bytes) -> ExplainEvent | None:
        """Return the event with this data, None for the last one. Raises ValueError for what the contract forbids."""
        if data == _END:
            if missing := self._expected - self._done:
                raise ValueError(f"the stream ends without explanations of {_list(missing)}")
            if not self._done:
                raise ValueError("the stream ends without an explanation")
            return None
        try:
            event = _event.validate_json(data, strict=True)
        except ValidationError:
            excerpt = data[:200].decode(errors="replace")
            raise ValueError(f"an event is neither a delta nor an explanation: {excerpt}") from None
        if event.dimension in self._done:
            raise ValueError(f"the stream goes on about {event.dimension} after its explanation")
        (self._done if isinstance(event, ExplainDone) else self._expected).add(event.dimension)
        return event


class _Events:
    """The events of a reply as they arrive."""

    def __init__(self, reply: StreamedReply, transcript: Transcript) -> None:
        self._reply = reply
        self._transcript = transcript
        self._decoder = sse.Decoder()
        self._waiting: deque[bytes] = deque()

    async def next(self) -> ExplainEvent | None:
        """Return the next event; None after the last one."""
        head = self._reply.head
        while not self._waiting:
            chunk = await anext(self._reply.chunks, None)
            if chunk is None:
                message = f"the stream of {head.replica} ended before {protocol.STREAM_END}: it is not complete"
                raise APIConnectionError(message, request_id=head.request_id, sent=True)
            self._waiting.extend(self._decoder.feed(chunk))
        try:
            return self._transcript.read(self._waiting.popleft())
        except ValueError as error:
            raise APIResponseError(f"{head.replica}: {error}", request_id=head.request_id) from None


def _check_head(head: wire.Reply) -> None:
    if head.status != HTTPStatus.OK:
        raise wire.status_error(head)
    kind = head.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != sse.CONTENT_TYPE:
        message = (
            f"a stream was asked for and the reply of {head.asked or head.replica} is {kind or 'of no type'}; "
            "is it JRM Serve that answers?"
        )
        raise APIResponseError(message, request_id=head.request_id)


def _list(names: set[str]) -> str:
    return ", ".join(sorted(names))
