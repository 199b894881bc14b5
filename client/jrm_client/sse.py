"""Server-sent events: bytes as they arrive -> the data of each event. Pure."""

from __future__ import annotations

CONTENT_TYPE = "text/event-stream"

_BOM = b"\xef\xbb\xbf"


class Decoder:
    """The wire format of the HTML standard, section 9.2, of which only ``data`` matters here.

    Lines end in LF, CR or CRLF; an empty line ends an event. Comments and other fields are ignored, as are events
    without data. Data after the last empty line was cut off, and is never returned.
    """

    def __init__(self) -> None:
        self._line = b""  # the beginning of a line that has not ended
        self._data: list[bytes] = []  # of an event that has not ended
        self._after_cr = False
        self._started = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the data of the events that end in ``chunk``, which may begin and end anywhere."""
        if not chunk:
            return []
        after_cr, self._after_cr = self._after_cr, chunk.endswith(b"\r")
        if after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]  # the rest of a CRLF
        lines = (self._line + chunk).splitlines(keepends=True)
        self._line = lines.pop() if lines and not lines[-1].endswith((b"\r", b"\n")) else b""
        return [data for line in lines if (data := self._read(line.rstrip(b"\r\n"))) is not None]

    def _read(self, line: bytes) -> bytes | None:
        if not self._started:
            self._started = True
            line = line.removeprefix(_BOM)
        if line:
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
            return None
        data, self._data = self._data, []
        return b"\n".join(data) if data else None
