"""``multipart/form-data`` in memory: python-multipart finds the parts, whose bytes are copied once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from jrm_service.errors import InvalidRequest

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_MAX_PARTS = 4096
_MAX_HEADER_BYTES = 1024  # of one header of a part; the library's time grows with the square of it


@dataclass(frozen=True, slots=True)
class Part:
    """One part, by the name of its form field."""

    name: str
    data: bytes


def split(content_type: str, body: bytes | bytearray) -> list[Part]:
    """Return the parts of a form in their order. Raises InvalidRequest."""
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise InvalidRequest("multipart/form-data without a boundary")
    # What only looks like a boundary is counted too: it costs as much as a part.
    if body.count(b"\r\n--" + boundary) > _MAX_PARTS:
        raise InvalidRequest(f"more than {_MAX_PARTS} parts")
    collector = _Collector()
    try:
        parser = MultipartParser(boundary, collector.callbacks(), max_header_size=_MAX_HEADER_BYTES)
        parser.write(cast(bytes, body))  # it only slices and searches
        parser.finalize()
    except FormParserError:  # a boundary that is too long, or any flaw of the body
        raise InvalidRequest("malformed multipart body") from None
    if not collector.ended:
        raise InvalidRequest("the multipart body ends before its closing boundary")
    with memoryview(body) as view:
        return [Part(place.name, bytes(view[place.start : place.end])) for place in collector.places]


@dataclass(slots=True)
class _Place:
    """The range of a part's data in the body."""

    name: str
    start: int = 0
    end: int = 0


class _Collector:
    """Receives python-multipart's callbacks."""

    def __init__(self) -> None:
        self.places: list[_Place] = []
        self.ended = False
        self._headers: dict[bytes, bytes] = {}
        self._field = bytearray()
        self._value = bytearray()

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._headers.clear,
            "on_header_field": lambda data, start, end: self._field.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_end": self._end,
        }

    def _header_end(self) -> None:
        self._headers[bytes(self._field).lower()] = bytes(self._value)
        self._field.clear()
        self._value.clear()

    def _headers_finished(self) -> None:
        disposition, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name")
        if disposition != b"form-data" or name is None:
            raise InvalidRequest("a part without a form-data name")
        self.places.append(_Place(name.decode("utf-8", "replace")))

    def _part_data(self, _data: bytes, start: int, end: int) -> None:
        """Positions refer to the body, because it is written to the parser in one piece, and are contiguous."""
        place = self.places[-1]
        if place.end == 0:
            place.start = start
        place.end = end

    def _end(self) -> None:
        self.ended = True
