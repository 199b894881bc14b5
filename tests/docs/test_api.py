"""docs/api.md against the wire types, the routes and the one table of statuses."""

import json
import re

import httpx

from docs import pages
from jrm_client import protocol
from jrm_service import errors
from jrm_service.api.errors import STATUS
from support import servers
from support.cases import each

PAGE = pages.DOCS / "api.md"
ERRORS = pages.table(PAGE, "status")


def candidate_codes(kind: type[errors.JRMError] = errors.CandidateError) -> set[str]:
    return {kind.code}.union(*map(candidate_codes, kind.__subclasses__()))


def test_every_error_code_has_its_row_and_status():
    assert {(int(status), code) for status, code, *_ in ERRORS} == {(status, code) for code, status in STATUS.items()}


def test_errors_of_candidates_are_told_from_errors_of_requests():
    documented = {code for _, code, scope, *_ in ERRORS if scope == "candidate"}
    assert documented == candidate_codes() & set(STATUS)


@each("example", pages.blocks(PAGE, "json"))
def test_examples_fit_the_contract(example):
    document = json.loads(example)
    if document.get("object") == "score.list":
        reply = protocol.ScoreResponse.model_validate_json(example, strict=True)
        assert reply.model_dump(mode="json", exclude_unset=True) == document
    elif "error" in document:
        reply = protocol.ErrorResponse.model_validate_json(example, strict=True)
        assert reply.model_dump(mode="json", exclude_unset=True) == document
    else:
        protocol.score_request_adapter.validate_json(example)


@each(
    "model",
    [
        protocol.GroupsRequest,
        protocol.Group,
        protocol.PairRequest,
        protocol.ScoreResponse,
        protocol.CandidateScore,
        protocol.DimensionScore,
        protocol.CandidateErrorBody,
        protocol.Usage,
        protocol.Timings,
        protocol.ErrorBody,
    ],
)
def test_every_field_is_on_the_page(model):
    text = PAGE.read_text(encoding="utf-8")
    for field in model.model_fields:
        assert re.search(rf"\b{field}\b", text), f"{model.__name__}.{field}"


def test_the_numbers_of_the_contract():
    text = pages.prose(PAGE)
    assert f"{protocol.MAX_TIMEOUT_MS:,}" in text
    assert f"{protocol.DEFAULT_TIMEOUT_MS:,}" in text


def test_every_route_and_every_part_of_info_is_on_the_page():
    text = PAGE.read_text(encoding="utf-8")
    with servers.serving() as url:
        for path, methods in httpx.get(f"{url}/openapi.json").json()["paths"].items():
            for method in methods:
                assert f"`{method.upper()} {path}`" in text
        assert httpx.get(f"{url}/v1/info").json().keys() <= set(re.findall(r"\w+", text))
