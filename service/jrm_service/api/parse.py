"""Request bodies -> groups: JSON, a plain form, or a form with a ``request`` part. Pure; run it off the event loop."""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from email.message import Message
from typing import Any

from pydantic import TypeAdapter, ValidationError

from jrm_client import strict_json
from jrm_client.protocol import (
    DEFAULT_TIMEOUT_MS,
    MAX_TIMEOUT_MS,
    PART_PREFIX,
    SOURCE_TAGS,
    ExplainRequest,
    Group,
    Instruction,
    PairRequest,
    score_request_adapter,
)
from jrm_service.errors import InvalidImage, InvalidRequest, PayloadTooLarge, UnsupportedMediaType
from jrm_service.explain.service import Question
from jrm_service.images.reader import ImageInput
from jrm_service.scoring.service import GroupInput

from . import multipart

_Read = Callable[[str, str], ImageInput]  # (field, text of the request) -> the image

_DATA_URL = re.compile(r"data:[\w.+-]+/[\w.+-]+(;[\w.+-]+=[\w.+-]+)*;base64,", re.IGNORECASE)
_MAX_JSON_VALUES = 1_000_000
_MAX_DATA_URL_HEAD = 256
_NO_SPACES = str.maketrans(dict.fromkeys(" \t\r\n"))
_INSTRUCTION: TypeAdapter[str] = TypeAdapter(Instruction)


@dataclass(frozen=True, slots=True)
class Parsed:
    """A valid request."""

    groups: list[GroupInput]
    timeout_ms: int


@dataclass(frozen=True, slots=True)
class Form:
    """A ``multipart/form-data`` body, cut into its parts."""

    parts: list[multipart.Part]


def load_score_request(content_type: str, body: bytes | bytearray, *, content_encoding: str) -> Form | Any:
    """The JSON document or the form of ``POST /v1/score``, not yet validated.

    A bytearray is emptied on the way, so that memory holds its content at most twice. Raises UnsupportedMediaType,
    InvalidRequest, PayloadTooLarge.
    """
    kind = _media_type(content_type, content_encoding)
    if kind == "application/json":
        return load_json(body)
    if kind == "multipart/form-data":
        parts = multipart.split(content_type, body)
        _empty(body)
        return Form(parts)
    raise UnsupportedMediaType("send application/json or multipart/form-data")


def read_score_request(content: Form | Any, *, max_candidates: int) -> Parsed:
    """The result of ``load_score_request``, in any of the three forms, as groups.

    An image that is not base64 becomes its candidate's InvalidImage; anything else that is wrong fails the request.
    Raises InvalidRequest, PayloadTooLarge.
    """
    if not isinstance(content, Form):
        return _from_json(content, read_base64, max_candidates)
    if any(part.name == "request" for part in content.parts):
        return _from_request_part(content.parts, max_candidates)
    return _from_form(content.parts, max_candidates)


def parse_explain_request(
    content_type: str, body: bytes | bytearray, *, content_encoding: str
) -> tuple[Question, bool]:
    """Parse ``POST /v1/explain``, which is JSON: the question, and whether the answer is to be streamed.

    A bytearray is emptied on the way. Raises UnsupportedMediaType, InvalidRequest, PayloadTooLarge; an image that is
    not base64 is found when it is used.
    """
    document = load_json_body(content_type, body, content_encoding=content_encoding)
    try:
        request = ExplainRequest.model_validate(document)
    except ValidationError as error:
        raise invalid(error, own=0) from None
    question = Question(
        sources=_sources(request.source, read_base64),
        edited=read_base64("edited", request.edited),
        instruction=request.instruction,
        dimensions=request.dimensions,
        max_tokens=request.max_tokens,
        timeout_s=request.timeout_ms / 1e3,
    )
    return question, request.stream


def _media_type(content_type: str, content_encoding: str) -> str:
    """Empty where there is none. Raises UnsupportedMediaType for a body that is encoded."""
    if content_encoding.strip().lower() != "identity":
        raise UnsupportedMediaType("send the body without a content-encoding")
    header = Message()
    header["content-type"] = content_type
    return header.get_content_type() if content_type else ""


def _from_json(document: Any, read: _Read, max_candidates: int) -> Parsed:
    try:
        request = score_request_adapter.validate_python(document)
    except ValidationError as error:
        raise invalid(error) from None
    if isinstance(request, PairRequest):
        edited, sources = read("edited", request.edited), _sources(request.source, read)
        return Parsed([GroupInput(sources, request.instruction, [edited])], request.timeout_ms)
    check_count(sum(len(group.edits) for group in request.groups), max_candidates)
    return Parsed([_group(n, group, read) for n, group in enumerate(request.groups)], request.timeout_ms)


def load_json_body(content_type: str, body: bytes | bytearray, *, content_encoding: str) -> Any:
    """The document in the body of a route that accepts only JSON. Raises as ``load_score_request`` does."""
    if _media_type(content_type, content_encoding) != "application/json":
        raise UnsupportedMediaType("send application/json")
    return load_json(body)


def load_json(body: bytes | bytearray) -> Any:
    """The document in a body, which is emptied: else memory would hold it three times, as bytes, text and values.

    Raises InvalidRequest, and PayloadTooLarge for more values than any request has.
    """
    _check_values(body)
    try:
        text = body.decode("utf-8")
        _empty(body)
        return strict_json.loads(text)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"not UTF-8 (byte {error.start})") from None
    except strict_json.RepeatedKey as error:
        raise InvalidRequest(str(error), param=error.key[:64]) from None
    except ValueError as error:
        raise InvalidRequest(str(error)) from None


def _empty(body: bytes | bytearray) -> None:
    if isinstance(body, bytearray):
        body.clear()


def _group(number: int, group: Group, read: _Read) -> GroupInput:
    edits = [read(f"edits[{n}]", edit) for n, edit in enumerate(group.edits)]
    return GroupInput(_sources(group.source, read), group.instruction, edits, f"groups[{number}]")


def _sources(source: str | list[str] | None, read: _Read) -> list[ImageInput]:
    """A list of one source is the same as the bare image, also in its name."""
    texts = [source] if isinstance(source, str) else source or []
    return [read(name, text) for name, text in zip(_names("source", len(texts)), texts, strict=True)]


def _names(field: str, count: int) -> list[str]:
    """The names of the images in a field that may hold one or several."""
    return [field] if count == 1 else [f"{field}[{number}]" for number in range(count)]


def read_base64(name: str, text: str) -> ImageInput:
    """The image in a field; for text that is not base64, it holds the InvalidImage of its candidates."""
    try:
        return ImageInput.of(name, _decode_base64(text))
    except InvalidImage as error:
        return ImageInput.of(name, error)


def _decode_base64(text: str) -> bytes:
    """base64, bare or a data URL; line breaks, as ``base64`` prints them, are allowed."""
    if text[:5].lower() == "data:":
        match = _DATA_URL.match(text, 0, _MAX_DATA_URL_HEAD)
        if match is None:
            raise InvalidImage("not a base64 data URL")
        text = text[match.end() :]
    try:
        if any(space in text for space in " \t\r\n"):
            text = text.translate(_NO_SPACES)
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:  # binascii.Error, or a character beyond ASCII
        raise InvalidImage("not valid base64") from None


def _check_values(body: bytes | bytearray) -> None:
    """Images are base64, which has none of these characters: genuine requests hold a few per candidate."""
    if sum(body.count(mark) for mark in (b",", b"{", b"[")) > _MAX_JSON_VALUES:
        raise PayloadTooLarge(f"more than {_MAX_JSON_VALUES} values in the JSON document")


def check_count(count: int, max_candidates: int) -> None:
    """Raises PayloadTooLarge."""
    if count > max_candidates:
        raise PayloadTooLarge(f"{count} candidates in one request, the limit is {max_candidates}")


def invalid(error: ValidationError, *, own: int = 1) -> InvalidRequest:
    """The first problem, with its field, and never the input itself. ``own``: leading names that are not fields."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    # The first name of a score request is the tag of its form, and not a field; so is the tag of a source's form.
    field = ".".join(str(piece) for piece in first["loc"][own:] if piece not in SOURCE_TAGS)
    # pydantic would name the Python class of the object that it expects.
    message = "must be a JSON object" if first["type"] in ("model_type", "model_attributes_type") else first["msg"]
    return InvalidRequest(f"{field}: {message}" if field else message, param=field or None)


def _from_request_part(parts: list[multipart.Part], max_candidates: int) -> Parsed:
    """The SDK's form: one part ``request`` (JSON whose images are ``part:NAME``) and one binary part per image."""
    files: dict[str, ImageInput] = {}
    document: bytes | None = None
    for part in parts:
        if part.name in files or (part.name == "request" and document is not None):
            raise InvalidRequest(f"part '{part.name[:64]}' is there twice", param=part.name[:64])
        if part.name == "request":
            document = part.data
        else:
            files[part.name] = ImageInput.of(part.name, part.data)
    assert document is not None
    unused = set(files)

    def read(name: str, text: str) -> ImageInput:
        if not text.startswith(PART_PREFIX):
            return read_base64(name, text)
        part = text.removeprefix(PART_PREFIX)
        if part not in files:
            raise InvalidRequest(f"part '{part[:64]}' is missing", param=part[:64])
        unused.discard(part)
        return replace(files[part], name=name)  # hashed once, however often it is used

    parsed = _from_json(load_json(document), read, max_candidates)
    if unused:
        name = sorted(unused)[0]
        raise InvalidRequest(f"part '{name[:64]}' is not used by the request", param=name[:64])
    return parsed


def _from_form(parts: list[multipart.Part], max_candidates: int) -> Parsed:
    """The form of ``curl -F``: ``source`` and ``edited`` (files, repeatable), ``instruction`` (text)."""
    single: dict[str, bytes] = {}
    files: dict[str, list[bytes]] = {"source": [], "edited": []}
    for part in parts:
        if part.name in files:
            files[part.name].append(part.data)
        elif part.name not in ("instruction", "timeout_ms"):
            raise InvalidRequest(f"unknown field '{part.name[:64]}'", param=part.name[:64])
        elif part.name in single:
            raise InvalidRequest(f"field '{part.name}' is there twice", param=part.name)
        else:
            single[part.name] = part.data
    for name, present in (("instruction", "instruction" in single), ("edited", files["edited"])):
        if not present:
            raise InvalidRequest(f"field '{name}' is missing", param=name)
    check_count(len(files["edited"]), max_candidates)
    try:
        instruction = _INSTRUCTION.validate_python(single["instruction"].decode("utf-8"))
    except UnicodeDecodeError:
        raise InvalidRequest("instruction: not UTF-8", param="instruction") from None
    except ValidationError as error:
        raise InvalidRequest(f"instruction: {error.errors()[0]['msg']}", param="instruction") from None
    sources, edits = (
        [ImageInput.of(name, data) for name, data in zip(_names(field, len(images)), images, strict=True)]
        for field, images in files.items()
    )
    return Parsed([GroupInput(sources, instruction, edits)], _timeout(single.get("timeout_ms")))


def _timeout(text: bytes | None) -> int:
    if text is None:
        return DEFAULT_TIMEOUT_MS
    value = int(text) if text.isdigit() and len(text) < 10 else 0
    if not 1 <= value <= MAX_TIMEOUT_MS:
        raise InvalidRequest(f"timeout_ms: must be a whole number in 1..{MAX_TIMEOUT_MS}", param="timeout_ms")
    return value
