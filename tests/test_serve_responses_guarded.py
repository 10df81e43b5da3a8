"""What /v1/responses refuses, by name and place; keys, limits, counts and cancelling are as for chat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi.exceptions import RequestValidationError

from serve.server.api.answer.objects import Choice
from serve.server.api.responses.request import ResponsesRequest
from serve.server.api.responses.writer import ResponsesWriter
from serve.server.guard import Keys, Limits, Policy
from slm.errors import EngineDiedError
from tests.served import Served, error_of, guarded, served, standing_still
from tests.tiny_gguf import letter
from tests.tiny_responses import TOOLS, ask, take_all
from tests.waiting import eventually

__all__ = ["served"]  # a fixture


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"conversation": {"id": "conv_1"}}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"messages": [{"role": "user", "content": "x"}]}, "Here it is: input"),
        ({"max_tokens": 3}, "max_output_tokens"),
        ({"response_format": {"type": "json_object"}}, "text.format"),
        ({"n": 2}, "n: "),
        ({"rag": True}, "rag"),
        ({"input": None}, "input: is missing"),
        ({"input": 5}, "input: has to be a text or a list of items (found: int)"),
        ({"input": ["x"]}, "input[0]: has to be an object"),
        ({"input": []}, "conversation is empty"),
        ({"include": ["everything"]}, "'everything' is not known"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]: this server runs no tools of its own"),
        ({"tools": [TOOLS[0], {"type": "custom", "name": "x"}]}, "tools[1]"),
        ({"tools": [{"type": "function", "function": {"name": "x"}}]}, "stand beside type"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "name: "),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": 5}, "tool_choice: has to be none, auto, required or an object"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "x"}}, "not among the tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "web_search"}}, "only functions may be called (found: web_search)"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "tools": [{"name": "x"}]}}, "'x' is allowed"),
        ({"tool_choice": "required"}, "needs tools"),
        ({"tools": TOOLS, "tool_choice": "required", "text": {"format": {"type": "json_object"}}}, "text.format: does"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "json_schema": {"schema": {}}}}}, "stand beside type"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"text": {"form": {"type": "text"}}}, "text.form"),
        ({"reasoning": {"budget": 3}}, "reasoning.budget"),
        ({"tools": [{**TOOLS[1], "defer_loading": True}]}, "tools[0].defer_loading"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 9}, "temperature"),
        ({"metadata": {"a": {"b": 1}}}, "metadata"),
        ({"max_output_tokens": 9999}, "context"),
        ({"model": "fr"}, "known: "),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_done_is_refused_by_name(
    served: Served, fields: dict[str, Any], reason: str, stream: bool
) -> None:
    reply = ask(served, {"input": "Hello", "stream": stream, **fields})
    assert reply.status_code == (404 if "model" in fields else 400), reply.text
    error = error_of(reply)
    assert reason in error["message"]
    places = {"model": "model", "max_output_tokens": "input"} if error["code"].endswith(("found", "exceeded")) else {}
    assert error["param"] == places.get(next(iter(fields)), error["message"].partition(": ")[0]), error


def test_a_fault_that_chat_finds_has_its_place_here() -> None:
    tools = [{"type": "function", "name": "ok"}, {"type": "function", "name": "a b"}]
    with pytest.raises(RequestValidationError) as refused:
        ResponsesRequest.model_validate({"input": "x", "tools": tools}).chat()
    assert [row["loc"] for row in refused.value.errors()] == [("tools", 1, "name")]


def test_what_has_no_effect_on_the_answer_is_taken(served: Served) -> None:
    plain = ask(served, {"input": "Hello"}).json()
    fields = {
        "store": True, "user": "u", "safety_identifier": "s", "prompt_cache_key": "k", "service_tier": "auto",
        "background": False, "previous_response_id": None, "conversation": None, "truncation": "disabled",
        "include": ["reasoning.encrypted_content"], "metadata": {}, "parallel_tool_calls": True, "n": 1, "tools": [],
        "tool_choice": "auto", "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "reasoning": {"summary": "auto"}, "max_tool_calls": 3,
        "prompt_cache_retention": "24h", "stream_options": {"include_obfuscation": False},
    }  # fmt: skip
    reply = ask(served, {"input": "Hello", **fields})
    assert reply.status_code == 200, reply.text
    assert reply.json()["output"][0]["content"] == plain["output"][0]["content"]
    assert reply.json()["prompt_cache_key"] == "k" and reply.json()["store"] is False


def test_fields_of_ours_work_here_too(served: Served) -> None:
    only = ask(served, {"input": "Hello", "logit_bias": {str(letter("a")): 100}}).json()
    assert only["output"][0]["content"][0]["text"] == "aaaaaa"
    scaled = ask(served, {"input": "Hello", "lora": [{"id": 1, "scale": 1.0}]})
    assert scaled.headers["x-slm-adapter"] == "ja" and scaled.json()["model"] == "ja"
    japanese = ask(served, {"input": [{"role": "user", "content": "休暇は?"}], "model": "auto"}).json()
    assert japanese["slm"]["adapter"] == "ja"


def test_nothing_is_stored_and_the_paths_of_stored_answers_say_so(served: Served) -> None:
    for ask_for in (served.client.responses.retrieve, served.client.responses.delete):
        with pytest.raises(openai.NotFoundError, match="stores no responses"):
            ask_for("resp_1")


# --- the same guard as chat -------------------------------------------------------------------------------------


def test_keys_limits_queue_and_counts_hold_as_for_chat(served: Served, tmp_path: Path) -> None:
    policy = Policy(keys=Keys(["k"]), limits=Limits(queue=1, prompt_characters=100))
    with guarded(served.engine, tmp_path, policy) as server:
        assert ask(server, {"input": "x"}).status_code == 401
        key: dict[str, Any] = {"headers": {"authorization": "Bearer k"}}
        assert ask(server, {"input": "x"}, **key).status_code == 200
        items = [{"role": "user", "content": "x" * 30}] * 4
        long = ask(server, {"input": items}, **key)
        assert long.status_code == 400 and error_of(long)["code"] == "context_length_exceeded"
        body = {"model": "en", "input": "x", "max_output_tokens": 500, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/responses", json=body, timeout=60, **key) as stream:
            lines = stream.iter_lines()
            assert next(lines) == "event: response.created"
            with standing_still(served.engine):
                assert ask(server, {"input": "x"}, **key).status_code == 429
        counts = httpx.get(f"{server.url}/metrics", **key).text
        assert 'slm_http_responses_total{route="/v1/responses",status="200"}' in counts
        assert 'slm_requests_total{adapter="en",outcome="ok"} 1.0' in counts


def test_a_client_that_leaves_cancels_its_answer(served: Served) -> None:
    body = {"model": "en", "input": "x", "max_output_tokens": 1500, "stream": True}
    with httpx.stream("POST", f"{served.url}/v1/responses", json=body, timeout=60) as stream:
        assert next(stream.iter_lines()) == "event: response.created"
    assert eventually(lambda: served.engine.stats().running == 0, 5)


def test_an_error_after_the_start_is_told_and_raised() -> None:
    writer = ResponsesWriter({"model": "en"}, Choice(0, chat=True))
    list(writer.opening())
    take_all(writer, ["日本"])
    failed, error = [json.loads(json.dumps(event)) for event in writer.failed(EngineDiedError("the engine ended"))]
    assert failed["type"] == "response.failed" and failed["response"]["status"] == "failed"
    assert failed["response"]["error"] == {"code": "server_error", "message": "the engine ended"}
    assert failed["response"]["output"][0]["status"] == "incomplete"
    assert failed["response"]["output"][0]["content"][0]["text"] == "日本"
    assert error["type"] == "error" and error["code"] == "engine_died"
    assert error["sequence_number"] == failed["sequence_number"] + 1
    reply = httpx.Response(
        200, text=writer.frame(failed) + writer.frame(error), request=httpx.Request("POST", "http://x")
    )
    transport = httpx.MockTransport(lambda _: reply)
    http: Any = httpx.Client(transport=transport)
    client = openai.OpenAI(api_key="x", base_url="http://x", http_client=http)
    seen = []
    with pytest.raises(openai.APIError, match="the engine ended"):
        for event in client.responses.create(model="en", input="x", stream=True):
            seen.append(event.type)
    assert seen == ["response.failed"]


def test_the_path_is_in_the_api_description(served: Served) -> None:
    described = httpx.get(f"{served.url}/openapi.json").json()
    assert "/v1/responses" in described["paths"] and "ResponsesRequest" in described["components"]["schemas"]
    assert "/v1/responses" in httpx.get(f"{served.url}/docs").text
