"""POST /v1/responses: OpenAI's newer way to ask, on the same path as chat.

Nothing is stored, and the paths of stored responses say so. It knows nothing of how an answer is written or sent.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from serve.engine.served import ServedEngine
from serve.server.api.answer.objects import Choice
from serve.server.api.responses.request import ResponsesRequest
from serve.server.api.responses.writer import ResponsesWriter
from serve.server.metrics import Metrics
from serve.server.respond import respond
from serve.server.routes.generation import answer_of, planned
from serve.server.routes.headers import route_headers
from serve.server.routes.parsed import ParsedRoute


def responses_routes(engine: ServedEngine, metrics: Metrics) -> APIRouter:
    """The path, and those beneath it that there is nothing at."""
    router = APIRouter(route_class=ParsedRoute)

    @router.post("/v1/responses")
    async def responses(request: Request, body: ResponsesRequest) -> Response:
        chat = body.chat()
        asked = await planned(engine, None, metrics, chat)
        head = {**body.echoed(chat), **answer_of(engine, asked.way, asked.form, chat=True).about}
        writer = ResponsesWriter(head, Choice(0, chat=True, calls=asked.form.calls))
        return await respond(request, asked.begins, writer, stream=body.stream, headers=route_headers(asked.way))

    @router.api_route("/v1/responses/{rest:path}", methods=["GET", "POST", "DELETE"], include_in_schema=False)
    async def stored(rest: str) -> Response:
        raise HTTPException(
            404, "this server stores no responses and counts or shortens none; POST /v1/responses answers at once"
        )

    return router
