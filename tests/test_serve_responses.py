"""POST /v1/responses as the official client sees it, on tiny random models and a real one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from serve.engine.engine import open_engine
from serve.server.api.answer.objects import Choice
from serve.server.api.responses.input import turns_of
from serve.server.api.responses.writer import ResponsesWriter
from slm.chat.tools import call_text
from slm.errors import InputError
from slm.joints import Finish, Scored, TokenScore
from tests.served import Served, guarded, served
from tests.test_serve_openai_tools import WEATHER, valid
from tests.tiny_gguf import letter, write_model
from tests.tiny_responses import CALL, RESULT, TOOLS, ask, chatted, take_all

__all__ = ["served"]  # a fixture

# --- text -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["Hello", "日本語で答えてください。"])
def test_an_answer_is_chats_streamed_as_whole(served: Served, text: str) -> None:
    chat = chatted(served, [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}])
    asked: Any = {
        "model": "en", "input": text, "instructions": "Be brief.", "temperature": 0, "max_output_tokens": 6,
        "metadata": {"案件": "七"}, "store": True, "user": "u1",
    }  # fmt: skip
    whole = served.client.responses.create(**asked)
    assert whole.output_text == chat["choices"][0]["message"]["content"] and len(whole.output_text) == 6
    assert whole.status == "incomplete" and whole.incomplete_details is not None
    assert whole.incomplete_details.reason == "max_output_tokens" and whole.error is None
    assert whole.model == "en" and whole.instructions == "Be brief." and whole.metadata == {"案件": "七"}
    assert whole.temperature == 0 and whole.user == "u1" and whole.parallel_tool_calls is True
    assert whole.to_dict()["store"] is False, "nothing is stored, whatever was asked"
    usage = whole.usage
    assert usage is not None and usage.output_tokens == 6 and usage.input_tokens == chat["usage"]["prompt_tokens"]
    assert usage.total_tokens == usage.input_tokens + 6 and usage.output_tokens_details.reasoning_tokens == 0
    assert 0 < usage.input_tokens_details.cached_tokens < usage.input_tokens
    events = list(served.client.responses.create(**asked, stream=True))
    last = events[-1]
    assert last.type == "response.incomplete"
    assert last.response.output_text == whole.output_text
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text


def test_every_event_comes_in_order_with_its_place(served: Served) -> None:
    reply = ask(
        served, {"input": "Hello", "stream": True, "max_output_tokens": 3, "logit_bias": {str(letter("a")): 100}}
    )
    assert reply.headers["content-type"].startswith("text/event-stream") and reply.headers["x-slm-adapter"] == "en"
    frames = [frame.split("\n") for frame in reply.text.strip().split("\n\n")]
    assert all(len(lines) == 2 for lines in frames), "no frame but events: a name and its data"
    events = [json.loads(lines[1].removeprefix("data: ")) for lines in frames]
    assert [lines[0] for lines in frames] == [f"event: {event['type']}" for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.delta", "output_text.done", "content_part.done", "output_item.done", "incomplete",
    ]  # fmt: skip
    first, last = events[0]["response"], events[-1]["response"]
    assert first["status"] == "in_progress" and first["output"] == [] and first["usage"] is None
    assert first["id"] == last["id"] and first["id"].startswith("resp_")
    item = last["output"][0]
    assert item["role"] == "assistant" and item["status"] == "incomplete" and item["id"].startswith("msg_")
    assert events[2]["item"] == {**item, "content": [], "status": "in_progress"} and events[9]["item"] == item
    assert events[3]["part"] == {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    assert events[7]["text"] == events[8]["part"]["text"] == item["content"][0]["text"] == "aaa"
    for event in events[3:9]:
        assert (event["item_id"], event["output_index"], event["content_index"]) == (item["id"], 0, 0)
    assert last["usage"]["output_tokens"] == 3


def test_the_clients_own_stream_and_parser_get_their_model(served: Served) -> None:
    class Point(BaseModel):
        label: bool
        kind: list[bool]

    asked: Any = {
        "model": "ja",
        "input": "Hello",
        "temperature": 1,
        "max_output_tokens": 200,
        "extra_body": {"seed": 3},
    }
    parsed = served.client.responses.parse(**asked, text_format=Point)
    assert isinstance(parsed.output_parsed, Point) and parsed.status == "completed"
    with served.client.responses.stream(**asked, text_format=Point) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert isinstance(final.output_parsed, Point) and kinds[-1] == "response.completed"


def test_json_is_an_object_and_a_schema_is_followed(served: Served) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    form = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
    body = ask(served, {"input": "Hi", "max_output_tokens": 60, "temperature": 2, "text": {"format": form}}).json()
    assert body["status"] == "completed" and body["text"]["format"] == form
    valid(body["output"][0]["content"][0]["text"], schema)
    bias = {str(letter(char)): 20 for char in "}"}
    body = ask(served, {
        "input": "Hi", "max_output_tokens": 60, "text": {"format": {"type": "json_object"}}, "logit_bias": bias,
    }).json()  # fmt: skip
    assert isinstance(json.loads(body["output"][0]["content"][0]["text"]), dict)


def test_scores_are_those_of_the_text(served: Served) -> None:
    asked: dict[str, Any] = {"input": "Hello", "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    part = ask(served, asked).json()["output"][0]["content"][0]
    assert "".join(row["token"] for row in part["logprobs"]) == part["text"]
    assert all(len(row["top_logprobs"]) == 2 and row["bytes"] for row in part["logprobs"])
    events = served.client.responses.create(
        model="en", input="Hello", temperature=0, max_output_tokens=6, top_logprobs=2, stream=True
    )
    rows = [row for event in events if event.type == "response.output_text.delta" for row in event.logprobs]
    assert [row.token for row in rows] == [row["token"] for row in part["logprobs"]]
    assert ask(served, {"input": "Hello"}).json()["output"][0]["content"][0]["logprobs"] == []


# --- items ------------------------------------------------------------------------------------------------------


def test_items_are_the_turns_of_a_chat() -> None:
    items: list[dict[str, Any]] = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "規則"}]},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"role": "user", "content": "c"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [
            {"type": "output_text", "text": "Let me see.", "annotations": []}, {"type": "refusal", "refusal": " No."}]},
        {**CALL, "id": "fc_1", "status": "completed"},
        {**CALL, "call_id": "call_2"},
        {**RESULT, "call_id": "call_2"},
        {**RESULT, "output": [{"type": "input_text", "text": "Sun."}]},
        {**CALL, "call_id": "call_3", "arguments": ""},
    ]  # fmt: skip
    calls = [{"id": f"call_{n}", "type": "function", "function": {
        "name": "weather", "arguments": CALL["arguments"] if n < 3 else ""}} for n in (1, 2, 3)]  # fmt: skip
    assert turns_of(items, "初め") == [
        {"role": "system", "content": "初め\n\n規則"},
        {"role": "user", "content": "ab\n\nc"},
        {"role": "assistant", "content": "Let me see. No.", "tool_calls": calls[:2]},
        {"role": "tool", "tool_call_id": "call_2", "content": "Rain."},
        {"role": "tool", "tool_call_id": "call_1", "content": "Sun."},
        {"role": "assistant", "content": None, "tool_calls": calls[2:]},
    ]
    assert turns_of("x") == [{"role": "user", "content": "x"}]


def test_items_reach_the_model_as_chats_messages_do(served: Served) -> None:
    weather = {"name": "weather", "description": "The weather.", "parameters": WEATHER}
    tool: dict[str, Any] = {"type": "function", "function": weather}
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": CALL["arguments"]}}
    turns: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "天気は?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Rain."},
    ]  # fmt: skip
    chat = chatted(served, turns, tools=[{**tool, "function": {**tool["function"], "strict": True}}])
    items = [{"role": "user", "content": "天気は?"}, CALL, RESULT]
    body = ask(served, {"instructions": "Be brief.", "input": items, "tools": TOOLS[:1]}).json()
    assert body["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]
    assert body["output"][0]["content"][0]["text"] == chat["choices"][0]["message"]["content"]


def test_what_coding_agents_send_is_read_by_a_template_that_wants_the_sides_to_alternate(tmp_path: Path) -> None:
    """Gemma's and Mistral's own templates refuse two turns of a user in a row, and a system turn that is not first."""
    template = (
        "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('first only') }}"
        "{% elif not loop.first and m.role == loop.previtem.role %}{{ raise_exception('roles must alternate') }}"
        "{% endif %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
    )
    said = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": t}]} for t in "案bc"]
    rules = {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Read only."}]}
    body = {"instructions": "Be an agent.", "input": [rules, *said], "include": [], "client_metadata": {"a": "b"},
            "tools": TOOLS, "prompt_cache_key": "k", "store": False, "reasoning": None}  # fmt: skip
    model = write_model(tmp_path / "strict.gguf", template=template)
    with open_engine(model, {}, threads=1) as engine, guarded(engine, tmp_path) as server:
        reply = ask(server, {"model": "auto", **body})
        assert reply.status_code == 200, reply.text
        short = ask(server, {"model": "auto", **body, "input": said[1:]}).json()
        assert reply.json()["usage"]["input_tokens"] > short["usage"]["input_tokens"] + len("Read only.")


@pytest.mark.parametrize(
    ("items", "place"),
    [
        ([{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}], "input[0].content[0]: only text"),
        ([{"role": "user", "content": [{"type": "input_text", "text": "x"}, {"type": "input_file"}]}], "content[1]"),
        ([{"role": "user", "content": [{"type": "input_text"}]}], "input[0].content[0].text: has to be a text"),
        ([{"role": "user", "content": ["x"]}], "input[0].content[0]: has to be a part"),
        ([{"role": "user", "content": [{"type": ["input_text"], "text": "x"}]}], "only text parts are read"),
        ([{"role": "user"}], "input[0].content: has to be"),
        ([{"role": "tool", "content": "x"}], "input[0].role"),
        ([{"role": "user", "content": "x"}, {"type": "item_reference", "id": "msg_1"}], "input[1]: an item_reference"),
        ([{"type": "web_search_call", "id": "ws_1"}], "web_search_call"),
        ([{"content": "x"}], "input[0]: items of this type"),
        ([CALL, {**RESULT, "call_id": "call_9"}], "the call 'call_9', which is not among"),
        ([CALL, {**RESULT, "output": {"a": 1}}], "input[1].output: has to be"),
        ([{**CALL, "arguments": {"city": "x"}}], "input[0].arguments: has to be a text"),
        ([{**CALL, "name": None}], "input[0].name"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_refused_with_its_place(items: list[dict[str, Any]], place: str) -> None:
    with pytest.raises(InputError) as refused:
        turns_of(items)
    assert place in str(refused.value)


# --- tools ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}, {
    "type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]}])  # fmt: skip
def test_a_demanded_call_is_an_item_streamed_as_whole(served: Served, choice: Any) -> None:
    finished = 0
    for seed in range(4):
        asked: Any = {
            "model": "en", "input": "Hello", "temperature": 2, "max_output_tokens": 300, "tools": TOOLS,
            "tool_choice": choice, "parallel_tool_calls": False, "extra_body": {"seed": seed},
        }  # fmt: skip
        whole: Any = served.client.responses.create(**asked)
        [call] = whole.output
        assert call.type == "function_call" and call.call_id.startswith("call_") and call.id.startswith("fc_")
        assert call.name == "weather" or choice == "required"
        assert call.status == whole.status
        if whole.status == "completed":
            finished += 1
            valid(call.arguments, WEATHER if call.name == "weather" else {"const": {}})
        events: Any = list(served.client.responses.create(**asked, stream=True))
        kinds = [event.type.removeprefix("response.") for event in events]
        deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
        [streamed] = events[-1].response.output
        assert "".join(deltas) == streamed.arguments == events[-3].arguments
        assert kinds[:3] == ["created", "in_progress", "output_item.added"]
        assert kinds[3:-3] == ["function_call_arguments.delta"] * len(deltas)
        assert kinds[-3:-1] == ["function_call_arguments.done", "output_item.done"]
        assert events[-3].item_id == events[2].item.id == streamed.id and events[2].item.arguments == ""
    assert finished >= 1


def test_text_and_several_calls_are_items_of_their_own_however_they_are_cut() -> None:
    calls = [call_text("weather", '{"city": "京都", "days": 1}'), call_text("clock", {})]
    text = "見てみます。\n" + "\n".join(calls)
    for size in (1, 7, 1000):
        writer = ResponsesWriter({}, Choice(0, chat=True, calls=True))
        list(writer.opening())
        pieces: list[Any] = [text[at : at + size] for at in range(0, len(text), size)]
        events = take_all(writer, [*pieces, Finish("stop", None, "", 5, 9, 0.1, 0.1)])
        assert [event["sequence_number"] for event in events] == list(range(2, 2 + len(events)))
        message, first, second = writer.whole()["output"]
        assert message["content"][0]["text"].strip() == "見てみます。"
        assert (first["name"], first["arguments"]) == ("weather", '{"city": "京都", "days": 1}')
        assert (second["name"], second["arguments"]) == ("clock", "{}")
        assert [event["item"] for event in events if event["type"] == "response.output_item.done"] == [
            message, first, second,
        ]  # fmt: skip
        added = [event["output_index"] for event in events if event["type"] == "response.output_item.added"]
        assert added == [0, 1, 2] and writer.whole()["status"] == "completed"


def test_scores_of_a_calls_markup_open_no_message() -> None:
    writer = ResponsesWriter({}, Choice(0, chat=True, calls=True))
    pieces: list[Any] = [Scored(c, (TokenScore(1, c.encode(), -1.0),)) for c in call_text("clock", {})]
    take_all(writer, [*pieces, Finish("stop", None, "", 5, 9, 0.1, 0.1)])
    assert [item["type"] for item in writer.whole()["output"]] == ["function_call"]


def test_an_answer_without_a_word_is_an_empty_message() -> None:
    writer = ResponsesWriter({}, Choice(0, chat=True))
    take_all(writer, [Finish("stop", None, "", 5, 1, 0.1, 0.1)])
    [item] = writer.whole()["output"]
    assert item["status"] == writer.whole()["status"] == "completed" and item["content"][0]["text"] == ""


# --- a real model -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, pulled_model: Callable[[str], Path]) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("real")
    model = pulled_model("smollm2-135m-instruct")
    with open_engine(model, {}, context=1024, threads=1) as engine, guarded(engine, folder) as server:
        yield server


@pytest.mark.real
def test_a_real_model_calls_reads_the_result_and_answers(real: Served) -> None:
    tool: Any = {
        "type": "function", "name": "weather", "description": "The weather of a city.", "strict": True,
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Kyoto", "京都"]}}, "required": ["city"],
                       "additionalProperties": False},
    }  # fmt: skip
    items: Any = [{"role": "user", "content": "What is the weather in 京都?"}]
    first: Any = real.client.responses.create(
        model="base", input=items, tools=[tool], tool_choice="required", temperature=0, max_output_tokens=80,
        parallel_tool_calls=False,
    )  # fmt: skip
    [call] = first.output
    assert first.status == "completed" and json.loads(call.arguments)["city"] in ("Kyoto", "京都")
    items += [call.to_dict(), {"type": "function_call_output", "call_id": call.call_id, "output": "Rain, 12 degrees."}]
    asked: Any = {"model": "base", "input": items, "tools": [tool], "tool_choice": "none", "temperature": 0}
    with real.client.responses.stream(**asked, max_output_tokens=48) as stream:
        texts = [event.text for event in stream if event.type == "response.output_text.done"]
    assert len(texts) == 1 and len(texts[0]) > 8
