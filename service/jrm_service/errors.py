"""Domain errors. They say what went wrong and know nothing of HTTP: ``api/errors.py`` has the one table of statuses.

JRMError
├── RequestError                 the request as a whole was refused
│   ├── InvalidRequest           malformed, missing or unknown field, empty group or instruction
│   ├── PayloadTooLarge          more candidates than could ever be admitted
│   │   └── BodyTooLarge         the body is over the limit, and not all of it was read
│   ├── UnknownModel             it names a model that is not served
│   ├── UnsupportedMediaType     neither JSON nor multipart/form-data
│   ├── RequestTimeout           the body stopped arriving
│   ├── Unauthorized             API keys are configured, and none or an unknown one was sent
│   ├── Forbidden                the API key is a good one, and not for this
│   ├── Overloaded               the wait would be too long; ``retry_after`` from the measured drain rate
│   ├── RateLimited              the limit of one API key
│   ├── NotReady                 the model is still loading, no worker is alive, or others hold the device's memory
│   ├── Sleeping                 the devices are lent to somebody else, until the server is woken
│   ├── Draining                 the server is shutting down
│   ├── ExplainRunning           vLLM holds a device that is to be let go of
│   ├── BadCheckpoint            what was to be loaded must not be served: a CheckpointError, for whoever asked for it
│   ├── ReloadFailed             no worker starts with the other checkpoint
│   ├── ExplainDisabled          this process does not serve /explain
│   └── ExplainUnavailable       it does, but the engine behind it is not there now
├── CandidateError               one candidate has no score; its neighbours are untouched
│   ├── InvalidCandidate         it asks for nothing that can be scored
│   ├── InvalidImage             not PNG/JPEG/WebP/PPM, truncated, bad base64
│   ├── ImageTooLarge            too many pixels by its header, or an extreme aspect ratio
│   ├── InstructionTooLong       over the character limit or the model's length
│   ├── CandidateTooLarge        more than the device's memory holds, even alone
│   ├── DeadlineExceeded         ``timeout_ms`` passed
│   ├── NonFiniteScore           the model gave NaN or infinity
│   ├── NoMemory                 others hold the device's memory just now: the request becomes a NotReady
│   ├── Abandoned                the server stops before there was a score: the request becomes a Draining
│   ├── DeviceLost               every device that it was on was lost with it
│   └── InternalError            the backend raised
├── CheckpointError              every problem of a checkpoint, each with its file and key
│   └── PipelineDrift            the libraries here make other pixels or token ids than a fingerprint stands for
├── KeysError                    every problem of a file of API keys, each with its line
├── MissingExtra                 a setting asks for what is not installed
├── RedisURLError                a Redis URL that no client can be made from
├── TracesError                  OpenTelemetry refuses its own environment variables
├── WireScaleError               a wire is to send normalized rewards, and the checkpoint has none
└── ExplainSetupError            why critiques cannot be served here: what is missing, or what does not fit
"""

from __future__ import annotations

from typing import ClassVar


class JRMError(Exception):
    """Base of all domain errors; ``code`` is the stable name that clients match on."""

    code: ClassVar[str] = "internal"


class RequestError(JRMError):
    """The request as a whole was refused; ``param`` names the field at fault, ``retry_after`` is in seconds."""

    def __init__(self, message: str, *, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.retry_after = retry_after


class InvalidRequest(RequestError):
    """The request does not say what the contract allows."""

    code = "invalid_request"


class PayloadTooLarge(RequestError):
    """Too many bytes, or more candidates than could ever be admitted."""

    code = "payload_too_large"


class BodyTooLarge(PayloadTooLarge):
    """The body is over the limit; the rest of it is still on its way."""


class UnknownModel(RequestError):
    """No model of this name is served here."""

    code = "not_found"


class UnsupportedMediaType(RequestError):
    """The content type is neither JSON nor multipart/form-data."""

    code = "unsupported_media_type"


class RequestTimeout(RequestError):
    """The body stopped arriving."""

    code = "request_timeout"


class Unauthorized(RequestError):
    """API keys are configured, and none or an unknown one was sent."""

    code = "unauthorized"


class Forbidden(RequestError):
    """The API key does not have the scope that the route asks for."""

    code = "forbidden"


class Overloaded(RequestError):
    """The wait would be longer than the request may take, or too many requests are here at once."""

    code = "overloaded"


class RateLimited(RequestError):
    """One API key is at its own limit."""

    code = "rate_limited"


class NotReady(RequestError):
    """The model is not loaded, no worker is alive, or something else holds the memory of the device."""

    code = "not_ready"


class Sleeping(RequestError):
    """The server has let go of its devices, and takes no requests until it is woken."""

    code = "sleeping"


class ExplainRunning(RequestError):
    """The server also writes critiques: vLLM, which does not sleep, holds a device."""

    code = "explain_running"


class BadCheckpoint(RequestError):
    """What an operator wants to have served must not be served; the message has every problem."""

    code = "invalid_checkpoint"


class ReloadFailed(RequestError):
    """No worker starts with the checkpoint that was to be loaded, though nothing is wrong with it: for want of room."""

    code = "reload_failed"


class Draining(RequestError):
    """The server is shutting down."""

    code = "draining"


class ExplainDisabled(RequestError):
    """This process does not serve /explain."""

    code = "explain_disabled"


class ExplainUnavailable(RequestError):
    """The engine that writes critiques is starting, or died and is coming back."""

    code = "explain_unavailable"


class CandidateError(JRMError):
    """One candidate has no score. ``param`` is the field of its group that is at fault; None: the edit, or no field."""

    code = "internal"
    param: str | None = None


class InvalidCandidate(CandidateError):
    """It asks for nothing that can be scored, of a client whose other candidates are."""

    code = "invalid_request"


class InvalidImage(CandidateError):
    """The bytes are not an image that we read."""

    code = "invalid_image"


class ImageTooLarge(CandidateError):
    """Too many pixels by its header, or an aspect ratio that the model cannot take."""

    code = "image_too_large"


class InstructionTooLong(CandidateError):
    """Over the character limit or the model's context length."""

    code = "instruction_too_long"
    param = "instruction"


class CandidateTooLarge(CandidateError):
    """The memory of the device does not hold it, even with no other candidate beside it."""

    code = "candidate_too_large"


class DeadlineExceeded(CandidateError):
    """``timeout_ms`` passed before there was a score."""

    code = "deadline_exceeded"


class NonFiniteScore(CandidateError):
    """The model gave NaN or infinity, which must never reach an optimizer as a number."""

    code = "non_finite_score"


class NoMemory(CandidateError):
    """The device has no room for it just now, though it is within the budget of a batch: something else took it."""

    code = "no_memory"


class Abandoned(CandidateError):
    """The server stops, and nothing will score it any more."""

    code = "abandoned"


class DeviceLost(CandidateError):
    """Its device was lost each time that it was on one, alone in the end: it may be its doing."""

    code = "device_lost"


class InternalError(CandidateError):
    """The backend raised for this candidate, or there is a defect of ours."""

    code = "internal"


class CheckpointError(JRMError):
    """A checkpoint that must not be served. ``problems`` holds one line each: file, key, what is wrong."""

    code = "invalid_checkpoint"

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class PipelineDrift(CheckpointError):
    """The libraries that are installed make other pixels or token ids than the pipeline version stands for."""


class KeysError(JRMError):
    """A file of API keys that must not be used. ``problems`` holds one line each, and never quotes the file."""

    code = "invalid_keys"

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class MissingExtra(JRMError):
    """A setting asks for what is not installed. ``problems`` holds one line, which says how to install it."""

    code = "missing_extra"

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problems = [problem]


class RedisURLError(JRMError):
    """A Redis URL that no client can be made from. ``problems`` holds one line, and never quotes the URL."""

    code = "invalid_redis_url"

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problems = [problem]


class TracesError(JRMError):
    """OpenTelemetry cannot be set up as its variables say. ``problems`` holds one line."""

    code = "invalid_traces"

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problems = [problem]


class WireScaleError(JRMError):
    """A wire is to send normalized rewards, and the checkpoint does not say how."""

    code = "wire_scale"


class ExplainSetupError(JRMError):
    """Critiques cannot be served here. ``problems`` holds one line each: what is missing, or what does not fit."""

    code = "explain_setup"

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def one_line(error: BaseException) -> str:
    """An exception in at most about 200 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
