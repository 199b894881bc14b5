"""The OpenAPI schema that FastAPI cannot derive: bodies of /score and /explain, read by hand so that limits hold."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from jrm_client.protocol import MAX_TIMEOUT_MS, ExplainRequest, score_request_adapter

_REF = "#/components/schemas/{model}"

_FILE = {"type": "string", "format": "binary"}
_IMAGE_TYPES = "image/png, image/jpeg, image/webp, image/x-portable-pixmap"

SCORE_REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {"schema": {"$ref": _REF.format(model="ScoreRequest")}},
        "multipart/form-data": {
            "schema": {"$ref": _REF.format(model="ScoreForm")},
            "encoding": {
                "source": {"contentType": _IMAGE_TYPES},
                "edited": {"contentType": _IMAGE_TYPES},
                "instruction": {"contentType": "text/plain"},
            },
        },
    },
}

EXPLAIN_REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "content": {"application/json": {"schema": {"$ref": _REF.format(model="ExplainRequest")}}},
}

_SCORE_FORM = {
    "title": "ScoreForm",
    "description": "One group, as `curl -F` sends it. The SDK sends a part `request` (the JSON body, in which an"
    ' image is "part:NAME") and one binary part per distinct image.',
    "type": "object",
    "required": ["instruction", "edited"],
    "additionalProperties": False,
    "properties": {
        "source": {"type": "array", "items": _FILE, "description": "in order; a checkpoint may take none"},
        "instruction": {"type": "string", "minLength": 1, "pattern": r"\S"},
        "edited": {"type": "array", "items": _FILE, "minItems": 1},
        "timeout_ms": {"type": "integer", "minimum": 1, "maximum": MAX_TIMEOUT_MS},
    },
}


def install(app: FastAPI, *, guarded: bool, max_sources: Callable[[], int | None]) -> None:
    """Serve a complete schema: FastAPI's own, plus the request models of the routes that read their body by hand.

    ``guarded``: whether the operations that can answer 401 require an API key. ``max_sources`` returns the most source
    images that the served checkpoint takes, None until it is known.
    """

    @cache
    def schema_for(most: int | None) -> dict[str, Any]:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        request = score_request_adapter.json_schema(ref_template=_REF)
        models = request.pop("$defs") | {
            "ScoreRequest": request | {"title": "ScoreRequest"},
            "ScoreForm": deepcopy(_SCORE_FORM),
            "ExplainRequest": ExplainRequest.model_json_schema(ref_template=_REF),
        }
        if most is not None:
            _take_sources(models, most)
        components = schema.setdefault("components", {})
        components.setdefault("schemas", {}).update(models)
        if guarded:
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            for methods in schema["paths"].values():
                for operation in methods.values():
                    if "401" in operation["responses"]:
                        operation["security"] = [{"key": []}]
        return schema

    # Another checkpoint (POST /v1/reload) may take another number.
    app.openapi = lambda: schema_for(max_sources())  # type: ignore[method-assign]


def _take_sources(models: dict[str, Any], most: int) -> None:
    """Set how many sources every request has: none, or one to ``most``."""
    for name in ("Group", "PairRequest", "ExplainRequest"):
        model = models[name]
        one_or_several, null = model["properties"]["source"]["anyOf"]
        one_or_several["oneOf"][1]["maxItems"] = most
        model["properties"]["source"] = one_or_several if most else null
        if most:
            model["required"] = ["source", *model["required"]]
    form = models["ScoreForm"]
    if most:
        form["properties"]["source"] |= {"minItems": 1, "maxItems": most}
        form["required"] = ["source", *form["required"]]
    else:
        del form["properties"]["source"]
