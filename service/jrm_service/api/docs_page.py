"""``/docs``: the routes of the API on one page without scripts, styles or other files to load."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from html import escape
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

DOCS = "/docs"
_STYLE = "body{font:16px/1.5 sans-serif;max-width:50em;margin:2em auto;padding:0 1em}code{font-weight:bold}"


def install(app: FastAPI) -> Callable[[], Awaitable[HTMLResponse]]:
    """Serve the page, and return its handler.

    FastAPI's own pages load their scripts from the web, which many servers cannot reach.
    """

    @app.get(DOCS, include_in_schema=False)
    async def docs() -> HTMLResponse:
        headers = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
        return HTMLResponse(_page(app.openapi()), headers=headers)

    return docs


def _page(schema: dict[str, Any]) -> str:
    info = schema["info"]
    title = escape(f"{info['title']} {info['version']}")
    operations = [
        f"<dt><code>{method.upper()} {escape(path)}</code></dt><dd>{escape(operation.get('description', ''))}</dd>"
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1><p>{escape(info.get('description', ''))}</p>"
        f"<dl>{''.join(operations)}</dl>"
        '<p>Fields, types and replies: <a href="openapi.json">openapi.json</a>, for any OpenAPI tool.</p></body></html>'
    )
