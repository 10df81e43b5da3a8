"""POST /v1/chat/completions and /v1/completions: from a request to runs of the engine.

It knows nothing of how an answer is written or sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fastapi import APIRouter, Request
from fastapi.responses import Response

from serve.engine.events import Sink, Ticket
from serve.engine.pointing import Pointing
from serve.engine.prompting import TemplateOptions
from serve.engine.router import Route
from serve.engine.served import ServedEngine
from serve.server.api.answer.objects import Choice, Completion
from serve.server.api.answer.writer import ChatWriter
from serve.server.api.request.bodies import ChatRequest, CompletionRequest, LoraScale
from serve.server.api.request.forms import Form, form_of
from serve.server.metrics import Metrics
from serve.server.respond import Begin, respond
from serve.server.routes.headers import route_headers
from serve.server.routes.parsed import ParsedRoute
from serve.server.routes.pointed import check_one_text, point, question_of, who_reads
from slm.errors import InputError, UnsupportedError
from slm.joints import Grounded, Message, Retriever


def generation_routes(
    engine: ServedEngine, retriever: Retriever | None, metrics: Metrics, pointing: Pointing | None = None
) -> APIRouter:
    """The two paths that generate text. pointing: who answers from the documents, None for the model."""
    router = APIRouter(route_class=ParsedRoute)

    @router.post("/v1/chat/completions")
    async def chat(request: Request, body: ChatRequest) -> Response:
        if who := who_reads(pointing, body, indexed=retriever is not None):
            return await point(request, body, who, metrics)
        asked = await planned(engine, retriever, metrics, body)
        grounded = asked.grounded
        choices = [Choice(n, chat=True, grounded=grounded, calls=asked.form.calls) for n in range(body.n)]
        writer = ChatWriter(
            answer_of(engine, asked.way, asked.form, chat=True),
            choices,
            with_usage=body.wants_usage,
            grounded=grounded,
        )
        return await respond(request, asked.begins, writer, stream=body.stream, headers=route_headers(asked.way))

    @router.post("/v1/completions")
    async def complete(request: Request, body: CompletionRequest) -> Response:
        form = await asyncio.to_thread(form_of, body)
        sampling = body.sampling(grammar=form.grammar, grammar_field=form.field, logprobs=body.logprobs)
        prompts = body.prompts
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        lora = _lora(engine, body.lora)
        turns = [Message(role="user", content=text) for text in texts]
        way = await asyncio.to_thread(engine.route, body.model, turns, lora=lora)

        def begin(prompt: str | list[int], number: int) -> Begin:
            options = replace(sampling, seed=sampling.seed + number)

            def start(sink: Sink) -> Ticket:
                return engine.begin_complete(
                    prompt, sink, adapter=way.adapter, lora=lora, sampling=options, fit=body.limit is None
                )

            return start

        begins = [metrics.measured(begin(p, n), way.adapter) for p in prompts for n in range(body.n)]
        choices = [Choice(index, chat=False) for index in range(len(begins))]
        writer = ChatWriter(
            answer_of(engine, way, form, chat=False), choices, with_usage=body.wants_usage, prompts=len(prompts)
        )
        return await respond(request, begins, writer, stream=body.stream, headers=route_headers(way))

    return router


@dataclass(frozen=True)
class PlannedAnswer:
    """What a conversation comes to: its answer's form, who answers, from which passages, and the runs to begin."""

    form: Form
    way: Route
    grounded: Grounded | None
    begins: list[Begin]


async def planned(
    engine: ServedEngine, retriever: Retriever | None, metrics: Metrics, body: ChatRequest
) -> PlannedAnswer:
    """Everything about a conversation that can be found wrong before the engine is asked. Raises SlmError."""
    form = await asyncio.to_thread(form_of, body)
    sampling = body.sampling(grammar=form.grammar, grammar_field=form.field, logprobs=body.scores)
    messages = body.conversation()
    template = TemplateOptions(
        form.tools, body.add_generation_prompt is not False, body.continues, body.template_variables
    )
    lora = _lora(engine, body.lora)
    way = await asyncio.to_thread(engine.route, body.model, messages, lora=lora)
    grounded = await asyncio.to_thread(_grounded, retriever, messages, body) if body.rag is not False else None
    # Earlier turns are not read again, but what the model is told about every answer holds for this one.
    told = [message for message in messages if message["role"] == "system"]
    asked = [*told, *grounded.messages] if grounded else messages

    def begin(number: int) -> Begin:
        options = replace(sampling, seed=sampling.seed + number)

        def start(sink: Sink) -> Ticket:
            return engine.begin_chat(
                asked,
                sink,
                adapter=way.adapter,
                lora=lora,
                template=template,
                sampling=options,
                fit=body.limit is None,
            )

        return start

    return PlannedAnswer(form, way, grounded, [metrics.measured(begin(n), way.adapter) for n in range(body.n)])


def answer_of(engine: ServedEngine, way: Route, form: Form, *, chat: bool) -> Completion:
    """The objects around a request's choices."""
    model = way.adapter or engine.base.name
    return Completion(
        chat=chat, model=model, adapter=way.adapter, reason=way.reason, not_enforced=form.not_enforced
    )  # fmt: skip


def _grounded(retriever: Retriever | None, messages: Sequence[Message], body: ChatRequest) -> Grounded:
    """The last question with its passages."""
    if retriever is None:
        raise UnsupportedError("rag: this server has no index", hint="Start it with --rag INDEX.")
    check_one_text(body)
    return retriever.grounded(question_of(messages), filters=body.filters)


def _lora(engine: ServedEngine, asked: Sequence[LoraScale] | None) -> list[tuple[str, float]] | None:
    """The engine's `lora` argument for a request's own set of adapters. Raises InputError."""
    if asked is None:
        return None
    names = [adapter.name for adapter in engine.adapters()]
    for row in asked:
        if row.id >= len(names):
            known = ", ".join(f"{number} ({name})" for number, name in enumerate(names)) or "none"
            raise InputError(f"lora: no adapter has the id {row.id}; known: {known}")
    return [(names[row.id], row.scale) for row in asked]
