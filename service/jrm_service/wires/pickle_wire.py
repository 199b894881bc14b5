"""What the wires that send pickles share: reading a body, and writing the replies that their clients unpickle."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from starlette.responses import Response

from jrm_service.api.errors import headers_of, reason_of, status_of
from jrm_service.api.score_path import IncomingRequest
from jrm_service.errors import InvalidRequest, JRMError, UnsupportedMediaType
from jrm_service.images.reader import ImageInput

from .pickle_allowlist import PickleError, PILState
from .pickles import loads

# Their clients retry a 500 up to a thousand times, minutes apart, although the request would only fail again.
_INTERNAL = 502
_KINDS = {bytes: "bytes", str: "text", list: "a list", PILState: "a PIL image"}


def load(incoming: IncomingRequest) -> Any:
    """The value in a body, which is emptied. Raises InvalidRequest unless it is a pickle of builtins and images."""
    if incoming.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedMediaType("send the body without a content-encoding")
    try:
        content = loads(incoming.body)
    except PickleError as error:
        raise InvalidRequest(f"not a pickle that can be read: {error}") from None
    incoming.body.clear()
    return content


def reply(value: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A pickle of plain lists, dicts, numbers and strings."""
    return Response(pickle.dumps(dict(value)), status, headers, "application/octet-stream")


def refusal(error: JRMError) -> Response:
    """``{"error": reason}``, which has no scores for any client, with a status that they do not retry in vain.

    Only transient errors (429, and 503 while the server starts or stops) have ``retry-after``, which flow_grpo's
    clients wait for. ``device_lost`` has none: the request itself may have crashed the device, and would be sent a
    thousand times.
    """
    status = status_of(error)
    headers = {} if error.code == "device_lost" else headers_of(error)
    return reply({"error": f"{error.code}: {reason_of(error)}"}, _INTERNAL if status == 500 else status, headers)


def columns(content: Mapping[str, Any], kinds: Mapping[str, type]) -> list[list[Any]]:
    """The lists with these names, of equal length and with values of these types. Raises InvalidRequest."""
    lists = []
    for name, kind in kinds.items():
        values = content.get(name)
        if not isinstance(values, list | tuple):
            raise InvalidRequest(f"{name}: must be a list", param=name)
        for number, value in enumerate(values):
            if not isinstance(value, kind):
                raise InvalidRequest(f"{name}[{number}]: must be {_KINDS[kind]}", param=name)
        lists.append(list(values))
    require_equal_lengths(dict(zip(kinds, lists, strict=True)))
    return lists


class ImageInputs:
    """The images of a pickle, where one object may occur in many places: each object is read and hashed once.

    ``read`` turns a field's name and value into an image; the values must outlive this object.
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
    """Raise InvalidRequest for lists of different lengths: which prompt belongs to which edit would be unclear."""
    if len({len(values) for values in lists.values()}) > 1:
        lengths = ", ".join(f"{name} has {len(values)}" for name, values in lists.items())
        raise InvalidRequest(f"lists of unequal length: {lengths}")
