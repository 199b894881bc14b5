"""Errors -> HTTP replies: the table of statuses, and bodies in OpenAI's shape."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from jrm_client.protocol import ErrorBody, ErrorResponse, ErrorType, GroupResult
from jrm_service.errors import CandidateError, JRMError, RequestError

from .access_log import record_of

STATUS: dict[str, int] = {
    "invalid_request": 400,
    "invalid_checkpoint": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "explain_running": 409,
    "reload_failed": 409,
    "payload_too_large": 413,
    "unsupported_media_type": 415,
    "invalid_image": 422,
    "image_too_large": 422,
    "instruction_too_long": 422,
    "candidate_too_large": 422,  # it will never fit: a retry cannot help, sending less can
    "overloaded": 429,
    "rate_limited": 429,
    "non_finite_score": 500,
    "internal": 500,
    "not_ready": 503,
    "device_lost": 503,
    "sleeping": 503,
    "draining": 503,
    "explain_disabled": 503,
    "explain_unavailable": 503,
    "deadline_exceeded": 504,
}
_DEFAULT_RETRY_AFTER = 1.0
_CHALLENGE = {"www-authenticate": "Bearer"}
# How much of a refused body is read and discarded, and for how long, so that the refusal arrives.
_DRAIN_BYTES = 256 * 2**20
_DRAIN_SECONDS = 5.0


def error_type(status: int) -> ErrorType:
    """OpenAI's ``type`` of a status."""
    if status == 401:
        return "authentication_error"
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


class ErrorReply(JSONResponse):
    """A reply that is not 2xx. Sending it writes its code to the request's record."""

    def __init__(self, body: ErrorResponse, status: int, headers: dict[str, str]) -> None:
        content = body.model_dump(mode="json", exclude={"groups"} if body.groups is None else None)
        super().__init__(content, status, headers)
        self.code = body.error.code
        self.refused = body.groups is None

    def note(self, scope: Scope) -> None:
        """Write the error's code to the record of the request."""
        record = record_of(scope)
        record.error, record.refused = self.code, self.refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 - ASGI
        self.note(scope)
        await super().__call__(scope, receive, send)


def status_of(error: JRMError) -> int:
    """The status of a request that failed as a whole."""
    return STATUS.get(error.code, 500)


def reason_of(error: JRMError) -> str:
    """The part of an error that callers may see: internal errors stay internal."""
    return str(error) if isinstance(error, RequestError | CandidateError) else "internal error"


def headers_of(error: JRMError) -> dict[str, str]:
    """Retry-After for 429 and 503, the challenge for 401."""
    if status_of(error) == 401:
        return dict(_CHALLENGE)
    if status_of(error) not in (429, 503):
        return {}
    retry_after = error.retry_after if isinstance(error, RequestError) else None
    return {"retry-after": str(max(1, math.ceil(retry_after or _DEFAULT_RETRY_AFTER)))}


def error_reply(
    code: str,
    message: str,
    *,
    param: str | None = None,
    retry_after: float | None = None,
    groups: list[GroupResult] | None = None,
) -> ErrorReply:
    """A reply that is not 2xx; 429 and 503 always carry Retry-After, 401 the challenge."""
    status = STATUS[code]
    body = ErrorResponse(
        error=ErrorBody(message=message, type=error_type(status), param=param, code=code), groups=groups
    )
    headers = {}
    if status in (429, 503):
        headers["retry-after"] = str(max(1, math.ceil(retry_after or _DEFAULT_RETRY_AFTER)))
    elif status == 401:
        headers |= _CHALLENGE
    return ErrorReply(body, status, headers)


class UnreadBodyReply(Response):
    """A reply to a request whose body was not read to its end: the connection cannot be reused.

    After it is sent, the body is read for a while longer: closing with unread data would reset the connection, and the
    caller would see a broken pipe instead of the reason.
    """

    def __init__(self, reply: Response) -> None:
        super().__init__(reply.body, reply.status_code, dict(reply.headers) | {"connection": "close"})
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 - ASGI
        if isinstance(self._reply, ErrorReply):
            self._reply.note(scope)
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                left = _DRAIN_BYTES
                while left > 0:
                    message = await receive()
                    if message["type"] != "http.request" or not message.get("more_body"):
                        break
                    left -= len(message["body"])
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def domain_error_reply(error: JRMError) -> ErrorReply:
    """Reply to a request that failed as a whole."""
    if isinstance(error, RequestError):
        return error_reply(error.code, str(error), param=error.param, retry_after=error.retry_after)
    return error_reply(error.code, reason_of(error))


def install(app: FastAPI) -> None:
    """Give every error of the app, ours or the framework's, the contract's shape."""

    async def domain(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, JRMError)
        return domain_error_reply(error)

    async def framework(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
        reply = error_reply(code, f"{error.detail}")
        reply.headers.update(error.headers or {})
        return reply

    async def unexpected(_request: Request, _error: Exception) -> JSONResponse:
        return error_reply("internal", "internal error")  # the framework re-raises it for the log

    app.add_exception_handler(JRMError, domain)
    app.add_exception_handler(HTTPException, framework)
    app.add_exception_handler(Exception, unexpected)
