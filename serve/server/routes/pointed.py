"""A chat request that is answered from documents: who answers it, and what cannot be asked for then.

It knows nothing of how passages are found or judged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fastapi import Request
from fastapi.responses import Response

from serve.engine.pointing import PointedRun, Pointing
from serve.server.api.answer.objects import Completion
from serve.server.api.answer.pointed import PointedWriter
from serve.server.api.request.bodies import ChatRequest
from serve.server.metrics import Metrics
from serve.server.respond import respond
from serve.server.routes.headers import route_headers
from slm.errors import UnsupportedError
from slm.joints import Message


def who_reads(pointing: Pointing | None, body: ChatRequest, *, indexed: bool) -> Pointing | None:
    """The reader that answers the request, None for the model. indexed: the server has an index.

    Raises UnsupportedError for a reader that is asked for and not there.
    """
    if body.rag is False or body.reader == "model":
        return None
    if pointing is None and body.reader == "point" and indexed:
        raise UnsupportedError(
            "rag.reader: this server has no reader that points at lines",
            hint="Start it with --reader FOLDER, or leave rag.reader out: the model answers.",
        )
    return pointing


def check_one_text(body: ChatRequest) -> None:
    """Raise UnsupportedError for what no answer from passages can have."""
    if body.n > 1 or body.tools or body.logprobs or body.continues or body.wanted is not None:
        raise UnsupportedError(
            "rag: an answer from passages is one text with citations, no n, tools, logprobs, form or continued message"
        )


def check_pointed(body: ChatRequest) -> None:
    """Raise UnsupportedError for what asks for another text than the lines of the documents.

    How tokens are drawn and how many at most (temperature, seed, max_tokens ...) cannot matter: none are generated.
    """
    check_one_text(body)
    asked = {
        "stop": body.stops,
        "stop_token_ids": body.stop_token_ids,
        "min_tokens": body.min_tokens,
        "ignore_eos": body.ignore_eos,
        "logit_bias": body.logit_bias,
        "lora": body.lora,
        "chat_template_kwargs": body.chat_template_kwargs,
        "add_generation_prompt": body.add_generation_prompt is False,
    }
    if names := [name for name, value in asked.items() if value]:
        raise UnsupportedError(
            f"a reader answers with lines of the documents, word for word: {', '.join(names)} cannot be done",
            hint='Leave it out, or let the model answer: "rag": {"reader": "model"}.',
        )


def question_of(messages: Sequence[Message]) -> str:
    """What is asked of the documents: the user's last message, "" without one."""
    return next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")


async def point(request: Request, body: ChatRequest, pointing: Pointing, metrics: Metrics) -> Response:
    """The reader's answer. Raises SlmError for what can be found wrong before anything is read."""
    check_pointed(body)
    messages = body.conversation()
    # Who would word an answer has no say in a pointed one, but a name that nothing carries is an error all the same.
    await asyncio.to_thread(pointing.engine.route, body.model, messages)
    way = pointing.route
    run = PointedRun(pointing, question_of(messages), body.filters)
    model = way.adapter or pointing.engine.base.name
    answer = Completion(chat=True, model=model, adapter=way.adapter, reason=way.reason)
    writer = PointedWriter(answer, run, with_usage=body.wants_usage)
    begins = [metrics.measured(run.begin, way.adapter)]
    return await respond(request, begins, writer, stream=body.stream, headers=route_headers(way))
