"""A request's body is parsed once: by the guard, within its limits, and never again by a route."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.server.guard import Policy
from serve.server.metrics import Metrics
from serve.server.middleware import install_guard
from serve.server.routes.parsed import PARSED, ParsedRoute
from tests.served import FakeEngine


def echoing() -> FastAPI:
    router = APIRouter(route_class=ParsedRoute)

    @router.post("/echo")
    async def echo(body: dict[str, Any], request: Request) -> dict[str, Any]:
        return {"body": body, "same": request.scope.get(PARSED) == body}

    app = FastAPI()
    app.include_router(router)
    return app


def having_parsed(app: ASGIApp, value: Any) -> ASGIApp:
    async def called(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, PARSED: value}, receive, send)

    return called


async def posted(app: ASGIApp, body: bytes) -> httpx.Response:
    headers = {"content-type": "application/json"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://localhost") as client:
        return await client.post("/echo", content=body, headers=headers)


def run(app: ASGIApp, body: bytes) -> httpx.Response:
    import asyncio

    return asyncio.run(posted(app, body))


def test_a_route_takes_what_was_parsed_before_it_and_does_not_read_the_body_again() -> None:
    reply = run(having_parsed(echoing(), {"a": 1}), b"this is no JSON")
    assert reply.status_code == 200 and reply.json() == {"body": {"a": 1}, "same": True}


@pytest.mark.parametrize("filler", ["", "x" * 100_000])
def test_the_guard_hands_on_what_it_has_parsed(filler: str) -> None:
    app = echoing()
    install_guard(app, Policy(), context=4096, metrics=Metrics(FakeEngine()))
    body = b'{"a": [1, 2.5, null, "' + "語".encode() + b'"], "filler": "' + filler.encode() + b'"}'
    assert run(app, body).json() == {"body": {"a": [1, 2.5, None, "語"], "filler": filler}, "same": True}


@pytest.mark.parametrize("levels", [198, 201, 5000])
def test_json_that_is_nested_too_deep_is_called_that_and_not_invalid(levels: int) -> None:
    app = echoing()
    install_guard(app, Policy(), context=4096, metrics=Metrics(FakeEngine()))
    reply = run(app, b'{"a":' + b"[" * levels + b"]" * levels + b"}")
    if levels < 200:
        assert reply.status_code == 200
    else:
        message = reply.json()["error"]["message"]
        assert reply.status_code == 400 and message == "the body is nested too deep: at most 200 levels are read"


def test_without_a_guard_a_route_parses_the_body_itself() -> None:
    assert run(echoing(), b'{"a": 1}').json() == {"body": {"a": 1}, "same": False}
    assert run(echoing(), b"this is no JSON").status_code == 422
