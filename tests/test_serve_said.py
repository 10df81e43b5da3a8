"""What the server says to requests of other servers' shapes: other paths, other encodings, other names of fields."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.served import HELLO, Served, chat, error_of, served

__all__ = ["served"]  # a fixture


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/chat/completions", "/v1/chat/completions"), ("/responses", "/v1/responses"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"), ("/v1/messages", "/v1/chat/completions"),
        ("/api/chat", "/v1/chat/completions"), ("/api/v1/chat/completions", "/v1/chat/completions"),
        ("/api/generate", "/v1/completions"), ("/embeddings", "/v1/embeddings"), ("/v1/tokenize", "/tokenize"),
        ("/v1/chat/completion", "/v1/chat/completions"), ("/completion", "/v1/completions"),
    ],
)  # fmt: skip
def test_a_path_of_another_server_names_the_one_that_is_meant(served: Served, path: str, meant: str) -> None:
    reply = served.post(path, {})
    error = error_of(reply)
    assert reply.status_code == 404 and error["code"] == "http_404"
    assert f"nothing at {path}. Did you mean {meant}? /docs lists" in error["message"]


def test_a_path_like_no_other_names_none(served: Served) -> None:
    message = error_of(httpx.get(f"{served.url}/{'x' * 300}"))["message"]
    assert "Did you mean" not in message and "/docs" in message and len(message) < 200


def sent(served: Served, content: bytes) -> httpx.Response:
    url = f"{served.url}/v1/chat/completions"
    return httpx.post(url, content=content, headers={"content-type": "application/json"}, timeout=60)


def test_a_mark_of_utf8_before_a_body_is_taken(served: Served) -> None:
    body = json.dumps({"messages": HELLO, "max_tokens": 1})
    assert sent(served, body.encode("utf-8-sig")).status_code == 200


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_a_body_of_wider_characters_is_told_to_be_utf8(served: Served, encoding: str) -> None:
    reply = sent(served, json.dumps({"messages": HELLO}).encode(encoding))
    assert reply.status_code == 400 and "Send UTF-8" in error_of(reply)["message"]


def tools(*names: str, **parameters: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": name, **parameters}} for name in names]


@pytest.mark.parametrize(
    ("given", "place", "said"),
    [
        (tools("a", "get weather"), "tools[1].function.name", "has to be 1 to 64 of the letters"),
        (tools("x" * 65), "tools[0].function.name", "has to be 1 to 64 of the letters"),
        (tools(*(f"f{n}" for n in range(129))), "tools", "holds 129; at most 128 are taken"),
        (tools("a\n"), "tools[0].function.name", "has to be 1 to 64"),
    ],
)
def test_a_tool_that_cannot_be_is_told_in_our_own_words(served: Served, given: Any, place: str, said: str) -> None:
    error = error_of(served.post("/v1/chat/completions", chat("Hello", tools=given)))
    assert error["param"] == place and error["message"].startswith(f"{place}: {said}")


@pytest.mark.parametrize("kind", ["dict", "OBJECT", ["dict"]])
def test_a_type_that_is_none_is_told_at_the_top_as_well(served: Served, kind: Any) -> None:
    given = tools("look", parameters={"type": kind, "properties": {}})
    reply = served.post("/v1/chat/completions", chat("Hello", model="en", tools=given, max_tokens=4))
    assert reply.json()["slm"]["not_enforced"] == ["tools[0] (look): 'type' at '/'"]


def test_a_response_names_its_own_field_for_the_form(served: Served) -> None:
    form = {"type": "json_schema", "name": "x", "schema": {"type": "array", "uniqueItems": True}}
    loose = served.post("/v1/responses", {"input": "Hello", "text": {"format": form}, "max_output_tokens": 3})
    assert loose.json()["slm"]["not_enforced"] == ["text.format: 'uniqueItems' at '/'"]
    error = error_of(served.post("/v1/responses", {"input": "Hello", "text": {"format": {**form, "strict": True}}}))
    assert error["message"].startswith("text.format: ")
