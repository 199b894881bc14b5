"""Domain errors, which know nothing of HTTP: ``api/errors.py`` has the table of statuses.

JRMError
├── RequestError                 the request as a whole was refused
│   ├── InvalidRequest           malformed, missing or unknown field, empty group or instruction
│   ├── PayloadTooLarge          more candidates than could ever be admitted
│   │   └── BodyTooLarge         the body is over the limit, and not all of it was read
│   ├── UnknownModel             it names a model that is not served
│   ├── UnsupportedMediaType     neither JSON nor multipart/form-data
│   ├── RequestTimeout           the body stopped arriving
│   ├── Unauthorized             API keys are configured, and none or an unknown one was sent
│   ├── Forbidden                the API key is valid, but not allowed to do this
│   ├── Overloaded               the wait would be too long; ``retry_after`` from the measured drain rate
│   ├── RateLimited              the limit of one API key
│   ├── NotReady                 the model is still loading, no worker is alive, or others hold the device's memory
│   ├── Sleeping                 the server has released its devices until it is woken
│   ├── Draining                 the server is shutting down
│   ├── ExplainRunning           vLLM holds a device that should be released
│   ├── BadCheckpoint            the checkpoint to load must not be served: a CheckpointError, for the operator
│   ├── ReloadFailed             no worker starts with the other checkpoint
│   ├── ExplainDisabled          this process does not serve /explain
│   └── ExplainUnavailable       it does, but its engine is not running now
├── CandidateError               one candidate has no score; others in its batch are not affected
│   ├── InvalidCandidate         it has no image or no instruction
│   ├── InvalidImage             not PNG/JPEG/WebP/PPM, truncated, bad base64
│   ├── ImageTooLarge            too many pixels by its header, or an extreme aspect ratio
│   ├── InstructionTooLong       over the character limit or the model's length
│   ├── CandidateTooLarge        more than the device's memory holds, even alone
│   ├── DeadlineExceeded         ``timeout_ms`` passed
│   ├── NonFiniteScore           the model gave NaN or infinity
│   ├── DeviceMemoryTaken        something else holds the device's memory now: the request becomes a NotReady
│   ├── Abandoned                the server stops before there is a score: the request becomes a Draining
│   ├── DeviceLost               every device that it was on was lost
│   └── InternalError            the backend raised
├── CheckpointError              every problem of a checkpoint, each with its file and key
│   └── PipelineDrift            the installed libraries produce other pixels or token ids than the fingerprint promises
├── KeysError                    every problem of a file of API keys, each with its line
├── MissingExtra                 a setting needs a package that is not installed
├── RedisURLError                a Redis URL that no client can be made from
├── TracesError                  OpenTelemetry refuses its own environment variables
├── WireScaleError               a wire should send normalized rewards, and the checkpoint has none
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
    """The request violates the contract."""

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
    """The wait would be longer than the request may take, or too many requests run at once."""

    code = "overloaded"


class RateLimited(RequestError):
    """One API key is at its own limit."""

    code = "rate_limited"


class NotReady(RequestError):
    """The model is not loaded, no worker is alive, or something else holds the memory of the device."""

    code = "not_ready"


class Sleeping(RequestError):
    """The server has released its devices, and accepts no requests until it is woken."""

    code = "sleeping"


class ExplainRunning(RequestError):
    """The server also writes critiques: vLLM, which does not sleep, holds a device."""

    code = "explain_running"


class BadCheckpoint(RequestError):
    """The checkpoint that an operator wants to load must not be served; the message has every problem."""

    code = "invalid_checkpoint"


class ReloadFailed(RequestError):
    """No worker starts with the checkpoint to load, although it is valid, for example for lack of memory."""

    code = "reload_failed"


class Draining(RequestError):
    """The server is shutting down."""

    code = "draining"


class ExplainDisabled(RequestError):
    """This process does not serve /explain."""

    code = "explain_disabled"


class ExplainUnavailable(RequestError):
    """The engine that writes critiques is starting, or has died and is being restarted."""

    code = "explain_unavailable"


class CandidateError(JRMError):
    """One candidate has no score. ``param`` is the field of its group that is at fault; None: the edit, or no field."""

    code = "internal"
    param: str | None = None


class InvalidCandidate(CandidateError):
    """It has no image or no instruction; other candidates of its request are scored."""

    code = "invalid_request"


class InvalidImage(CandidateError):
    """The bytes are not an image in a supported format."""

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


class DeviceMemoryTaken(CandidateError):
    """The device has no memory for it now: something else took it, if the candidate is within a batch's budget."""

    code = "no_memory"


class Abandoned(CandidateError):
    """The server stops, and nothing will score it any more."""

    code = "abandoned"


class DeviceLost(CandidateError):
    """Its device was lost each time, the last time with this candidate alone: it may be the cause."""

    code = "device_lost"


class InternalError(CandidateError):
    """The backend raised for this candidate, or there is a bug in the server."""

    code = "internal"


class CheckpointError(JRMError):
    """A checkpoint that must not be served. ``problems`` holds one line each: file, key, what is wrong."""

    code = "invalid_checkpoint"

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class PipelineDrift(CheckpointError):
    """The installed libraries produce other pixels or token ids than the pipeline version stands for."""


class KeysError(JRMError):
    """A file of API keys that must not be used. ``problems`` holds one line each, and never quotes the file."""

    code = "invalid_keys"

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class MissingExtra(JRMError):
    """A setting needs a package that is not installed. ``problems`` holds one line, which says how to install it."""

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
    """OpenTelemetry cannot be set up with its environment variables. ``problems`` holds one line."""

    code = "invalid_traces"

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problems = [problem]


class WireScaleError(JRMError):
    """A wire should send normalized rewards, and the checkpoint does not say how."""

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
