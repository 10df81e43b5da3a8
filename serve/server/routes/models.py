"""Models, embeddings, tokens and the server's state, as OpenAI and llama-server show them.

It knows nothing of text generation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from serve.child.messages import Embeddings, RunningRow
from serve.engine.served import ServedEngine
from serve.server.api.answer.models import DetokenizeRequest, EmbeddingRequest, TokenizeRequest, embedding_row
from serve.server.api.errors import Json
from serve.server.respond import begun, unless_left
from serve.server.routes.parsed import ParsedRoute
from slm import __version__
from slm.errors import SlmError, UnknownNameError, UnsupportedError
from slm.joints import SamplingOptions

# So many texts are asked of the engine at once; between them other clients' come to their turn.
_TOGETHER = 64


def model_routes(engine: ServedEngine, *, retrieval: bool, reader: str | None = None) -> APIRouter:
    """The paths that tell of the model and use it without generating text.

    retrieval: there is an index. reader: who answers from it.
    """
    router = APIRouter(route_class=ParsedRoute)

    def rows() -> list[dict[str, Any]]:
        return _listed(engine, {"context": engine.context, "retrieval": retrieval, "reader": reader})

    @router.get("/health")
    def health() -> JSONResponse:
        ready = engine.state == "ready"
        body = {"status": "ok" if ready else engine.state, "restarts": engine.restarts}
        return Json(body, 200 if ready else 503)

    @router.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": rows()}

    @router.get("/v1/models/{name:path}")  # a hub id has a slash
    def model(name: str) -> JSONResponse:
        listed = rows()
        if not name:  # the list's own path with a slash behind it
            return Json({"object": "list", "data": listed})
        wanted = engine.base.name if name in ("base", "auto", *engine.base.names) else name
        for row in listed:
            if row["id"] == wanted:
                return Json(row)
        raise UnknownNameError("model or adapter", name, [row["id"] for row in listed])

    @router.post("/v1/embeddings")
    async def embeddings(request: Request, body: EmbeddingRequest) -> JSONResponse:
        if body.model not in ("base", "auto", *engine.base.names):
            raise UnknownNameError("embedding model", body.model, ["base", engine.base.name])
        rows, tokens = await unless_left(request, _embedded(engine, body))
        return Json({
            "object": "list",
            "data": rows,
            "model": engine.base.name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        })  # fmt: skip

    @router.post("/tokenize")
    def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        return {"tokens": engine.tokenize(body.content, add_special=body.add_special)}

    @router.post("/detokenize")
    def detokenize(body: DetokenizeRequest) -> JSONResponse:
        return Json({"content": engine.detokenize(body.tokens)})

    @router.get("/props")
    def props() -> JSONResponse:
        return Json(_properties(engine))

    @router.get("/slots")
    def slots() -> JSONResponse:
        stats = engine.stats()
        names = {adapter.content: adapter.name for adapter in engine.adapters()}
        idle = max(0, stats.parallel - len(stats.rows))
        rows = [slot_row(row, names) for row in stats.rows] + [{"is_processing": False}] * idle
        return Json([{"id": n, "n_ctx": engine.context, "speculative": False, **row} for n, row in enumerate(rows)])

    return router


def _listed(engine: ServedEngine, of_base: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The base and its adapters, as OpenAI lists models."""
    base = engine.base.name
    head = {"id": base, "object": "model", "created": 0, "owned_by": "slm-cpu", "parent": None}
    listed: list[dict[str, Any]] = [{**head, **of_base}]
    for adapter in engine.adapters():
        listed.append({**head, "id": adapter.name, "parent": base, "language": adapter.language})
    return listed


def _properties(engine: ServedEngine) -> dict[str, Any]:
    """The model and what a request is computed with, as llama-server's /props shows them."""
    base, defaults = engine.base, SamplingOptions()
    params = {
        "temperature": 0.7, "top_k": defaults.top_k, "top_p": defaults.top_p, "min_p": defaults.min_p,
        "repeat_penalty": defaults.repeat_penalty, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    }  # fmt: skip
    return {
        "default_generation_settings": {"n_ctx": engine.context, "params": params},
        "total_slots": engine.stats().parallel,
        "model_path": base.path.name,
        "chat_template": base.template or "",
        "bos_token": base.bos,
        "eos_token": base.eos,
        "modalities": {"vision": False, "audio": False},
        "build_info": f"slm-cpu {__version__}",
        "is_sleeping": False,
    }


async def _embedded(engine: ServedEngine, body: EmbeddingRequest) -> tuple[list[dict[str, Any]], int]:
    """The rows of an answer, and how many tokens they are of. Nothing is computed any more once it is cancelled."""
    rows: list[dict[str, Any]] = []
    tokens = 0
    for first in range(0, len(body.inputs), _TOGETHER):
        done = await _vectors(engine, body.inputs[first : first + _TOGETHER], first)
        size = len(done.vectors[0])
        if body.dimensions not in (None, size):
            raise UnsupportedError(f"dimensions: this model's embeddings have {size}", found=str(body.dimensions))
        rows += [embedding_row(first + n, list(vector), body.encoding_format) for n, vector in enumerate(done.vectors)]
        tokens += done.tokens
    return rows, tokens


async def _vectors(engine: ServedEngine, texts: Sequence[str | list[int]], first: int) -> Embeddings:
    loop = asyncio.get_running_loop()
    answers: asyncio.Queue[Embeddings | SlmError] = asyncio.Queue()

    def sink(answer: Embeddings | SlmError) -> None:
        with suppress(RuntimeError):  # the loop is closed when the server is being stopped
            loop.call_soon_threadsafe(answers.put_nowait, answer)

    ticket = await begun(partial(engine.begin_embed, texts, sink, first=first))
    try:
        answer = await answers.get()
    finally:
        ticket.cancel()
    if isinstance(answer, SlmError):
        raise answer
    return answer


def slot_row(row: RunningRow, names: Mapping[str, str]) -> dict[str, Any]:
    """A running request as llama-server's /slots shows it (tools/server/server-context.cpp, `server_slot::to_json`).

    names: of the adapters by content; a replaced one has none.
    """
    read = min(row.cells, row.prompt_tokens)
    lora = [{"name": names.get(content, ""), "scale": scale} for content, scale in row.lora]
    left = row.max_tokens - row.generated
    return {
        "is_processing": True,
        "id_task": row.request,
        "n_prompt_tokens": row.prompt_tokens,
        "n_prompt_tokens_processed": max(0, read - row.cached_tokens),
        "n_prompt_tokens_cache": row.cached_tokens,
        "lora": lora,
        "next_token": [{"has_next_token": left > 0, "n_remain": left, "n_decoded": row.generated}],
    }
