"""An OpenAI-compatible endpoint for chats with images: ``POST BASE/chat/completions``, retried where that may help."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from jrm_client.retry import Backoff, parse_retry_after
from jrm_client.urls import check_url

MAX_ATTEMPTS = 8
MAX_WAIT = 60.0  # seconds; a longer Retry-After is respected
RETRIED_STATUSES = frozenset({408, 409, 429})  # and every 5xx
REFUSALS_OF_ONE_REQUEST = frozenset({400, 413, 415, 422})

Message = Mapping[str, Any]
ResponseFormat = Literal["schema", "json", "none"]

_MAX_SHOWN = 300


class EndpointError(Exception):
    """The endpoint cannot be used, or no longer: the run ends, and the answers so far are kept."""


class RequestRefused(Exception):
    """The endpoint refused this one request, and would refuse it again."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model wrote. Tokens are None where the endpoint does not report them; ``cut``: by the token limit."""

    text: str
    cut: bool
    tokens_in: int | None
    tokens_out: int | None


class Endpoint:
    """Chats with one model. Use it as an async context manager; any number of chats may run at once."""

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        max_tokens: int = 1024,
        timeout: float = 120.0,
        response_format: ResponseFormat = "schema",
        extra: Mapping[str, Any] | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        """``extra`` is merged into the body of every request. Raises ValueError for an invalid URL."""
        check_url(base_url, ("http", "https"))
        self.model = model
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._max_tokens = max_tokens
        self._format = response_format
        self._extra = dict(extra or {})
        self._backoff = backoff or Backoff(first=1.0, most=MAX_WAIT)
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        # No limit on connections: the caller limits the number of chats.
        self._http = httpx.AsyncClient(
            headers=headers, timeout=timeout, limits=httpx.Limits(max_connections=None, max_keepalive_connections=None)
        )

    async def __aenter__(self) -> Endpoint:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def chat(self, messages: Sequence[Message], schema: Mapping[str, Any]) -> Answer:
        """Ask for an answer that follows a JSON schema. Whether it does is not checked here.

        Raises RequestRefused if this request is at fault, and EndpointError if the endpoint is: its reply is not a chat
        completion, it does not accept the API key, or it failed MAX_ATTEMPTS times.
        """
        body = {"model": self.model, "messages": list(messages), "max_tokens": self._max_tokens} | self._extra
        if self._format == "schema":
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema)}}
        elif self._format == "json":
            body["response_format"] = {"type": "json_object"}
        for attempt in range(1, MAX_ATTEMPTS + 1):
            retry_after = None
            try:
                reply = await self._http.post(self._url, json=body)
            except httpx.TransportError as error:
                failure = f"{type(error).__name__}: {error}".removesuffix(": ")
            else:
                if reply.is_success:
                    return _answer(reply)
                failure = f"HTTP {reply.status_code}: {_message(reply)}"
                if reply.status_code in REFUSALS_OF_ONE_REQUEST:
                    raise RequestRefused(failure)
                if reply.status_code not in RETRIED_STATUSES and reply.status_code < 500:
                    raise EndpointError(f"{self._url}: {failure}")
                retry_after = parse_retry_after(reply.headers.get("retry-after"), time.time())
            if attempt < MAX_ATTEMPTS:
                await asyncio.sleep(self._backoff.delay(attempt, retry_after))
        raise EndpointError(f"{self._url}: failed {MAX_ATTEMPTS} times, most recently with {failure}")


def _answer(reply: httpx.Response) -> Answer:
    try:
        # Not strictly: an incomplete character at the end of a text is no reason to stop.
        value = json.loads(reply.content)
        choice = value["choices"][0]
        content = choice["message"].get("content")
        if content is None:  # a refusal, or reasoning without an answer
            content = choice["message"].get("refusal") or ""
        if not isinstance(content, str):
            raise TypeError
        usage = value.get("usage") or {}
        return Answer(
            text=content.encode("utf-8", "replace").decode(),
            cut=choice.get("finish_reason") == "length",
            tokens_in=_count(usage.get("prompt_tokens")),
            tokens_out=_count(usage.get("completion_tokens")),
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise EndpointError(
            f"{reply.url.copy_with(userinfo=b'')}: answered, but not with a chat completion: {_shown(reply.text)}"
        ) from None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _message(reply: httpx.Response) -> str:
    """What an OpenAI-shaped error says, or the beginning of the body."""
    try:
        value = json.loads(reply.content)
        error = value.get("error", value)
        return _shown(str(error["message"] if isinstance(error, dict) else error))
    except (ValueError, KeyError, TypeError, AttributeError):
        return _shown(reply.text)


def _shown(text: str) -> str:
    short = " ".join(text.split())
    return short if len(short) <= _MAX_SHOWN else short[:_MAX_SHOWN] + "…"
