"""AsyncJRMClient: images and instructions in, rewards or typed errors out."""

# ruff: noqa: ASYNC109 - a deadline per call is the interface here; inside it is asyncio.timeout

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, TypedDict, Unpack

import httpx

from . import arguments, batching, explanations, wire
from .arguments import REQUIRED, Sources
from .arguments import Pair as Pair
from .concurrency import gather
from .deadline import Deadline, deadline_of
from .errors import APIResponseError, CandidateError
from .explanations import ExplainEvent, Explanation
from .group_scores import GroupScores
from .images import ImageFormat, ImageInput
from .pin import Pin
from .protocol import DEFAULT_MAX_TOKENS, OperatorReply, SleepLevel
from .results import Score, ScoreError, failed_score
from .retry import MAX_RETRIES, Backoff
from .thumbnails import pictures_of
from .transport import Transport
from .uploads import Uploads

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

OnError: TypeAlias = Literal["raise", "nan"]

DEFAULT_TIMEOUT = 60.0
MAX_CONCURRENCY = 8


class ClientOptions(TypedDict, total=False):
    """The optional arguments of a client, as ``AsyncJRMClient`` explains them."""

    api_key: str | None
    timeout: float
    max_retries: int
    backoff: Backoff | None
    image_format: ImageFormat
    max_concurrency: int
    pin_fingerprint: bool | str


@dataclass(frozen=True, slots=True)
class _Request:
    """A pair, and what error messages call its parts. ``sources`` is keyed by those names."""

    sources: dict[str, ImageInput]
    edited: ImageInput
    instruction: str
    names: wire.Names


def _request(source: Sources, edited: ImageInput, instruction: str, names: wire.Names) -> _Request:
    return _Request(arguments.sources(source, names.source), edited, instruction, names)


class AsyncJRMClient:
    """Scores image edits on a JRM server. Every method is a coroutine; usable from any event loop.

    ``base_url``: one URL or several, as a list or separated by commas. A name with several addresses counts as several.
    A request goes to the replica with the fewest outstanding, and to another one if it fails (``jrm_client.replicas``).
    ``api_key``: sent as ``Authorization: Bearer``; by default the environment variable ``JRM_API_KEY``.
    ``timeout``: seconds for a whole call, encoding and retries included; each method can override it.
    ``max_retries``: attempts after the first; ``backoff``: the delays between them (``jrm_client.retry`` says when).
    ``image_format``: how pixels travel, ``"ppm"`` or ``"png"``; both are lossless, PNG is smaller and slower.
    ``max_concurrency``: HTTP requests that one call has in flight.
    ``pin_fingerprint``: True lets the first reply decide on the checkpoint, a string names it by its fingerprint; a
    reply of another checkpoint then raises FingerprintMismatch, in this and all later calls.
    ``transport``: an httpx transport that carries the requests instead of network connections, from any event loop.

    Raises TypeError or ValueError for arguments, and ValueError for a proxy (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY,
    NO_PROXY) or certificates (SSL_CERT_FILE, SSL_CERT_DIR) that these URLs need and that cannot be used; the
    environment is read here. Can be copied and pickled: connections stay behind, the pinned fingerprint comes along.

    Calls raise ValueError, TypeError or OSError for arguments that cannot be sent, else a ``JRMError`` (see
    ``jrm_client.errors``). When one HTTP request of a call fails as a whole, the call fails.
    """

    def __init__(
        self,
        base_url: str | Sequence[str],
        *,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        max_retries: int = MAX_RETRIES,
        backoff: Backoff | None = None,
        image_format: ImageFormat = "ppm",
        max_concurrency: int = MAX_CONCURRENCY,
        pin_fingerprint: bool | str = False,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if backoff is not None and not isinstance(backoff, Backoff):
            raise TypeError(f"backoff: {type(backoff).__name__}; expected jrm_client.Backoff or None")
        if transport is not None and not isinstance(transport, httpx.AsyncBaseTransport):
            raise TypeError(f"transport: {type(transport).__name__}; expected httpx.AsyncBaseTransport or None")
        arguments.choice(image_format, "image_format", ("ppm", "png"))
        retries = arguments.integer(max_retries, "max_retries", 0)
        self._timeout = arguments.seconds(timeout)
        self._image_format: ImageFormat = image_format
        self._max_concurrency = arguments.integer(max_concurrency, "max_concurrency", 1)
        self._pin = Pin(arguments.pin(pin_fingerprint))
        urls = arguments.base_urls(base_url)
        self._transport = Transport(urls, arguments.key(api_key), retries, backoff or Backoff(), carrier=transport)
        self._settings = {
            "base_url": urls,
            "api_key": api_key,
            "timeout": timeout,
            "max_retries": max_retries,
            "backoff": backoff,
            "image_format": image_format,
            "max_concurrency": max_concurrency,
            "pin_fingerprint": pin_fingerprint,
            "transport": transport,
        }

    @classmethod
    def from_ray(cls, handle: DeploymentHandle[Any], **options: Unpack[ClientOptions]) -> Self:
        """Return a client of a Ray Serve deployment of JRM Serve that calls its replicas without HTTP.

        ``handle``: what ``serve.run`` returned, or ``serve.get_app_handle(name)``. Ray picks a replica for each
        request; to this client, one that dies is a broken connection. ``options``: the other arguments of the
        class. Raises ImportError where ray is not installed.
        """
        try:
            from .ray import HandleTransport
        except ModuleNotFoundError as error:
            missing = (error.name or "ray").partition(".")[0]
            raise ImportError(f"from_ray needs {missing}: pip install 'jrm-serve[ray]'", name=missing) from error

        transport = HandleTransport(handle)
        return cls(transport.url, transport=transport, **options)

    def __getstate__(self) -> dict[str, Any]:
        return {**self._settings, "pin_fingerprint": self.pinned_fingerprint or self._settings["pin_fingerprint"]}

    def __setstate__(self, settings: dict[str, Any]) -> None:
        self.__init__(**settings)  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._transport.urls)})"

    @property
    def pinned_fingerprint(self) -> str | None:
        """The fingerprint that this client is pinned to; None before the first reply, and without pinning."""
        return self._pin.fingerprint

    async def score(
        self,
        source: Sources = None,
        edited: ImageInput = REQUIRED,
        instruction: str = REQUIRED,
        *,
        on_error: OnError = "raise",
        timeout: float | None = None,
    ) -> Score:
        """Score one edit. Raises ScoreError if it has no score, or returns NaN under ``on_error="nan"``.

        ``source`` is an image, or a list or tuple of several, in order; a text-to-image checkpoint takes none:
        ``score(edited=image, instruction=prompt)``. The same holds for every method.
        """
        request = _request(source, edited, instruction, wire.Names("source", "edited", "instruction"))
        [score] = await self._score([request], on_error, timeout)
        return score

    async def score_group(
        self,
        source: Sources = None,
        instruction: str = REQUIRED,
        edits: Iterable[ImageInput] = REQUIRED,
        *,
        on_error: OnError = "raise",
        timeout: float | None = None,
        keep_images: bool = False,
    ) -> GroupScores:
        """Score G edits of the same source; the scores are in the order of ``edits``, a list or a batch [G, …].

        Raises ScoreError if any of them has no score; under ``on_error="nan"`` those are NaN and carry their error.
        ``keep_images``: the result holds the instruction and a thumbnail of each image, which notebooks show.
        """
        images = arguments.image_list(edits, "edits")
        arguments.flag(keep_images, "keep_images")
        requests = [
            _request(source, edited, instruction, wire.Names("source", f"edits[{index}]", "instruction"))
            for index, edited in enumerate(images)
        ]
        scores = tuple(await self._score(requests, on_error, timeout))
        if not keep_images:
            return GroupScores(scores)
        sources = arguments.sources(source, "source").items()
        named = [(f"edit {index}", image) for index, image in enumerate(images)]
        return GroupScores(scores, await asyncio.to_thread(pictures_of, instruction, sources, named))

    async def score_batch(
        self, pairs: Iterable[Pair], *, on_error: OnError = "raise", timeout: float | None = None
    ) -> list[Score]:
        """Score any number of (source, edited, instruction); the scores are in the order of ``pairs``.

        Pairs with equal source and instruction are scored as one group, adjacent or not; every distinct image is
        uploaded once per HTTP request. Raises as ``score_group`` does.
        """
        requests = [
            _request(*pair, wire.Names(f"pairs[{i}].source", f"pairs[{i}].edited", f"pairs[{i}].instruction"))
            for i, pair in enumerate(arguments.pairs(pairs))
        ]
        return await self._score(requests, on_error, timeout)

    async def explain(
        self,
        source: Sources = None,
        edited: ImageInput = REQUIRED,
        instruction: str = REQUIRED,
        *,
        dimensions: Sequence[str] | None = None,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        timeout: float | None = None,
    ) -> dict[str, Explanation]:
        """Return the language head's critique of one edit, by dimension; by default of all dimensions.

        An explanation has a ``status``: ``ok``, ``truncated`` (cut by ``max_tokens``) or ``error`` (with its reason).
        """
        question = explanations.Question(source, edited, instruction, dimensions, max_tokens, self._image_format)
        async with deadline_of(self._seconds(timeout)) as deadline:
            return await explanations.explain(self._transport, self._pin, question, deadline)

    def explain_stream(
        self,
        source: Sources = None,
        edited: ImageInput = REQUIRED,
        instruction: str = REQUIRED,
        *,
        dimensions: Sequence[str] | None = None,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        timeout: float | None = None,
    ) -> AsyncGenerator[ExplainEvent, None]:
        """Iterate over the critique of one edit as it is written; nothing is sent before the first step.

        ``ExplainDelta`` has the next piece of a dimension's text, ``ExplainDone`` its explanation, complete and parsed.
        Dimensions are written concurrently, so their events are interleaved. ``timeout`` is for the whole stream, the
        caller's own work between the events included. Closing the iterator (``aclose``) stops the server.

        Raises as other calls do, and retries up to the first event. A stream that ends early raises APIConnectionError.
        """
        question = explanations.Question(source, edited, instruction, dimensions, max_tokens, self._image_format)
        return explanations.explain_stream(self._transport, self._pin, question, self._seconds(timeout))

    async def info(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Return ``GET /v1/info``: fingerprint, manifest summary, image spec, limits, device, versions."""
        async with deadline_of(self._seconds(timeout)) as deadline:
            return await self._transport.call("GET", "/v1/info", lambda _: {}, wire.read_object, deadline)

    async def sleep(self, level: SleepLevel = "host", *, timeout: float | None = None) -> None:
        """Have every server finish running work and release its devices; returns when they are free.

        ``level``: "host" keeps the weights in host memory, "drop" has ``wake`` load them again. The servers must run
        with ``--admin``; where they require API keys, this client's key needs the scope ``admin``. Raises as other
        calls do.
        """
        arguments.choice(level, "level", ("host", "drop"))
        await self._operate("/v1/sleep", {"level": level}, timeout)

    async def wake(self, *, timeout: float | None = None) -> None:
        """Have every server take its devices again; returns when all are ready. Loading may outlast ``timeout``."""
        await self._operate("/v1/wake", {}, timeout)

    @contextlib.asynccontextmanager
    async def awake(self, level: SleepLevel = "host", *, timeout: float | None = None) -> AsyncGenerator[None, None]:
        """Wake the servers for the block, and put them back to sleep after it, whatever happens inside."""
        arguments.choice(level, "level", ("host", "drop"))
        try:
            await self.wake(timeout=timeout)
            yield
        finally:
            await self.sleep(level, timeout=timeout)

    async def reload(
        self, checkpoint: str, *, load: Literal["beside", "after"] = "beside", timeout: float | None = None
    ) -> str:
        """Have every server switch to another checkpoint; returns its fingerprint once all serve it.

        ``checkpoint``: a folder under the servers' ``--reload-root``. ``load``: "beside" the current checkpoint, or
        "after" dropping it. A pinned fingerprint stays what it is, and the next score raises. Raises as other calls
        do, and APIResponseError where the servers' checkpoints differ.
        """
        arguments.text(checkpoint, "checkpoint")
        arguments.choice(load, "load", ("beside", "after"))
        body = {"checkpoint": checkpoint, "load": load}
        replies = await self._operate("/v1/reload", body, timeout, attempts=1)  # every attempt would load it again
        fingerprints = {reply.fingerprint for reply in replies}
        if len(fingerprints) > 1:
            raise APIResponseError(f"the servers have different checkpoints: {', '.join(sorted(fingerprints))}")
        return fingerprints.pop()

    async def _operate(
        self, path: str, body: dict[str, str], timeout: float | None, *, attempts: int | None = None
    ) -> list[OperatorReply]:
        async with deadline_of(self._seconds(timeout)) as deadline:
            return await self._transport.call_each(
                path, {"json": body}, wire.read_operator_reply, deadline, attempts=attempts
            )

    async def close(self) -> None:
        """Close the connections that were opened on the running event loop."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else arguments.seconds(timeout)

    async def _score(self, requests: Sequence[_Request], on_error: OnError, timeout: float | None) -> list[Score]:
        arguments.choice(on_error, "on_error", ("raise", "nan"))
        for request in requests:
            arguments.instruction(request.instruction, request.names.instruction)
        seconds = self._seconds(timeout)
        if not requests:
            return []
        async with deadline_of(seconds) as deadline:
            uploads = Uploads(self._image_format)
            await uploads.add(
                ((image, name) for request in requests for name, image in request.sources.items()),
                ((request.edited, request.names.edited) for request in requests),
            )
            candidates = [
                batching.Candidate(
                    tuple(uploads.key(source) for source in request.sources.values()),
                    uploads.key(request.edited),
                    request.instruction,
                )
                for request in requests
            ]
            share = math.ceil(len(candidates) / await self._transport.replicas())
            limits = batching.Limits(target_candidates=share)
            slots = asyncio.Semaphore(self._max_concurrency)
            names = [request.names for request in requests]
            replies = await gather(
                self._send(batch, uploads, names, slots, deadline)
                for batch in batching.plan(candidates, uploads.sizes, limits)
            )
        outcomes = {position: outcome for reply in replies for position, outcome in reply.items()}
        return _verdict([outcomes[position] for position in range(len(requests))], on_error)

    async def _send(
        self,
        batch: batching.Batch,
        uploads: Uploads,
        names: Sequence[wire.Names],
        slots: asyncio.Semaphore,
        deadline: Deadline,
    ) -> dict[int, Score | CandidateError]:
        def read(reply: wire.Reply) -> dict[int, Score | CandidateError]:
            outcomes = wire.read_scores(batch, names, reply)
            for fingerprint in {outcome.fingerprint for outcome in outcomes.values() if isinstance(outcome, Score)}:
                self._pin.check(fingerprint, reply)
            return outcomes

        async with slots:
            images = await uploads.load(batch.images)

            def body(timeout_ms: int) -> dict[str, Any]:
                return {"files": wire.multipart(batch, images, timeout_ms)}

            return await self._transport.call("POST", "/v1/score", body, read, deadline)


def _verdict(outcomes: Sequence[Score | CandidateError], on_error: OnError) -> list[Score]:
    """The scores of a call, in the caller's order, however many requests it took."""
    scores = [outcome if isinstance(outcome, Score) else None for outcome in outcomes]
    scored = [score for score in scores if score is not None]
    if len(fingerprints := {score.fingerprint for score in scored}) > 1:
        # Rewards of two checkpoints are not comparable, and mixed in one group they would silently skew its advantages.
        raise APIResponseError(
            f"the servers have different checkpoints: fingerprints {', '.join(sorted(fingerprints))}"
        )
    failed = {index: outcome for index, outcome in enumerate(outcomes) if isinstance(outcome, CandidateError)}
    if failed and on_error == "raise":
        raise ScoreError(failed, scores)
    names = tuple(scored[0].dimensions) if scored else ()
    return [failed_score(outcome, names) if isinstance(outcome, CandidateError) else outcome for outcome in outcomes]
