"""The page at `/` and its files under `/web/`, with the headers that let them run nothing but themselves.

It knows nothing of the engine or of the API: the page asks for what it needs as any other client does.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import Response

_FOLDER = Path(__file__).parent / "web"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_NAMES = (
    "index.html", "style.css", "icon.svg", "app.js", "answering.js", "api.js", "dialogs.js", "dom.js", "markdown.js",
    "messages.js", "places.js", "store.js", "words.js",
)  # fmt: skip
_PATHS = {("/" if name == "index.html" else f"/web/{name}"): name for name in _NAMES}
# These need no API key: the page asks for the key itself.
PAGE_PATHS = tuple(_PATHS)
# No inline script or style, nothing from elsewhere, no frame around it; with trusted types no text becomes HTML
# (https://www.w3.org/TR/CSP3/, https://www.w3.org/TR/trusted-types/).
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # kept, but asked for again: a new version is seen at once
    "vary": "accept-encoding",
}


@dataclass(frozen=True)
class _File:
    """A file of the page as it is sent."""

    kind: str
    body: bytes
    packed: bytes
    tag: str


def add_page(app: FastAPI) -> None:
    """Serve the page's files from `app`; they are read once, here."""
    for path, name in _PATHS.items():
        _add(app, path, _read(_FOLDER / name))


def _read(path: Path) -> _File:
    body = path.read_bytes()
    tag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
    return _File(_TYPES[path.suffix], body, gzip.compress(body, mtime=0), tag)


def _add(app: FastAPI, path: str, file: _File) -> None:
    @app.get(path, include_in_schema=False)
    def send(request: Request) -> Response:
        headers = {**_HEADERS, "etag": file.tag}
        if request.headers.get("if-none-match") == file.tag:
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(file.packed, headers={**headers, "content-encoding": "gzip"}, media_type=file.kind)
        return Response(file.body, headers=headers, media_type=file.kind)
