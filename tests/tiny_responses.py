"""What the tests of /v1/responses ask: its tools and items, the same of chat, and a writer fed by hand."""

from __future__ import annotations

import json
from typing import Any

import httpx

from serve.server.api.responses.writer import ResponsesWriter
from tests.served import Served
from tests.test_serve_openai_tools import WEATHER

TOOLS: Any = [
    {"type": "function", "name": "weather", "description": "The weather.", "parameters": WEATHER, "strict": True},
    {"type": "function", "name": "clock", "parameters": None, "strict": None},
]
CALL: dict[str, Any] = {
    "type": "function_call",
    "call_id": "call_1",
    "name": "weather",
    "arguments": '{"city": "京都"}',
}
RESULT: dict[str, Any] = {"type": "function_call_output", "call_id": "call_1", "output": "Rain."}


def ask(served: Served, body: dict[str, Any], **options: Any) -> httpx.Response:
    return served.post("/v1/responses", {"model": "en", "max_output_tokens": 6, "temperature": 0, **body}, **options)


def chatted(served: Served, messages: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    body = {"model": "en", "max_tokens": 6, "temperature": 0, "messages": messages, **fields}
    return dict(served.post("/v1/chat/completions", body).json())


def take_all(writer: ResponsesWriter, pieces: list[Any]) -> list[dict[str, Any]]:
    return [json.loads(json.dumps(event)) for piece in pieces for event in writer.take(0, piece)]
