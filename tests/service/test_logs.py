"""The two formats of log lines."""

import json
import logging
import sys

import pytest

from jrm_service.logs import JSONFormatter, TextFormatter


def record(message: str = "%s", *arguments: object, **extra: object) -> logging.LogRecord:
    logger = logging.getLogger("jrm.access")
    return logger.makeRecord("jrm.access", logging.INFO, "x.py", 1, message, arguments, None, extra=extra)


def test_json_is_one_object_on_one_line():
    line = JSONFormatter().format(record("a %s", 'b\nc"\u2028', fields={"status": 200, "key": "é"}))
    assert "\n" not in line
    assert line.isascii()
    fields = json.loads(line)
    assert fields.pop("time").endswith("Z")
    expected = {"level": "info", "logger": "jrm.access", "message": 'a b\nc"\u2028', "status": 200, "key": "é"}
    assert fields == expected


def test_json_times_are_utc_with_milliseconds():
    one = record("x")
    one.created, one.msecs = 1_700_000_000.25, 250.0
    assert json.loads(JSONFormatter().format(one))["time"] == "2023-11-14T22:13:20.250Z"


def test_json_has_the_traceback():
    try:
        raise ValueError("broken")
    except ValueError:
        one = record("oops")
        one.exc_info = sys.exc_info()
    line = JSONFormatter().format(one)
    assert "\n" not in line
    assert json.loads(line)["exception"].endswith("ValueError: broken")


def test_json_lines_are_bounded():
    assert len(JSONFormatter().format(record("%s", "x" * 1_000_000))) < 20_000


def test_json_takes_whatever_a_field_holds():
    assert json.loads(JSONFormatter().format(record("x", fields={"path": {1}})))["path"] == "{1}"


def test_text_says_each_field_once():
    fields = {"method": "POST", "route": "/v1/score", "status": 200, "outcome": "ok", "candidates": 12}
    line = TextFormatter().format(record("POST /v1/score 200", fields=fields))
    assert line == "INFO: POST /v1/score 200 outcome=ok candidates=12"


@pytest.mark.parametrize("formatter", [JSONFormatter(), TextFormatter()], ids=["json", "text"])
def test_records_without_fields_are_records_too(formatter):
    assert "hello" in formatter.format(record("hello"))
