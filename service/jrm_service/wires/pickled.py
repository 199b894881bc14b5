"""What the wires of pickles have in common: how a body is read, and the replies that their clients load."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from starlette.responses import Response

from jrm_service.api.errors import headers_of, reason_of, status_of
from jrm_service.api.wire import Sent
from jrm_service.errors import InvalidRequest, JRMError, UnsupportedMediaType
from jrm_service.images.reader import ImageInput

from .pickle_values import PickleError, PILState
from .pickles import loads

# Their clients send a 500 up to a thousand times, at intervals of minutes: what is wrong with this request stays wrong.
_INTERNAL = 502
_KINDS = {bytes: "bytes", str: "text", list: "a list", PILState: "a PIL image"}


def load(sent: Sent) -> Any:
    """The value in a body, which is emptied. Raises InvalidRequest for what is no pickle of builtins and images."""
    if sent.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedMediaType("send the body without a content-encoding")
    try:
        content = loads(sent.body)
    except PickleError as error:
        raise InvalidRequest(f"not a pickle that can be read: {error}") from None
    sent.body.clear()
    return content


def reply(value: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A pickle of plain lists, dicts, numbers and strings."""
    return Response(pickle.dumps(dict(value)), status, headers, "application/octet-stream")


def refusal(error: JRMError) -> Response:
    """``{"error": reason}``, in which no client finds scores, with a status that none of them takes for a passing one.

    Only what passes (429, and 503 while the server starts or stops) has ``retry-after``, which flow_grpo's clients wait
    for. A device that was lost with one candidate three times has none: the same request may be what it was lost by,
    and would be sent a thousand times.
    """
    status = status_of(error)
    headers = {} if error.code == "device_lost" else headers_of(error)
    return reply({"error": f"{error.code}: {reason_of(error)}"}, _INTERNAL if status == 500 else status, headers)


def columns(content: Mapping[str, Any], kinds: Mapping[str, type]) -> list[list[Any]]:
    """The lists of these names, as long as each other and with values of these kinds. Raises InvalidRequest."""
    found = []
    for name, kind in kinds.items():
        values = content.get(name)
        if not isinstance(values, list | tuple):
            raise InvalidRequest(f"{name}: must be a list", param=name)
        for number, value in enumerate(values):
            if not isinstance(value, kind):
                raise InvalidRequest(f"{name}[{number}]: must be {_KINDS[kind]}", param=name)
        found.append(list(values))
    require_equal_lengths(dict(zip(kinds, found, strict=True)))
    return found


class ImageInputs:
    """The images of a pickle, which may name one object in many places: each object is read and hashed once.

    ``read`` makes the image in a field of a value; the values must outlive this.
    """

    def __init__(self, read: Callable[[str, Any], ImageInput] = ImageInput.of) -> None:
        self._read = read
        self._by_id: dict[int, ImageInput] = {}

    def of(self, name: str, value: Any) -> ImageInput:
        """The image in the field ``name``."""
        if id(value) not in self._by_id:
            self._by_id[id(value)] = self._read(name, value)
        return replace(self._by_id[id(value)], name=name)


def require_equal_lengths(lists: Mapping[str, Sequence[Any]]) -> None:
    """Raises InvalidRequest: whose prompt is whose could not be told."""
    if len({len(values) for values in lists.values()}) > 1:
        lengths = ", ".join(f"{name} has {len(values)}" for name, values in lists.items())
        raise InvalidRequest(f"lists of unequal length: {lengths}")
