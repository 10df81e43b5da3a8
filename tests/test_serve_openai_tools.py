"""Answers of a demanded form and calls of tools, as the official client sees them, on tiny random models."""

from __future__ import annotations

import json
import sys
from typing import Any

import jsonschema_rs
import pytest
from pydantic import BaseModel

from serve.server.api.answer.calls import CallStream
from slm.chat.prompt import render
from slm.chat.tools import call_text
from tests.served import HELLO, Served, error_of, served
from tests.tiny_gguf import letter

__all__ = ["served"]  # a fixture

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
    return {"response_format": {"type": "json_schema", "json_schema": {"strict": True, "schema": schema}}}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema: is missing"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        (schema_of({"if": {}, "then": {"type": "null"}}), "'if' at '/', 'then' at '/'"),
        (schema_of({"properties": {"a/b": {"$ref": "http://x/y"}}}), "'$ref' at '/properties/a~1b'"),
        (schema_of(False), "false at '/'"),
        (schema_of({"pattern": "(?=a)", "type": "string"}), "'pattern' at '/'"),
        ({"response_format": {"type": "json_object"}, "stop": "}"}, "stop: does not go with"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": TOOLS[:1] * 2}, "two tools have the same name"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "not among the tools"),
        ({"tool_choice": "required"}, "needs tools"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}]}, "tool 'a'"),
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
    error = error_of(reply)
    assert reason in error["message"] and error["param"] == error["message"].partition(": ")[0], error
    assert served.chat("Hello", model="en").status_code == 200


FORMS: list[tuple[str, Any]] = [
    ("guided_choice", ["a", "b"]), ("guided_regex", "a"), ("guided_json", WEATHER), ("guided_grammar", 'root ::= "a"'),
    ("grammar", 'root ::= "a"'), ("json_schema", WEATHER), ("response_format", {"type": "json_object"}),
    ("structured_outputs.choice", ["a"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), FORMS)
@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "function": {"name": "clock"}},
        {"type": "allowed_tools", "mode": "required", "tools": [TOOLS[1]]},
    ],
)
def test_a_form_beside_a_demanded_call_is_refused_by_name(served: Served, name: str, value: Any, choice: Any) -> None:
    field, _, inner = name.partition(".")
    fields = {field: {inner: value} if inner else value}
    error = error_of(reply := served.chat("Hello", model="en", tools=TOOLS, tool_choice=choice, **fields))
    assert reply.status_code == 400 and error["param"] == name and "demands a call" in error["message"]
    assert served.chat("Hello", tools=TOOLS, tool_choice=choice, response_format={"type": "text"}).status_code == 200


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
        "{% if tools %}T:{% for t in tools %}{{ t.function.name }};{% endfor %}{% endif %}{% for m in messages %}"
        "{{ m.role }}:{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}"
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
    assert text == (
        'T:weather;clock;user:<hi>;assistant:<tool_call>{"name": "weather", "arguments": {"city": "<京都>"}};'
        "tool:Rain.;user:And?;"
    )
    plain = render("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}", turns, tools=TOOLS)
    assert [line.split()[0] for line in plain.splitlines() if line.startswith("[")] == [
        "[system]", "[user]", "[assistant]", "[user]",
    ]  # fmt: skip
    assert '"name": "clock"' in plain and call_text("weather", {"city": "<京都>"}) in plain
    assert "<tool_response>\nRain.\n</tool_response>\nAnd?" in plain


def test_calls_are_found_however_the_text_is_cut() -> None:
    text = "Let me see.\n" + call_text("weather", '{"city": "}", "days": 1}') + "\n" + call_text("clock", {})
    for size in range(1, 40):
        stream, content = CallStream(), ""
        arguments: dict[int, str] = {}
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


def test_a_marker_that_the_end_cuts_is_no_text() -> None:
    call = call_text("weather", '{"city": {"x": "}"}}')
    for size in range(1, len(call) + 1):
        for said in ("", "Let me see. "):
            stream = CallStream()
            deltas = stream.feed(said + call[:size]) + stream.flush(cut=True)
            assert "".join(delta.get("content", "") for delta in deltas) == said
            for told in stream.calls:
                assert '{"city": {"x": "}"}}'.startswith(told.arguments)
    for text in ("1 < 2", "a <toolbox", "<tool_calx", "\n "):
        stream = CallStream()
        assert "".join(delta["content"] for delta in stream.feed(text) + stream.flush(cut=True)) == text
    ended = CallStream()
    assert ended.feed("1 <") + ended.flush() == [{"content": "1 "}, {"content": "<"}]


@pytest.mark.parametrize("size", [1, 6, 11, 15])
def test_a_demanded_call_that_is_cut_before_its_name_says_nothing(served: Served, size: int) -> None:
    asked: dict[str, Any] = {"model": "en", "max_tokens": size, "tools": TOOLS, "tool_choice": "required"}
    whole = served.chat("Hello", **asked).json()["choices"][0]
    assert whole["finish_reason"] == "length" and not whole["message"]["content"]
    streamed = served.client.chat.completions.create(messages=HELLO, stream=True, **asked)
    assert not any(event.choices[0].delta.content for event in streamed)
    answer = {"model": "en", "input": "Hello", "max_output_tokens": size, "tool_choice": "required"}
    tools = [{"type": "function", **tool["function"]} for tool in TOOLS]
    body = served.post("/v1/responses", {**answer, "tools": tools}).json()
    assert body["status"] == "incomplete" and [part["text"] for part in body["output"][0]["content"]] == [""]
