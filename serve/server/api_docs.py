"""The page at `/docs`: every route with its parameters and schemas, from the application's own OpenAPI description.

FastAPI's own page loads its scripts from a network that a private server may not have; this one has no script at all.
It knows nothing of what the routes do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

_METHODS = ("get", "post", "put", "patch", "delete")
_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
}


def add_api_docs(app: FastAPI) -> None:
    """Serve the page from `app`, which must have been made with docs_url=None."""

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(docs_page(app.openapi()), headers=_HEADERS)


def docs_page(description: Mapping[str, Any]) -> str:
    """HTML for an OpenAPI 3 description."""
    title = escape(f"{description['info']['title']} {description['info']['version']}")
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="stylesheet" href="/web/style.css"></head><body class="docs"><main>'
        f'<h1>{title}</h1><p>The same as JSON: <a href="/openapi.json">/openapi.json</a></p>'
    ]
    for path, operations in description["paths"].items():
        for method in _METHODS:
            if method in operations:
                parts += _operation(method, path, operations[method])
    parts.append("<h2>Schemas</h2>")
    for name, schema in description.get("components", {}).get("schemas", {}).items():
        parts.append(f'<details id="{escape(name)}"><summary>{escape(name)}</summary>{_json(schema)}</details>')
    return "".join([*parts, "</main></body></html>\n"])


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"<details><summary><code>{method.upper()} {escape(path)}</code> {escape(operation['summary'])}</summary>"
    if text := operation.get("description"):
        yield f"<p>{escape(text)}</p>"
    for name in ("parameters", "requestBody", "responses"):
        if value := operation.get(name):
            yield f"<h3>{name}</h3>{_json(value)}"
    yield "</details>"


def _json(value: Any) -> str:
    return f"<pre>{escape(json.dumps(value, indent=2, ensure_ascii=False))}</pre>"
