"""OpenAI's surface as the official client and llama-server's own shapes see it, on tiny random models built here."""

from __future__ import annotations

import base64
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import openai
import pytest
from pydantic import BaseModel

from serve.engine import open_engine
from serve.server.api.calls import CallStream
from slm.prompt import render
from slm.tools import call_text
from tests.test_serve_http import Served, error_of, running
from tests.tiny_gguf import BOS, letter, write_adapter, write_model

HELLO: Any = [{"role": "user", "content": "Hello"}]
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "clock"}},
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("openai")
    model = write_model(folder / "tiny.gguf")
    adapters = {"en": write_adapter(folder / "en.gguf", seed=1), "ja": write_adapter(folder / "ja.gguf", seed=2)}
    with open_engine(model, adapters, threads=1, parallel=4) as engine, running(engine, folder) as server:
        yield server


def valid(text: str, schema: Any) -> None:
    """Raise unless the text is JSON that the schema allows. A number beyond the doubles is valid JSON all the same."""
    limit = sys.float_info.max
    jsonschema_rs.validate(schema, json.loads(text, parse_float=lambda digits: max(-limit, min(float(digits), limit))))


# --- answers of a form ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_a_json_schema_is_followed_at_any_temperature(served: Served, seed: int) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "tags": {"type": "array", "items": {"enum": ["x", "y"]}, "maxItems": 3},
            "size": {"type": ["number", "null"]},
        },
        "required": ["name", "tags"],
        "additionalProperties": False,
    }
    asked: Any = {"type": "json_schema", "json_schema": {"name": "thing", "strict": True, "schema": schema}}
    done = served.client.chat.completions.create(
        model="en", messages=HELLO, temperature=2, seed=seed, max_tokens=400, response_format=asked
    )
    assert done.choices[0].finish_reason in ("stop", "length")
    if done.choices[0].finish_reason == "stop":
        valid(str(done.choices[0].message.content), schema)


def test_the_clients_own_parser_gets_its_model(served: Served) -> None:
    class Point(BaseModel):
        label: bool
        kind: list[bool]

    done = served.client.chat.completions.parse(
        model="ja", messages=HELLO, temperature=1, seed=3, max_tokens=200, response_format=Point
    )
    assert isinstance(done.choices[0].message.parsed, Point)


def test_json_object_is_an_object_streamed_as_whole(served: Served) -> None:
    asked: dict[str, Any] = {
        "model": "en", "messages": HELLO, "max_tokens": 300, "seed": 5, "temperature": 1.5,
        "logit_bias": {letter("}"): 12, letter(":"): 4, letter('"'): 6, letter("1"): 6},
        "response_format": {"type": "json_object"},
    }  # fmt: skip
    whole = served.client.chat.completions.create(**asked).choices[0]
    assert whole.finish_reason == "stop"
    assert isinstance(json.loads(str(whole.message.content)), dict)
    events = list(served.client.chat.completions.create(**asked, stream=True))
    assert isinstance(json.loads("".join(e.choices[0].delta.content or "" for e in events)), dict)


def test_what_the_limit_cuts_is_said_to_be_cut(served: Served) -> None:
    schema = {"const": {"a": "long enough"}}
    asked: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for limit in (3, 100):
        done = served.client.chat.completions.create(
            model="en", messages=HELLO, max_tokens=limit, temperature=2, response_format=asked
        ).choices[0]
        assert done.finish_reason == ("length" if limit == 3 else "stop")
    valid(str(done.message.content), schema)


def schema_of(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"response_format": {"type": "json_schema"}}, "needs the field json_schema"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        (schema_of({"if": {}}), 'Unimplemented keys: ["if"]'),
        (schema_of({"$ref": "http://x/y"}), "cannot be followed"),
        (schema_of(False), "Unsatisfiable"),
        (schema_of({"pattern": "(?=a)", "type": "string"}), "look-ahead"),
        ({"response_format": {"type": "json_object"}, "stop": "}"}, "stop strings do not go with"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": TOOLS[:1] * 2}, "two tools have the same name"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "not among the tools"),
        ({"tool_choice": "required"}, "needs tools"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"not": {}}}}]}, '["not"]'),
        ({"top_logprobs": 3}, "needs logprobs"),
        ({"logit_bias": {"99999": 1}}, "99999 is no token id"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"n": 0}, "n:"),
        ({"lora": [{"id": 7, "scale": 1}]}, "known: 0 (en), 1 (ja)"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_a_400_that_says_why(served: Served, fields: dict[str, Any], reason: str) -> None:
    reply = served.chat("Hello", model="en", **fields)
    assert reply.status_code == 400, reply.text
    assert reason in error_of(reply)["message"]
    assert served.chat("Hello", model="en").status_code == 200


# --- tools ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
@pytest.mark.parametrize("parallel", [True, False])
def test_a_demanded_call_is_a_valid_call(served: Served, choice: Any, parallel: bool) -> None:
    finished = 0
    for seed in range(6):
        done = served.client.chat.completions.create(
            model="en", messages=HELLO, temperature=2, seed=seed, max_tokens=300, tools=TOOLS, tool_choice=choice,
            parallel_tool_calls=parallel,
        ).choices[0]  # fmt: skip
        assert done.finish_reason in ("tool_calls", "length")
        if done.finish_reason == "length":
            continue
        finished += 1
        calls: Any = done.message.tool_calls
        assert done.message.content is None and calls
        if not parallel or choice != "required":
            assert len(calls) == 1
        for call in calls:
            assert call.id.startswith("call_")
            if call.function.name == "weather":
                valid(call.function.arguments, WEATHER)
            else:
                assert choice == "required" and call.function.name == "clock"
                assert json.loads(call.function.arguments) == {}
    assert finished >= 3


def test_streamed_calls_add_up_to_the_whole_ones(served: Served) -> None:
    asked: dict[str, Any] = {
        "model": "en", "messages": HELLO, "temperature": 2, "max_tokens": 300, "tools": TOOLS,
        "tool_choice": "required", "parallel_tool_calls": False,
    }  # fmt: skip
    for seed in range(4):
        names, arguments, reasons, deltas = [], "", [], 0
        for event in served.client.chat.completions.create(**asked, seed=seed, stream=True):
            choice = event.choices[0]
            reasons.append(choice.finish_reason)
            for call in choice.delta.tool_calls or []:
                assert call.index == 0 and call.function is not None
                names += [call.function.name] if call.function.name else []
                arguments += call.function.arguments or ""
                deltas += 1
        assert reasons[-1] == "tool_calls" and len(names) == 1
        valid(arguments, WEATHER if names == ["weather"] else {"const": {}})
        assert deltas > (3 if names == ["weather"] else 1)


def test_auto_may_talk_and_none_must(served: Served) -> None:
    said = served.client.chat.completions.create(
        model="en", messages=HELLO, temperature=0, max_tokens=12, tools=TOOLS, tool_choice="auto"
    ).choices[0]
    assert said.finish_reason == "length" and said.message.tool_calls is None
    assert len(str(said.message.content)) == 12
    plain = served.chat("Hello", model="en", max_tokens=12).json()["choices"][0]
    none = served.chat("Hello", model="en", max_tokens=12, tools=TOOLS, tool_choice="none").json()["choices"][0]
    assert none["message"] == plain["message"], "with none the model does not even read of the tools"


def test_calls_and_results_in_the_history_reach_the_model(served: Served) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Kyoto"}'}}
    turns: Any = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call, {**call, "id": "call_2"}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Rain."},
        {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "Sun."}]},
    ]
    done = served.client.chat.completions.create(model="en", messages=turns, max_tokens=3, tools=TOOLS, temperature=0)
    assert done.usage is not None
    short = served.client.chat.completions.create(model="en", messages=turns[:1], max_tokens=3, temperature=0)
    assert short.usage is not None and done.usage.prompt_tokens > short.usage.prompt_tokens + 400


def test_a_template_that_knows_tools_gets_them_and_another_gets_text() -> None:
    own = (
        "{% if tools %}T:{{ tools | length }}{{ tools[0].function.name }};{% endif %}{% for m in messages %}"
        "{{ m.role }}:{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.arguments | tojson }}"
        "{% endfor %};{% endfor %}"
    )
    turns: Any = [
        {"role": "user", "content": "<hi>"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function", "function": {
            "name": "weather", "arguments": {"city": "<京都>"}}}]},
        {"role": "tool", "tool_call_id": "1", "content": "Rain."},
        {"role": "user", "content": "And?"},
    ]  # fmt: skip
    text = render(own, turns, tools=TOOLS)
    assert text == 'T:2weather;user:<hi>;assistant:<tool_call>{"city": "<京都>"};tool:Rain.;user:And?;'
    plain = render("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}", turns, tools=TOOLS)
    assert [line.split()[0] for line in plain.splitlines() if line.startswith("[")] == [
        "[system]", "[user]", "[assistant]", "[user]",
    ]  # fmt: skip
    assert '"name": "clock"' in plain and call_text("weather", {"city": "<京都>"}) in plain
    assert "<tool_response>\nRain.\n</tool_response>\nAnd?" in plain


def test_calls_are_found_however_the_text_is_cut() -> None:
    text = "Let me see.\n" + call_text("weather", '{"city": "}", "days": 1}') + "\n" + call_text("clock", {})
    for size in range(1, 40):
        stream, content, arguments = CallStream(), "", {}
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        deltas = [delta for piece in pieces for delta in stream.feed(piece)] + stream.flush()
        for delta in deltas:
            content += delta.get("content", "")
            for call in delta.get("tool_calls", ()):
                arguments[call["index"]] = arguments.get(call["index"], "") + call["function"]["arguments"]
        assert content.strip() == "Let me see."
        assert [(call.name, call.arguments) for call in stream.calls] == [
            ("weather", '{"city": "}", "days": 1}'), ("clock", "{}"),
        ]  # fmt: skip
        assert arguments == {0: stream.calls[0].arguments, 1: "{}"}
    plain = CallStream()
    assert plain.feed("1 <tool") == [{"content": "1 "}] and plain.flush() == [{"content": "<tool"}]


# --- several answers, scores, penalties -------------------------------------------------------------------------


def test_n_answers_are_those_of_n_seeds(served: Served) -> None:
    asked: dict[str, Any] = {"model": "en", "messages": HELLO, "temperature": 1.3, "max_tokens": 10}
    alone = [served.client.chat.completions.create(**asked, seed=40 + n).choices[0].message.content for n in range(3)]
    done = served.client.chat.completions.create(**asked, seed=40, n=3)
    assert [choice.index for choice in done.choices] == [0, 1, 2]
    assert [choice.message.content for choice in done.choices] == alone and len(set(alone)) == 3
    assert done.usage is not None and done.usage.completion_tokens == 30
    texts = ["", "", ""]
    *events, last = served.client.chat.completions.create(
        **asked, seed=40, n=3, stream=True, stream_options={"include_usage": True}
    )
    for event in events:
        for choice in event.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == alone
    assert last.usage is not None and last.usage.completion_tokens == 30
    assert last.usage.prompt_tokens == done.usage.prompt_tokens


def test_logprobs_are_of_the_tokens_that_were_said(served: Served) -> None:
    asked: dict[str, Any] = {"model": "en", "messages": HELLO, "temperature": 0, "max_tokens": 6}
    done = served.client.chat.completions.create(**asked, logprobs=True, top_logprobs=3).choices[0]
    assert done.logprobs is not None and done.logprobs.content is not None
    rows = done.logprobs.content
    assert "".join(row.token for row in rows) == done.message.content
    for row in rows:
        assert row.bytes == list(row.token.encode())
        assert row.top_logprobs[0].token == row.token and row.top_logprobs[0].logprob == row.logprob <= 0
        values = [top.logprob for top in row.top_logprobs]
        assert len(values) == 3 and values == sorted(values, reverse=True)
    events = served.client.chat.completions.create(**asked, logprobs=True, stream=True)
    streamed = [row.logprob for e in events if e.choices[0].logprobs for row in e.choices[0].logprobs.content or []]
    assert streamed == pytest.approx([row.logprob for row in rows], abs=1e-3)
    assert served.client.chat.completions.create(**asked).choices[0].logprobs is None


def test_completions_have_their_own_shape_of_logprobs(served: Served) -> None:
    done = served.client.completions.create(model="base", prompt="Once", max_tokens=5, temperature=0, logprobs=2)
    scores: Any = done.choices[0].logprobs
    assert "".join(scores.tokens) == done.choices[0].text
    assert scores.text_offset == [0, 1, 2, 3, 4]
    assert [max(top.values()) for top in scores.top_logprobs] == scores.token_logprobs
    assert all(len(top) == 2 for top in scores.top_logprobs)


def test_penalties_and_biases_change_the_answer(served: Served) -> None:
    only = {letter("a"): 100, letter("b"): 98.5}
    texts = {
        name: served.chat("Hello", model="base", max_tokens=8, **fields).json()["choices"][0]["message"]["content"]
        for name, fields in {
            "bias": {"logit_bias": {str(letter("a")): 100}},
            "presence": {"logit_bias": {str(k): v for k, v in only.items()}, "presence_penalty": 2},
            "frequency": {"logit_bias": {str(k): v for k, v in only.items()}, "frequency_penalty": 2},
        }.items()
    }
    assert texts["bias"] == "a" * 8
    assert set(texts["presence"]) | set(texts["frequency"]) <= {"a", "b"}
    assert set(texts["frequency"]) == {"a", "b"}


# --- completions, embeddings, tokens ----------------------------------------------------------------------------


def test_prompts_may_be_many_and_may_be_tokens(served: Served) -> None:
    asked: dict[str, Any] = {"model": "base", "max_tokens": 5, "temperature": 0}
    ids = [BOS, letter("O"), letter("n")]
    text = served.client.completions.create(**asked, prompt="On").choices[0].text
    served.client.completions.create(**asked, prompt=["On", "Or"])  # the two below then find the same cache
    many = served.client.completions.create(**asked, prompt=["On", "Or"], n=2)
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    assert many.choices[0].text == many.choices[1].text == text != many.choices[2].text
    assert many.usage is not None and many.usage.prompt_tokens == 6 and many.usage.completion_tokens == 20
    tokens = served.client.completions.create(**asked, prompt=ids)
    assert tokens.choices[0].text == text
    assert tokens.usage is not None and tokens.usage.prompt_tokens == 3
    for bad in ([10**6], [-1], [[]], [[1], ["x"]], [], ["x"] * 129, {"a": 1}):
        assert served.post("/v1/completions", {**asked, "prompt": bad}).status_code == 400, bad


@pytest.mark.parametrize("field", [{"echo": True}, {"suffix": "x"}, {"best_of": 2}])
def test_what_completions_cannot_do_is_refused_by_name(served: Served, field: dict[str, Any]) -> None:
    reply = served.post("/v1/completions", {"model": "base", "prompt": "x", "max_tokens": 1, **field})
    assert reply.status_code == 400 and next(iter(field)) in error_of(reply)["message"]
    allowed = {"echo": False, "suffix": None, "best_of": 1}
    assert served.post("/v1/completions", {"model": "base", "prompt": "x", "max_tokens": 1, **allowed}).is_success


def test_embeddings_come_as_floats_and_as_base64(served: Served) -> None:
    done = served.client.embeddings.create(model="tiny", input=["cat", "dog", "cat"])
    vectors = [row.embedding for row in done.data]
    assert [row.index for row in done.data] == [0, 1, 2]
    assert vectors[0] == vectors[2] != vectors[1]
    assert sum(value * value for value in vectors[0]) == pytest.approx(1, abs=1e-5)
    assert done.usage.prompt_tokens == 12
    body = {"model": "base", "input": "cat"}
    floats = served.post("/v1/embeddings", body).json()["data"][0]["embedding"]
    raw = served.post("/v1/embeddings", {**body, "encoding_format": "base64"}).json()["data"][0]["embedding"]
    assert struct.unpack(f"<{len(floats)}f", base64.b64decode(raw)) == pytest.approx(floats, abs=1e-7)
    assert served.post("/v1/embeddings", {**body, "dimensions": len(floats)}).is_success
    for bad in ({"dimensions": 3}, {"input": []}, {"input": [1, 2]}, {"input": ""}, {"input": "x" * 3000}):
        assert served.post("/v1/embeddings", {**body, **bad}).status_code == 400, bad
    assert served.post("/v1/embeddings", {**body, "model": "en"}).status_code == 404


def test_tokens_go_there_and_back(served: Served) -> None:
    tokens = served.post("/tokenize", {"content": "Hi 日本", "add_special": True}).json()["tokens"]
    assert tokens[:3] == [BOS, letter("H"), letter("i")]
    assert served.post("/detokenize", {"tokens": tokens[1:]}).json() == {"content": "Hi 日本"}
    assert served.post("/detokenize", {"tokens": [10**6]}).status_code == 400


def test_the_servers_state_has_llama_servers_shape(served: Served) -> None:
    props = httpx.get(f"{served.url}/props").json()
    assert props["default_generation_settings"]["n_ctx"] == 2048 and props["total_slots"] == 4
    slots = httpx.get(f"{served.url}/slots").json()
    assert [slot["id"] for slot in slots] == [0, 1, 2, 3]
    assert not any(slot["is_processing"] for slot in slots)
    assert served.client.models.retrieve("ja").id == "ja"
    assert served.client.models.retrieve("base").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="known: en, ja, tiny"):
        served.client.models.retrieve("fr")


# --- hostile input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "{{ 'x' * 10**11 }}",
    "{{ raise_exception('only cats') }}", "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{% for",
])  # fmt: skip
def test_a_hostile_template_is_a_400_and_the_server_lives(served: Served, tmp_path: Path, template: str) -> None:
    served.engine.load_adapter("hostile", write_adapter(tmp_path / "hostile.gguf", template=template))
    try:
        reply = served.chat("Hello", model="hostile")
        assert reply.status_code == 400
        assert "chat template" in error_of(reply)["message"]
        assert served.chat("Hello", model="en").status_code == 200
    finally:
        served.engine.unload_adapter("hostile")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="schemathesis needs Python 3.11")
def test_no_request_that_the_schema_allows_or_forbids_is_a_500(tmp_path: Path) -> None:
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis import GenerationMode

    model = write_model(tmp_path / "small.gguf")
    adapters = {"en": write_adapter(tmp_path / "en.gguf")}
    seen: dict[str, int] = {}
    with open_engine(model, adapters, threads=1, context=64) as engine, running(engine, tmp_path) as server:
        api = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        for operation in (found.ok() for found in api.get_all_operations()):
            # A GET has nothing that could be sent wrongly.
            for mode in [GenerationMode.POSITIVE] + [GenerationMode.NEGATIVE] * (operation.method.upper() == "POST"):

                @given(case=operation.as_strategy(generation_mode=mode))
                @settings(max_examples=7, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
                          suppress_health_check=list(HealthCheck))  # fmt: skip
                def examine(case: Any) -> None:
                    reply = case.call(timeout=60)
                    seen[case.operation.label] = seen.get(case.operation.label, 0) + 1
                    assert reply.status_code < 500, (case.operation.label, case.body, reply.text)
                    if reply.status_code >= 400 and reply.request.method != "HEAD":
                        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}

                examine()
        assert engine.restarts == 0
    assert {"POST /v1/chat/completions", "POST /v1/completions", "POST /v1/embeddings", "GET /slots"} <= set(seen)
    assert seen["POST /v1/chat/completions"] >= 12
