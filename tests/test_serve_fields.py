"""Every field of a request is done, cannot change the answer, or is refused by its name and place."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_params

from serve.server.api.answer.models import EmbeddingRequest
from serve.server.api.request.bodies import ChatRequest, CompletionRequest
from serve.server.api.request.fields import HARMLESS, OFF
from slm.joints import Message
from tests.served import HELLO, Served, error_of, served, text_of, tokens_of

__all__ = ["served"]  # a fixture

# --- the rule ---------------------------------------------------------------------------------------------------


def test_every_field_of_openais_client_is_known() -> None:
    sent: dict[Any, Any] = {
        ChatRequest: chat_params.CompletionCreateParamsBase,
        CompletionRequest: completion_create_params.CompletionCreateParamsBase,
        EmbeddingRequest: embedding_create_params.EmbeddingCreateParams,
    }
    for form, params in sent.items():
        fields = {field.alias or name for name, field in form.model_fields.items()}
        unknown = params.__annotations__.keys() - fields - form.harmless - form.off.keys()
        assert not unknown, (form, unknown)


@pytest.mark.parametrize("field", sorted(OFF))
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_what_is_not_done_is_refused_by_name_and_its_neutral_values_are_not(
    served: Served, field: str, path: str
) -> None:
    body = {"model": "en", "max_tokens": 1, **({"messages": HELLO} if "chat" in path else {"prompt": "On"})}
    reply = served.post(path, {**body, field: {"what": 3.5}})
    assert reply.status_code == 400 and error_of(reply)["param"] == field
    assert error_of(reply)["message"] == f"{field}: this server does not do it"
    for nothing in (None, *OFF[field]):
        assert served.post(path, {**body, field: nothing}).status_code == 200, nothing


def test_labels_and_hints_change_nothing(served: Served) -> None:
    plain = text_of(served.chat("Hello", model="en"))
    for field in HARMLESS:
        assert text_of(served.chat("Hello", model="en", **{field: {"a": 1}})) == plain


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": HELLO}),
        ("/v1/completions", {"prompt": "On"}),
        ("/v1/embeddings", {"input": "On"}),
        ("/tokenize", {"content": "On"}),
        ("/detokenize", {"tokens": [5]}),
        ("/lora-adapters", {"name": "x", "path": "y"}),
        ("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "y"}),
        ("/v1/unload_lora_adapter", {"lora_name": "x"}),
    ],
)
def test_no_path_ignores_a_field_that_it_does_not_know(served: Served, path: str, body: dict[str, Any]) -> None:
    reply = served.post(path, {**body, "temprature_日": 1})
    assert reply.status_code == 400
    assert error_of(reply)["message"].startswith("temprature_日: this field is unknown")


def test_a_slip_of_the_pen_is_told_what_was_meant(served: Served) -> None:
    for given, meant in {"temprature": "temperature", "max_token": "max_tokens", "top-p": "top_p"}.items():
        message = error_of(served.chat("Hello", **{given: 1}))["message"]
        assert message == f"{given}: this field is unknown. Did you mean '{meant}'?"


def _call(**fields: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "f", **fields}}]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": [{"role": "user", "content": "x", "wieght": 1}]}, "messages[0].wieght: this field is unknown"),
        ({"response_format": {"type": "text", "schma": 1}}, "response_format.schma: this field is unknown"),
        ({"stream_options": {"usage": True}}, "stream_options.usage: this field is unknown"),
        ({"stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats: this server"),
        ({"tools": _call(parametrs={})}, "tools[0].function.parametrs: this field is unknown. Did you mean 'param"),
        ({"structured_outputs": {"foo": 1}}, "structured_outputs.foo: this field is unknown"),
        ({"lora": [{"id": 0, "scale": 1, "name": "x"}]}, "lora[0].name: this field is unknown"),
    ],
)
def test_the_rule_holds_inside_as_well(served: Served, fields: dict[str, Any], message: str) -> None:
    reply = served.chat("Hello", **fields)
    assert reply.status_code == 400 and error_of(reply)["message"].startswith(message), reply.text


def test_a_turn_of_the_conversation_is_what_the_engine_reads() -> None:
    turns = ChatRequest.model_validate({"messages": [{"role": "assistant", "content": "x", "reasoning": "hm"}]})
    assert turns.conversation() == [Message(role="assistant", content="x", reasoning_content="hm")]


# --- places and words -------------------------------------------------------------------------------------------


def content(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": list(parts)}]}


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
TEXT = {"type": "text", "text": "What is it?"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (content(TEXT, IMAGE), "messages[1].content[1]: only text parts are read, this one is 'image_url'"),
        (content({"type": "input_audio"}), "messages[1].content[0]: only text parts are read, this one is 'input_a"),
        (content({"type": "file", "file": {}}), "messages[1].content[0]: only text parts are read, this one is 'file'"),
        (content({"text": "x"}), "messages[1].content[0]: only text parts are read, this one is of no type"),
        (content({"type": "text"}), "messages[1].content[0]: a part of type 'text' has its text in the field 'text'"),
        (content("x"), "messages[1].content[0]: a part is an object"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content: the content of a message is a text or"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role: 'robot' is not one of 'system', "),
        ({"messages": [{"content": "x"}]}, "messages[0].role: is missing"),
        ({"messages": ["x"]}, "messages[0]: has to be an object, not 'x'"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0]: a message of the role 'user' needs content"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role: 'function' is a former role"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]: only functions can be called here, this tool is of type 'web"),
        ({"tools": [{"type": "function", "name": "f"}]}, "tools[0]: name, description and parameters stand in"),
        ({"tool_choice": "any", "tools": _call()}, "tool_choice: is 'none', 'auto', 'required', {"),
        ({"tool_choice": {"type": "any"}, "tools": _call()}, "tool_choice: is 'none', 'auto', 'required', {"),
        ({"tool_choice": {"type": "function"}, "tools": _call()}, "tool_choice.function: is missing"),
        ({"tool_choice": {"function": {"name": 3}}, "tools": _call()}, "tool_choice.function.name: has to be a text"),
        ({"stop": 5}, "stop: has to be a text or a list of texts"),
        ({"stop": ["a"] * 17}, "stop: at most 16 stop strings of 1,000 characters are looked for"),
        ({"stop": "a" * 1001}, "stop: at most 16 stop strings of 1,000 characters are looked for"),
        ({"stop": ["b", "a" * 1001]}, "stop: at most 16 stop strings of 1,000 characters are looked for"),
        ({"temperature": "hot"}, "temperature: has to be a valid number, not 'hot'"),
        ({"response_format": "json"}, "response_format: has to be an object, not 'json'"),
        ({"n": "2"}, "n: has to be a valid integer, not '2'"),
        ({"seed": 1.5}, "seed: has to be a valid integer, not 1.5"),
        ({"response_format": {"type": "regex", "pattern": "a"}}, "response_format.type: 'regex' is not one of"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"type": "custom", "custom": {"name": "f"}}]}]},
         "messages[0].tool_calls[0].type: only calls of functions are read, this one is 'custom'"),
        ({"enable_thinking": False}, "enable_thinking: this field is unknown. Here it is: chat_template_kwargs"),
        ({"reasoning": {"effort": "low"}}, "reasoning: this field is unknown. Here it is: reasoning_effort"),
    ],
)  # fmt: skip
def test_an_error_names_the_place_and_what_stands_there(served: Served, fields: dict[str, Any], message: str) -> None:
    reply = served.chat("Hello", **fields)
    assert reply.status_code == 400
    error = error_of(reply)
    assert error["message"].startswith(message), error
    assert error["param"] == message.partition(":")[0]


@pytest.mark.parametrize(
    ("path", "fields", "place"),
    [
        ("chat/completions", {"repetition_penalty": 0}, "repetition_penalty"),
        ("chat/completions", {"repetition_penalty": 99, "repeat_penalty": None}, "repetition_penalty"),
        ("chat/completions", {"repeat_penalty": 99}, "repeat_penalty"),
        ("completions", {"repetition_penalty": 99}, "repetition_penalty"),
        ("completions", {"n_predict": 0}, "n_predict"),
        ("chat/completions", {"n_predict": "x"}, "n_predict"),
        ("responses", {"repetition_penalty": 99}, "repetition_penalty"),
        ("responses", {"n_predict": 0}, "n_predict"),
        ("responses", {"text": {"format": {"type": "json_schema", "name": 5, "schema": {}}}}, "text.format.name"),
        ("chat/completions", {"messages": [{"role": "assistant", "content": "x", "partial": "x"}]},
         "messages[0].partial"),
        ("chat/completions", {"messages": [{"role": "user", "content": "x", "reasoning": "x"}]},
         "messages[0].reasoning"),
        ("chat/completions", {"messages": [{"role": "assistant", "function_call": {"name": 5}}]},
         "messages[0].function_call.name"),
        ("chat/completions", {"messages": [{"role": "user", "content": "x", "function_call": {"name": "f"}}]},
         "messages[0].function_call"),
        ("chat/completions", {"tools": _call(), "tool_choice": {"type": "function", "name": 5}}, "tool_choice.name"),
    ],
)  # fmt: skip
def test_an_error_has_the_name_that_was_sent(served: Served, path: str, fields: dict[str, Any], place: str) -> None:
    asked = {"chat/completions": {"messages": HELLO}, "completions": {"prompt": "a"}, "responses": {"input": "a"}}
    reply = served.post(f"/v1/{path}", {"model": "base", **asked[path], **fields})
    assert reply.status_code == 400
    assert error_of(reply)["param"] == place and error_of(reply)["message"].startswith(f"{place}: ")


def test_no_union_shows_its_branches(served: Served) -> None:
    bad: list[Any] = [["a", 5], [[1], ["x"]], {"a": 1}, 5, [None], [[[1]]], True]
    for path, field in (("/v1/completions", "prompt"), ("/v1/embeddings", "input")):
        for value in bad:
            reply = served.post(path, {"model": "base", field: value})
            message = error_of(reply)["message"]
            assert reply.status_code == 400 and message.startswith(field), message
            assert not any(word in message for word in ("str", "list[", "union", "Input should")), message
    assert error_of(served.post("/v1/completions", {"prompt": [[1], ["x"]]}))["param"] == "prompt[1][0]"


def test_messages_as_clients_send_earlier_answers_back_are_read(served: Served) -> None:
    dumped: dict[str, Any] = {"content": "Hi.", "annotations": []}
    dumped |= dict.fromkeys(("refusal", "audio", "function_call", "tool_calls", "reasoning_content"))
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    histories: list[list[dict[str, Any]]] = [
        [{"role": "assistant", **dumped}],
        [{"role": "assistant", "content": None, "refusal": "No."}],
        [{"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}],
        [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c", "content": "1"}],
        [{"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}],
        [{"role": "assistant", "content": "Hi.", "refusal": "No."}],
        [{"role": "assistant", "content": [{"type": "output_text", "text": "Hi.", "annotations": []}]}],
        [{"role": "user", "content": [{**TEXT, "cache_control": {"type": "ephemeral"}}]}],
    ]  # fmt: skip
    alone = tokens_of(served.chat("Hello", model="en"))
    for turns in histories:
        reply = served.chat("", model="en", messages=[*HELLO, *turns, *HELLO])
        assert tokens_of(reply) > alone + 10
    said = [served.chat("", model="en", messages=[*HELLO, *turns, *HELLO]) for turns in histories[1:3]]
    assert tokens_of(said[0]) == tokens_of(said[1])


def test_nothing_that_an_earlier_turn_says_is_dropped() -> None:
    def turn(**fields: Any) -> Message:
        return ChatRequest.model_validate({"messages": [*HELLO, {"role": "assistant", **fields}]}).conversation()[1]

    assert turn(content="Hi.", refusal="No.")["content"] == "Hi.\n\nNo."
    assert turn(content="", refusal="No.")["content"] == turn(refusal="No.")["content"] == "No."
    assert turn(content="x", reasoning="a", reasoning_content="a")["reasoning_content"] == "a"


@pytest.mark.parametrize(
    ("turn", "place"),
    [
        ({"role": "assistant", "content": "x", "reasoning": "a", "reasoning_content": "b"}, "reasoning"),
        ({"role": "assistant", "content": "x", "prefix": True, "partial": False}, "partial"),
        ({"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"},
          "tool_calls": [{"id": "c", "function": {"name": "g"}}]}, "function_call"),
        ({"role": "user", "content": "x", "refusal": "No."}, "refusal"),
        ({"role": "user", "content": "x", "reasoning_content": "hm"}, "reasoning_content"),
        ({"role": "user", "content": "x", "tool_calls": [{"id": "c", "function": {"name": "g"}}]}, "tool_calls"),
    ],
)  # fmt: skip
def test_fields_of_a_turn_that_contradict_each_other_are_refused(
    served: Served, turn: dict[str, Any], place: str
) -> None:
    error = error_of(served.chat("", messages=[turn]))
    assert error["param"] == f"messages[0].{place}", error


@pytest.mark.parametrize("parameters", [True, "object", []])
def test_the_schema_of_arguments_is_an_object_as_at_openai(served: Served, parameters: Any) -> None:
    error = error_of(served.chat("Hello", tools=_call(parameters=parameters)))
    assert error["param"] == "tools[0].function.parameters" and "has to be an object" in error["message"]


IMAGINED = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("path", "fields", "place"),
    [
        ("chat/completions", {"messages": []}, "messages"),
        ("chat/completions", {"max_tokens": 99_999}, "messages"),
        ("chat/completions", {"messages": [{"role": "user", "content": "x" * 90_000}]}, "messages"),
        ("completions", {"prompt": "x " * 30_000}, "prompt"),
        ("completions", {"prompt": []}, "prompt"),
        ("completions", {"prompt": ["a"] * 40, "n": 8}, "prompt"),
        ("embeddings", {"input": ["a", "x " * 30_000]}, "input[1]"),
        ("embeddings", {"input": "a", "dimensions": 3}, "dimensions"),
        ("embeddings", {"input": "a", "model": "nobody"}, "model"),
        ("chat/completions", {"model": "nobody"}, "model"),
        ("chat/completions", {"rag": True}, "rag"),
        ("chat/completions", {"lora": [{"id": 0, "scale": 1}, {"id": 0, "scale": 1}]}, "lora"),
        ("chat/completions", {"stop_token_ids": [10**8]}, "stop_token_ids"),
        ("chat/completions", {"stop_token_ids": [1], "guided_choice": ["a"]}, "stop_token_ids"),
        ("chat/completions", {"min_tokens": 2, "guided_choice": ["a"]}, "min_tokens"),
        ("chat/completions", {"ignore_eos": True, "tools": [IMAGINED]}, "ignore_eos"),
        ("chat/completions", {"chat_template_kwargs": {"nobody": 1}}, "chat_template_kwargs"),
        ("chat/completions", {"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ("chat/completions", {"tools": [IMAGINED, IMAGINED]}, "tools[1]"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_found_after_validation_has_its_place_too(
    served: Served, path: str, fields: dict[str, Any], place: str, stream: bool
) -> None:
    body = {"messages": HELLO} if path.startswith("chat") else {}
    streaming = {"stream": stream} if path != "embeddings" else {}
    error = error_of(served.post(f"/v1/{path}", {"model": "base", **body, **streaming, **fields}))
    assert error["param"] == place, error


# --- types ------------------------------------------------------------------------------------------------------

WRONG: dict[str, list[tuple[dict[str, Any], str]]] = {
    "/v1/chat/completions": [
        ({"temperature": True}, "temperature"), ({"temperature": "1"}, "temperature"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 5.5}, "max_tokens"), ({"max_tokens": True}, "max_tokens"), ({"stream": "yes"}, "stream"),
        ({"stream": 1}, "stream"), ({"rag": "yes"}, "rag"), ({"rag": 1}, "rag"), ({"n": "2"}, "n"), ({"n": True}, "n"),
        ({"seed": "7"}, "seed"), ({"logprobs": 1}, "logprobs"), ({"top_logprobs": "1"}, "top_logprobs"),
        ({"logit_bias": {"5": "1"}}, "logit_bias.5"), ({"logit_bias": {"5": True}}, "logit_bias.5"),
        ({"stop_token_ids": ["5"]}, "stop_token_ids[0]"), ({"lora": [{"id": "0", "scale": 1}]}, "lora[0].id"),
        ({"stream_options": {"include_usage": "true"}}, "stream_options.include_usage"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"), ({"ignore_eos": 0}, "ignore_eos"),
        ({"rag": {"since": "yesterday"}}, "rag.since"), ({"rag": {"until": "2026-13-01"}}, "rag.until"),
    ],
    "/v1/completions": [
        ({"logprobs": True}, "logprobs"), ({"temperature": True}, "temperature"), ({"stream": "yes"}, "stream"),
        ({"prompt": [[1, -2]]}, "prompt[0][1]"), ({"prompt": [-1]}, "prompt[0]"), ({"prompt": []}, "prompt"),
    ],
    "/v1/responses": [
        ({"temperature": True}, "temperature"), ({"max_output_tokens": "5"}, "max_output_tokens"),
        ({"stream": "yes"}, "stream"), ({"top_k": "5"}, "top_k"), ({"store": "no"}, "store"),
    ],
    "/v1/embeddings": [
        ({"dimensions": "8"}, "dimensions"), ({"dimensions": True}, "dimensions"),
        ({"input": [[1, -2]]}, "input[0][1]"),
    ],
    "/tokenize": [
        ({"add_special": "yes"}, "add_special"), ({"add_special": 1}, "add_special"), ({"content": 5}, "content"),
    ],
    "/detokenize": [
        ({"tokens": ["5"]}, "tokens[0]"), ({"tokens": [True]}, "tokens[0]"), ({"tokens": [-1]}, "tokens[0]"),
    ],
    "/lora-adapters": [({"scale": "1"}, "scale"), ({"scale": True}, "scale")],
    "/v1/load_lora_adapter": [({"load_inplace": "yes"}, "load_inplace")],
}  # fmt: skip
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO}, "/v1/completions": {"prompt": "On"}, "/v1/responses": {"input": "On"},
    "/v1/embeddings": {"input": "On"}, "/tokenize": {"content": "On"}, "/detokenize": {"tokens": [5]},
    "/lora-adapters": {"name": "x", "path": "y"}, "/v1/load_lora_adapter": {"lora_name": "x", "lora_path": "y"},
}  # fmt: skip


@pytest.mark.parametrize(("path", "fields", "place"), [(p, *one) for p, rows in WRONG.items() for one in rows])
def test_no_type_is_taken_for_another(served: Served, path: str, fields: dict[str, Any], place: str) -> None:
    reply = served.post(path, {**BODIES[path], **fields})
    assert reply.status_code == 400 and error_of(reply)["param"] == place, reply.text
    assert error_of(reply)["message"].startswith(f"{place}: ")


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"max_tokens": 2.0, "temperature": 1, "n": 1.0, "seed": 3.0, "top_p": 1}),
        ("/v1/chat/completions", {"logit_bias": {"5": 1}, "stop_token_ids": [5.0], "max_tokens": 1, "n": None}),
        ("/v1/chat/completions", {"stream": None, "temperature": None, "rag": False, "max_tokens": 1, "seed": None}),
        ("/v1/completions", {"prompt": [[5.0, 6]], "max_tokens": 1, "logprobs": None}),
        ("/v1/responses", {"max_output_tokens": 16.0, "temperature": 1, "stream": None}),
        ("/detokenize", {"tokens": [5.0]}),
    ],
)
def test_a_number_is_what_json_says_and_null_is_absent(served: Served, path: str, fields: dict[str, Any]) -> None:
    model = {} if path == "/detokenize" else {"model": "en"}
    reply = served.post(path, {**BODIES[path], **model, **fields})
    assert reply.status_code == 200, reply.text


def test_what_is_wrong_is_said_once(served: Served) -> None:
    message = error_of(served.chat("Hello", tools=[{"function": {"name": 'a b"c'}}]))["message"]
    assert message.count("not 'a b\"c'") == 1
    assert error_of(served.post("/v1/completions", {"prompt": []}))["message"] == "prompt: is empty"
