"""The HTTP server around an engine: OpenAI's API, adapters at run time, and the page at `/`.

It knows nothing of the child process or of how an index is searched: it is handed an engine and a retriever.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from serve.api.errors import install_errors, plain_error
from serve.engine import Engine
from serve.routes.adapters import adapter_routes
from serve.routes.generation import generation_routes
from serve.routes.models import model_routes
from slm import __version__
from slm.joints import Retriever

_OPEN_PATHS = ("/", "/health")
_CSP = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"


def create_app(
    engine: Engine,
    *,
    allowed_folders: Sequence[Path] = (),
    api_key: str | None = None,
    retriever: Retriever | None = None,
) -> FastAPI:
    """The application.

    allowed_folders: where adapters may be loaded from. api_key: asked of every request but the page and /health.
    """
    app = FastAPI(title="slm-cpu", version=__version__, redoc_url=None)
    install_errors(app)

    if api_key is not None:

        @app.middleware("http")
        async def check_key(request: Request, call_next: Callable[[Request], Any]) -> Response:
            given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
            right = hmac.compare_digest(given.encode("utf-8", "replace"), api_key.encode())
            if not right and request.url.path not in _OPEN_PATHS:
                body = plain_error("a valid API key is needed", kind="authentication_error", code="invalid_api_key")
                return JSONResponse(body, 401, headers={"www-authenticate": "Bearer"})
            response: Response = await call_next(request)
            return response

    app.include_router(model_routes(engine, retrieval=retriever is not None))
    app.include_router(generation_routes(engine, retriever))
    app.include_router(adapter_routes(engine, [folder.resolve() for folder in allowed_folders]))

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> HTMLResponse:
        text = (Path(__file__).parent / "web" / "index.html").read_text(encoding="utf-8")
        return HTMLResponse(text, headers={"content-security-policy": _CSP, "x-content-type-options": "nosniff"})

    return app
