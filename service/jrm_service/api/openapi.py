"""What FastAPI cannot derive: bodies of /score and /explain, which are read by hand so that limits come first."""

from __future__ import annotations

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
        "source": {"type": "array", "items": _FILE, "description": "in order; none for a checkpoint without sources"},
        "instruction": {"type": "string", "minLength": 1, "pattern": r"\S"},
        "edited": {"type": "array", "items": _FILE, "minItems": 1},
        "timeout_ms": {"type": "integer", "minimum": 1, "maximum": MAX_TIMEOUT_MS},
    },
}


def install(app: FastAPI, *, guarded: bool) -> None:
    """Serve a complete schema: FastAPI's own, plus the request models of the routes that read their body by hand.

    ``guarded`` says that the operations which can answer 401 do ask for an API key.
    """

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            request = score_request_adapter.json_schema(ref_template=_REF)
            models = request.pop("$defs") | {
                "ScoreRequest": request | {"title": "ScoreRequest"},
                "ScoreForm": _SCORE_FORM,
                "ExplainRequest": ExplainRequest.model_json_schema(ref_template=_REF),
            }
            components = schema.setdefault("components", {})
            components.setdefault("schemas", {}).update(models)
            if guarded:
                components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                for operation in (one for methods in schema["paths"].values() for one in methods.values()):
                    if "401" in operation["responses"]:
                        operation["security"] = [{"key": []}]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
