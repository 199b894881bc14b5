"""The format of log records: text for people, or one JSON object per line for machines."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, Literal

_MAX_CHARACTERS = 16_384  # of one message or traceback: log collectors limit the length of a line


def configure(log_format: Literal["text", "json"]) -> None:
    """Send every record from INFO on to stderr, in one format. Call it once, in the process that serves."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # malformed bodies are answered, not logged
    logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)  # each failure; api.tracing logs the first


class JSONFormatter(logging.Formatter):
    """One object per record: ``time`` (UTC), ``level``, ``logger``, ``message``, then the record's ``fields``, if any.

    It is ASCII without line breaks, and every text is cut at 16,384 characters.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without a line break."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:_MAX_CHARACTERS],
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)[-_MAX_CHARACTERS:]
        return json.dumps({**line, **_fields(record)}, default=str)


class TextFormatter(logging.Formatter):
    """``LEVEL: message``, then those ``fields`` of the record that the message does not have, as ``name=value``."""

    _IN_MESSAGE = frozenset({"method", "route", "status"})

    def __init__(self) -> None:
        super().__init__("%(levelname)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line without a traceback, which follows on lines of its own."""
        fields = [f"{name}={value}" for name, value in _fields(record).items() if name not in self._IN_MESSAGE]
        return " ".join([super().formatMessage(record), *fields])


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, dict) else {}
