"""What a call can raise, besides ValueError, TypeError and OSError for arguments that cannot be sent.

JRMError
├── APIConnectionError      no server could be reached, or the connection broke before the reply was complete
├── APITimeoutError         ``timeout`` passed; also a ``TimeoutError``
├── APIStatusError          the server refused the request as a whole: ``status``, ``code``, ``param``, ``retry_after``
├── APIResponseError        the reply breaks the contract; no number was taken from it
├── FingerprintMismatch     a reply came from a checkpoint that the client is not pinned to: ``pinned``, ``served``
├── ScoreError              some candidates have no score: ``failed`` says which and why, ``scores`` has the others
└── CandidateError          one candidate has no score: ``code``, ``message``

``ScoreError`` is in ``results``, beside the scores that it holds. Every error carries ``request_id`` (None where no
request was involved): the server logs the same id. All of them can be pickled, because trainers pass them between
processes.
"""

from __future__ import annotations

from typing import Any


def _rebuild(kind: type[JRMError], args: tuple[Any, ...], state: dict[str, Any]) -> JRMError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class JRMError(Exception):
    """Base of everything that goes wrong between the caller and a score. ``message`` is the text alone."""

    def __init__(self, message: str, *, request_id: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.request_id = request_id

    def __str__(self) -> str:
        return f"{self.message} [request {self.request_id}]" if self.request_id else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # The default calls the class with ``args`` alone, which lacks the keyword arguments.
        return _rebuild, (type(self), self.args, self.__dict__)


class APIConnectionError(JRMError):
    """No server could be reached, or the connection broke before the reply was complete.

    ``sent``: the request, or a part of it, may have reached the server.
    """

    def __init__(self, message: str, *, request_id: str | None = None, sent: bool = False) -> None:
        super().__init__(message, request_id=request_id)
        self.sent = sent


class APITimeoutError(JRMError, TimeoutError):
    """The whole call, encoding and retries included, took longer than ``timeout`` seconds."""


class APIStatusError(JRMError):
    """The server refused the request as a whole.

    ``status`` is the HTTP status; ``code`` the stable name to match on (None when something other than JRM Serve
    answered, such as a proxy); ``param`` the field at fault; ``retry_after`` the seconds that the server asked for.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, request_id=request_id)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after = retry_after


class APIResponseError(JRMError):
    """The reply is not what the contract says: wrong JSON, a missing or repeated index, a number that is not finite."""


class FingerprintMismatch(JRMError):
    """A replica serves a checkpoint that this client is not pinned to; none of its scores was returned.

    ``replica`` is the URL of the replica, ``served`` its fingerprint, ``pinned`` the one that was expected.
    """

    def __init__(self, message: str, *, replica: str, pinned: str, served: str, request_id: str | None = None) -> None:
        super().__init__(message, request_id=request_id)
        self.replica = replica
        self.pinned = pinned
        self.served = served


class CandidateError(JRMError):
    """One candidate has no score. ``code`` is the stable name (``invalid_image``, ``deadline_exceeded``, …)."""

    def __init__(self, message: str, *, code: str, request_id: str | None = None) -> None:
        super().__init__(message, request_id=request_id)
        self.code = code

    def __str__(self) -> str:
        return f"{self.code}: {super().__str__()}"
