"""The HTTP contract of JRM Serve as pydantic models: the one source that client and server share.

Field names, units and defaults here *are* the contract. An ``<image>`` is base64 (bare or a data URL) of a PNG,
JPEG, WebP or PPM (P6) file; inside the ``request`` part of a multipart body it is ``"part:NAME"`` instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    FailFast,
    Field,
    Tag,
    TypeAdapter,
    model_validator,
)
from pydantic_core import PydanticCustomError

MAX_TIMEOUT_MS = 600_000
DEFAULT_TIMEOUT_MS = 60_000
DEFAULT_MAX_TOKENS = 512
PART_PREFIX = "part:"
FINGERPRINT_HEADER = "x-jrm-fingerprint"  # of a streamed reply, whose events do not carry it
STREAM_END = "[DONE]"  # the data of a stream's last event
TIMEOUT_HEADER = "x-jrm-timeout-ms"
"""How long a request may wait in line before its body is read; the body's ``timeout_ms`` limits the whole request."""

Image = Annotated[
    str,
    Field(
        min_length=1,
        description="base64 or a data URL of PNG, JPEG, WebP or PPM (P6)",
        json_schema_extra={"format": "image-base64"},
    ),
]

# The two forms of a source, as the location of a validation error names them.
SOURCE_TAGS = ("one image", "list of images")


def _source_form(value: Any) -> str | None:
    if isinstance(value, str):
        return SOURCE_TAGS[0]
    return SOURCE_TAGS[1] if isinstance(value, list) else None


Source = Annotated[
    Annotated[Image, Tag(SOURCE_TAGS[0])]
    | Annotated[list[Image], Field(min_length=1, fail_fast=True), Tag(SOURCE_TAGS[1])],
    Discriminator(
        _source_form, custom_error_type="source_type", custom_error_message="must be an image or a list of images"
    ),
]
"""One image or several. A checkpoint says how many it takes; for one that takes none the field is absent or null."""

Instruction = Annotated[str, Field(min_length=1, pattern=r"\S", description="the edit that was asked for")]


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 30000.0 is the integer 30000. Strings and booleans stay what they are."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_Whole = BeforeValidator(_whole)
TimeoutMs = Annotated[int, Field(ge=1, le=MAX_TIMEOUT_MS, strict=True, description="milliseconds"), _Whole]


class _Request(BaseModel):
    """A misspelt field is an error, never ignored. Validation stops at the first one: a body may hold a million."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _first_unknown_field(cls, value: Any) -> Any:
        unknown = (
            next((name for name in value if name not in cls.model_fields), None) if isinstance(value, dict) else None
        )
        if unknown is not None:
            raise PydanticCustomError("extra_forbidden", "unknown field '{name}'", {"name": str(unknown)[:64]})
        return value


class _Reply(BaseModel):
    """A client keeps working when a newer server adds a field."""

    model_config = ConfigDict(extra="ignore", frozen=True)


# --- POST /v1/score ---------------------------------------------------------------------------------------------------


class Group(_Request):
    """One (source, instruction) and the G edits to be scored against it."""

    source: Source | None = None
    instruction: Instruction
    edits: Annotated[list[Image], Field(min_length=1), FailFast()]


class GroupsRequest(_Request):
    """Any number of groups; candidates are numbered by (group, edit)."""

    groups: Annotated[list[Group], Field(min_length=1), FailFast()]
    timeout_ms: TimeoutMs = DEFAULT_TIMEOUT_MS


class PairRequest(_Request):
    """Shorthand for one group with one edit."""

    source: Source | None = None
    edited: Image
    instruction: Instruction
    timeout_ms: TimeoutMs = DEFAULT_TIMEOUT_MS


def _form_of(value: Any) -> str:
    if isinstance(value, dict):
        return "groups" if "groups" in value else "pair"
    return "groups" if isinstance(value, GroupsRequest) else "pair"


ScoreRequest = Annotated[
    Annotated[GroupsRequest, Tag("groups")] | Annotated[PairRequest, Tag("pair")], Discriminator(_form_of)
]
score_request_adapter: TypeAdapter[GroupsRequest | PairRequest] = TypeAdapter(ScoreRequest)


class DimensionScore(_Reply):
    """One named output: r ~ N(mean, std²); ``std`` is null for a mean-only head."""

    mean: float
    std: float | None


class CandidateErrorBody(_Reply):
    """Why one candidate has no score. ``param`` is its place in the request, such as ``groups[0].edits[1]``."""

    code: str
    message: str
    param: str | None = None


class CandidateScore(_Reply):
    """A candidate that was scored. ``normalized`` is there where the checkpoint normalizes its rewards to 0..1."""

    index: int
    status: Literal["ok"] = "ok"
    reward: float
    reward_std: float | None
    normalized: Annotated[float | None, Field(exclude_if=lambda normalized: normalized is None)] = None
    cached: bool = False
    dimensions: dict[str, DimensionScore]


class CandidateFailure(_Reply):
    """A candidate that was not scored; it never carries a number."""

    index: int
    status: Literal["error"] = "error"
    error: CandidateErrorBody


CandidateResult = Annotated[CandidateScore | CandidateFailure, Field(discriminator="status")]


class GroupResult(_Reply):
    """The outcomes of one group, in the order of its edits."""

    index: int
    scores: list[CandidateResult]


class Usage(_Reply):
    """What the request cost. ``tokens`` counts every pass in full, ``tokens_computed`` what the model computed."""

    candidates: int
    images: int
    tokens: int
    tokens_computed: int


class Timings(_Reply):
    """Milliseconds. ``queue`` and ``inference`` are the longest of the request's candidates."""

    preprocess: float
    queue: float
    inference: float
    total: float


class ScoreResponse(_Reply):
    """200: at least one candidate has a score.

    ``precision`` is what the backbone was computed in: ``float32``, ``bfloat16``, ``float16`` or ``fp8``. Older servers
    leave it empty.
    """

    id: str
    object: Literal["score.list"] = "score.list"
    created: int
    model: str
    fingerprint: str
    precision: str = ""
    groups: list[GroupResult]
    usage: Usage
    timings_ms: Timings


# --- POST /v1/explain -------------------------------------------------------------------------------------------------


class ExplainRequest(_Request):
    """Ask the language head for its critique of one edit."""

    source: Source | None = None
    edited: Image
    instruction: Instruction
    dimensions: Annotated[list[str], Field(min_length=1, fail_fast=True)] | None = None
    max_tokens: Annotated[int, Field(ge=1, strict=True), _Whole] = DEFAULT_MAX_TOKENS
    stream: bool = False
    timeout_ms: TimeoutMs = DEFAULT_TIMEOUT_MS


class Segment(_Reply):
    """A piece of the critique about one region, or about the image as a whole (appendix C)."""

    region: int | Literal["global"]
    text: str


class EditRegion(_Reply):
    """A region that the critique points at: ``bbox_2d`` on a 0-1000 scale, ``bbox_pixels`` in the edited image."""

    id: int
    label: str
    bbox_2d: tuple[float, float, float, float]
    bbox_pixels: tuple[int, int, int, int]


class ExplainUsage(_Reply):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int


class Explanation(_Reply):
    """The critique of one dimension; ``truncated`` keeps what was complete when ``max_tokens`` cut it."""

    status: Literal["ok", "truncated", "error"]
    reasoning: str = ""
    segments: list[Segment] = []
    edit_regions: list[EditRegion] = []
    raw: str = ""
    finish_reason: str | None = None
    usage: ExplainUsage | None = None
    error: CandidateErrorBody | None = None


class ExplainResponse(_Reply):
    """One explanation per dimension."""

    id: str
    object: Literal["explanation"] = "explanation"
    model: str
    fingerprint: str
    explanations: Mapping[str, Explanation]


class ExplainDelta(_Reply):
    """``stream``: the next piece of what the language head writes on one dimension, unparsed (``Explanation.raw``)."""

    dimension: str
    delta: str


class ExplainDone(_Reply):
    """``stream``: the whole explanation of one dimension, after its last delta."""

    dimension: str
    explanation: Explanation


# --- operations and errors --------------------------------------------------------------------------------------------

ErrorType = Literal["invalid_request_error", "authentication_error", "rate_limit_error", "server_error"]


class ErrorBody(_Reply):
    """OpenAI's error object."""

    message: str
    type: ErrorType
    param: str | None = None
    code: str


class ErrorResponse(_Reply):
    """Every reply that is not 2xx. ``groups`` is there when every candidate of a score request failed."""

    error: ErrorBody
    groups: list[GroupResult] | None = None


# --- operators: POST /v1/sleep, /v1/wake, /v1/reload ------------------------------------------------------------------

SleepLevel = Literal["host", "drop"]
"""What happens to the weights: "host" moves them to host memory, "drop" frees them, and waking loads them again."""


class SleepRequest(_Request):
    """Release the devices. An empty body means the default level."""

    level: SleepLevel = "host"


class ReloadRequest(_Request):
    """Serve another checkpoint.

    ``checkpoint``: a folder under the server's ``--reload-root``, as a relative or an absolute path. ``load``: "beside"
    the current checkpoint, which is served until the new one has passed its self-test, or "after" dropping it, where
    memory has room for only one.
    """

    checkpoint: Annotated[str, Field(min_length=1, max_length=4096)]
    load: Literal["beside", "after"] = "beside"


class OperatorReply(_Reply):
    """The state of the server after the request. ``level`` is set while it sleeps."""

    status: Literal["ready", "sleeping"]
    level: SleepLevel | None = None
    model: str
    fingerprint: str
    seconds: float


class ModelCard(_Reply):
    """One entry of the OpenAI model list."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "jrm-serve"


class ModelList(_Reply):
    """``GET /v1/models``."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
