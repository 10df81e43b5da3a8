"""Every failure as OpenAI writes one: {"error": {"message", "type", "param", "code"}} and a fitting HTTP status.

It knows the family of our errors and the framework's exceptions, and nothing of what was asked.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serve.server.api.request.places import first_fault
from slm.errors import (
    ContextOverflowError,
    EngineDiedError,
    EngineError,
    InputError,
    MismatchError,
    SlmError,
    UnknownNameError,
)

# Where other servers (Anthropic's, Ollama's, llama-server's) have what is here, without /v1 and /api.
_ELSEWHERE = {
    "/messages": "/v1/chat/completions", "/chat": "/v1/chat/completions", "/complete": "/v1/completions",
    "/completion": "/v1/completions", "/generate": "/v1/completions", "/embed": "/v1/embeddings",
    "/embedding": "/v1/embeddings", "/tags": "/v1/models", "/healthz": "/health", "/ping": "/health",
}  # fmt: skip


# messages[0].content: ..., as `serve.server.api.request.places.written` has it.
_PLACE = re.compile(r"([a-zA-Z_]\w*(?:\[\d+\]|\.\w+)*): ")
# What the model is to read, by path.
_PROMPTS = {
    "/v1/chat/completions": "messages", "/v1/completions": "prompt",
    "/v1/responses": "input", "/v1/embeddings": "input",
}  # fmt: skip


class Json(JSONResponse):
    """A body of JSON that can always be sent: what is no character (half a surrogate pair) becomes '?'."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def error_body(error: SlmError, path: str = "") -> tuple[int, dict[str, Any]]:
    """HTTP status and OpenAI-shaped body of an error. path: where the request went, for what only that tells."""
    status, kind, code = 500, "server_error", "internal_error"
    if isinstance(error, UnknownNameError):
        status, kind, code = 404, "invalid_request_error", "model_not_found"
    elif isinstance(error, ContextOverflowError):
        status, kind, code = 400, "invalid_request_error", "context_length_exceeded"
    elif isinstance(error, InputError | MismatchError):
        status, kind, code = 400, "invalid_request_error", "invalid_value"
    elif isinstance(error, EngineDiedError):
        status, code = 503, "engine_died"
    elif isinstance(error, EngineError):
        status, code = 503, "engine_unavailable"
    return status, plain_error(str(error), kind=kind, code=code, param=_place_of(error, path))


def _place_of(error: SlmError, path: str) -> str | None:
    """The field at fault: an error that is one field's begins with its place, as those of validation do."""
    if match := _PLACE.match(error.what):
        return match[1]
    if isinstance(error, UnknownNameError) and path in _PROMPTS:
        return "model"
    return _PROMPTS.get(path) if isinstance(error, ContextOverflowError) else None


def plain_error(
    message: str, *, kind: str = "invalid_request_error", code: str, param: str | None = None
) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def no_such_path(path: str, known: Collection[str]) -> str:
    """What to say of a path that there is nothing at: the one that was meant, as far as that is plain."""
    bare = path.rstrip("/").removeprefix("/api")
    while bare.startswith("/v1/"):
        bare = bare.removeprefix("/v1")
    meant = [_ELSEWHERE.get(bare), f"/v1{bare}", bare, *difflib.get_close_matches(path, known, n=1, cutoff=0.8)]
    near = next((one for one in meant if one in known and one != path), None)
    shown = path if len(path) <= 80 else f"{path[:79]}…"
    return f"there is nothing at {shown}." + (f" Did you mean {near}?" if near else "") + " /docs lists the paths."


def install_errors(app: FastAPI) -> None:
    """Answer every exception in OpenAI's shape; what nobody foresaw is a 500 that says nothing of the inside."""

    @app.exception_handler(SlmError)
    async def ours(request: Request, error: SlmError) -> JSONResponse:
        status, body = error_body(error, request.scope["path"])
        return Json(body, status)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        errors = error.errors()
        if errors[0]["type"] == "json_invalid":
            message = f"the body is not valid JSON: {errors[0].get('ctx', {}).get('error', '')}"
            return Json(plain_error(message, code="invalid_request"), 400)
        message, param = first_fault(errors, error.body)
        return Json(plain_error(message, code="invalid_request", param=param), 400)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        message = str(error.detail)
        if error.status_code == 404 and message == HTTPStatus.NOT_FOUND.phrase:  # no route's own words
            message = no_such_path(request.scope["path"], app.openapi()["paths"])
        body = plain_error(message, code=f"http_{error.status_code}")
        return Json(body, error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def unforeseen(_: Request, error: Exception) -> JSONResponse:
        body = plain_error("the server failed at this request", kind="server_error", code="internal_error")
        return Json(body, 500)
