"""values.schema.json against values.yaml and against the server's settings."""

import itertools
import json

import helm_python
import jsonschema
import yaml

from helm.chart import CHART, every_case, refusal
from jrm_service.settings import Settings
from support.cases import each

SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
VALUES = (CHART / "values.yaml").read_text(encoding="utf-8")
# What each of the server's settings is decided by that is no setting of the chart.
OWNED = {
    "checkpoint": "set checkpoint.source instead",
    "host": "set the value host instead",
    "port": "set service.port instead; pods listen on 8000",
    "device": "set score.gpus or explain.gpus instead",
    "serve": "set score.enabled and explain.enabled instead",
    "api_keys_file": "set apiKeys.existingSecret instead",
    "redis_url": "set redis.mode instead",
    "grace_s": "set shutdown.graceSeconds instead",
}


def resolved(entry):
    name = entry.get("$ref", "").removeprefix("#/definitions/")
    return SCHEMA["definitions"][name] if name else entry


def entries(entry=SCHEMA, path=()):
    """Every key that the schema knows, as (path, entry)."""
    for name, child in resolved(entry).get("properties", {}).items():
        yield (*path, name), resolved(child)
        yield from entries(child, (*path, name))


def keys(node, path=()):
    """Every key of values.yaml, as (path, its line from 0)."""
    if isinstance(node, yaml.MappingNode):
        for key, child in node.value:
            yield (*path, key.value), key.start_mark.line
            yield from keys(child, (*path, key.value))


def test_it_is_a_schema():
    jsonschema.Draft7Validator.check_schema(SCHEMA)


@every_case
def test_another_validator_than_helms_takes_the_same_values(case):
    with helm_python.Chart.load(CHART) as loaded:
        jsonschema.Draft7Validator(SCHEMA).validate(loaded.merge_values(case))


def ours(path):
    """Whether a key is of the chart's making: neither a setting of the server nor part of a container's resources."""
    return not {"settings", "resources"} & {*path[:-1]}


def test_every_value_is_documented_where_it_stands():
    known, lines = {path for path, _ in entries()}, VALUES.splitlines()
    for path, line in keys(yaml.compose(VALUES)):
        if path in known and ours(path):
            assert lines[line - 1].strip().startswith("# "), f"{'.'.join(path)} has no comment"


def test_every_entry_has_a_type_and_a_description():
    for path, entry in entries():
        assert entry["description"], path
        assert entry.keys() & {"type", "enum", "anyOf", "const"}, path


def test_every_entry_is_a_value_that_can_be_seen():
    """Except what concerns a chart that another one depends on: Helm hands it one and takes the other for itself."""
    shown = {path for path, _ in keys(yaml.compose(VALUES))}
    assert {path for path, _ in entries() if ours(path)} - shown == {("global",), ("enabled",)}


def test_a_misspelt_key_is_refused_wherever_the_names_are_ours():
    for path, entry in [((), SCHEMA), *entries()]:
        if "properties" in entry:
            assert entry["additionalProperties"] is False, path


def expected_setting(name):
    field = dict(Settings.model_json_schema()["properties"][name])
    for option in field.pop("anyOf", []):
        field |= option if option["type"] != "null" else {}
    return {key: value for key, value in field.items() if key not in ("default", "title")}


@each("name", sorted(Settings.model_fields.keys() - OWNED))
def test_a_setting_is_what_the_server_takes(name):
    assert SCHEMA["definitions"]["settings"]["properties"][name] == expected_setting(name)


def test_every_setting_is_there_and_no_other():
    assert list(SCHEMA["definitions"]["settings"]["properties"]) == list(Settings.model_fields)


@each(("name", "value"), itertools.product(sorted(OWNED), ["x", 1, True]))
def test_a_setting_that_the_chart_decides_is_refused_with_the_value_to_use(name, value):
    assert f"at '/settings/{name}': value must be '{OWNED[name]}'" in refusal({"settings": {name: value}})


@each("name", sorted(OWNED))
def test_not_even_that_message_is_a_value(name):
    assert f"/settings/{name}" in refusal({"settings": {name: OWNED[name]}})
