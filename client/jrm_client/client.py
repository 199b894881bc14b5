"""JRMClient: the asynchronous client for synchronous callers."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack

from . import arguments
from .aio import DEFAULT_TIMEOUT, MAX_CONCURRENCY, AsyncJRMClient, ClientOptions, OnError
from .arguments import REQUIRED, Pair, Sources
from .explanations import ExplainEvent, Explanation
from .group_scores import GroupScores
from .images import ImageFormat, ImageInput
from .loop import LoopThread
from .protocol import DEFAULT_MAX_TOKENS, SleepLevel
from .results import Score
from .retry import MAX_RETRIES, Backoff

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

__all__ = ["AsyncJRMClient", "JRMClient"]


class JRMClient:
    """Scores image edits on a JRM server, synchronously; the arguments are those of ``AsyncJRMClient``.

    Safe to call from several threads at once, inside a running event loop (Jupyter) and after ``os.fork``; picklable:
    connections stay behind, the pinned fingerprint comes along. Ctrl-C cancels a call. ``close()``, ``with`` or the end
    of the program ends its thread.
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
    ) -> None:
        self._open(
            AsyncJRMClient(
                base_url,
                api_key=api_key,
                timeout=timeout,
                max_retries=max_retries,
                backoff=backoff,
                image_format=image_format,
                max_concurrency=max_concurrency,
                pin_fingerprint=pin_fingerprint,
            )
        )

    @classmethod
    def from_ray(cls, handle: DeploymentHandle[Any], **options: Unpack[ClientOptions]) -> Self:
        """Return a client of a Ray Serve deployment that calls its replicas without HTTP.

        See ``AsyncJRMClient.from_ray``. Not to be used after ``os.fork``, which Ray does not survive.
        """
        client = cls.__new__(cls)
        client._open(AsyncJRMClient.from_ray(handle, **options))
        return client

    def _open(self, client: AsyncJRMClient) -> None:
        self._client = client
        self._loop = LoopThread(client.close)

    def __getstate__(self) -> dict[str, Any]:
        return {"client": self._client}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._open(state["client"])

    def __repr__(self) -> str:
        return repr(self._client).removeprefix("Async")

    @property
    def pinned_fingerprint(self) -> str | None:
        """The fingerprint that this client is pinned to; None before the first reply, and without pinning."""
        return self._client.pinned_fingerprint

    def score(
        self,
        source: Sources = None,
        edited: ImageInput = REQUIRED,
        instruction: str = REQUIRED,
        *,
        on_error: OnError = "raise",
        timeout: float | None = None,
    ) -> Score:
        """Score one edit; see ``AsyncJRMClient.score``."""
        return self._loop.run(
            lambda: self._client.score(source, edited, instruction, on_error=on_error, timeout=timeout)
        )

    def score_group(
        self,
        source: Sources = None,
        instruction: str = REQUIRED,
        edits: Iterable[ImageInput] = REQUIRED,
        *,
        on_error: OnError = "raise",
        timeout: float | None = None,
        keep_images: bool = False,
    ) -> GroupScores:
        """Score G edits of the same source; see ``AsyncJRMClient.score_group``."""
        images = arguments.image_list(edits, "edits")  # a generator runs in the caller's thread, not on the loop
        return self._loop.run(
            lambda: self._client.score_group(
                source, instruction, images, on_error=on_error, timeout=timeout, keep_images=keep_images
            )
        )

    def score_batch(
        self, pairs: Iterable[Pair], *, on_error: OnError = "raise", timeout: float | None = None
    ) -> list[Score]:
        """Score any number of (source, edited, instruction), in order; see ``AsyncJRMClient.score_batch``."""
        listed = arguments.pairs(pairs)  # in the caller's thread, as above
        return self._loop.run(lambda: self._client.score_batch(listed, on_error=on_error, timeout=timeout))

    def explain(
        self,
        source: Sources = None,
        edited: ImageInput = REQUIRED,
        instruction: str = REQUIRED,
        *,
        dimensions: Sequence[str] | None = None,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        timeout: float | None = None,
    ) -> dict[str, Explanation]:
        """Return the language head's critique of one edit, by dimension; see ``AsyncJRMClient.explain``."""
        return self._loop.run(
            lambda: self._client.explain(
                source, edited, instruction, dimensions=dimensions, max_tokens=max_tokens, timeout=timeout
            )
        )

    def explain_stream(
        self,
        source: Sources = None,
        edited: ImageInput = REQUIRED,
        instruction: str = REQUIRED,
        *,
        dimensions: Sequence[str] | None = None,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        timeout: float | None = None,
    ) -> Generator[ExplainEvent, None, None]:
        """Iterate over the critique of one edit as it is written; see ``AsyncJRMClient.explain_stream``.

        Closing the iterator, leaving its loop or Ctrl-C closes the connection, which stops the server. ``timeout`` does
        not count the caller's own work: events that have arrived wait for it.
        """
        events = self._client.explain_stream(
            source, edited, instruction, dimensions=dimensions, max_tokens=max_tokens, timeout=timeout
        )
        return self._loop.iterate(events)

    def info(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Return ``GET /v1/info``: fingerprint, manifest summary, image spec, limits, device, versions."""
        return self._loop.run(lambda: self._client.info(timeout=timeout))

    def sleep(self, level: SleepLevel = "host", *, timeout: float | None = None) -> None:
        """Have every server release its devices; see ``AsyncJRMClient.sleep``."""
        self._loop.run(lambda: self._client.sleep(level, timeout=timeout))

    def wake(self, *, timeout: float | None = None) -> None:
        """Have every server take its devices again; see ``AsyncJRMClient.wake``."""
        self._loop.run(lambda: self._client.wake(timeout=timeout))

    @contextlib.contextmanager
    def awake(self, level: SleepLevel = "host", *, timeout: float | None = None) -> Generator[None, None, None]:
        """Wake the servers for the block, and put them back to sleep after it; see ``AsyncJRMClient.awake``."""
        arguments.choice(level, "level", ("host", "drop"))
        try:
            self.wake(timeout=timeout)
            yield
        finally:
            self.sleep(level, timeout=timeout)

    def reload(
        self, checkpoint: str, *, load: Literal["beside", "after"] = "beside", timeout: float | None = None
    ) -> str:
        """Have every server switch to another checkpoint, and return its fingerprint; see ``AsyncJRMClient.reload``."""
        return self._loop.run(lambda: self._client.reload(checkpoint, load=load, timeout=timeout))

    def close(self) -> None:
        """End the client's thread and its connections; calls in progress raise RuntimeError."""
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
