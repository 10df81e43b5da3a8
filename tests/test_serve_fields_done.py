"""What fields of a request do: continued answers, templates' variables, where an answer ends, and its form."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from pydantic import ValidationError

from serve.child.choice.sampling import Sampler, Vocabulary
from serve.server.api.request.bodies import ChatRequest
from serve.server.api.responses.request import ResponsesRequest
from slm.joints import SamplingOptions
from tests.served import HELLO, Served, error_of, served, text_of, tokens_of
from tests.tiny_gguf import letter, write_adapter

__all__ = ["served"]  # a fixture


THINKS = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% if enable_thinking is defined and not enable_thinking %}"
    "(no thoughts){% endif %}{% if reasoning_effort %}({{ reasoning_effort }}){% endif %}{% endif %}"
)


def test_an_answer_goes_on_from_the_final_message(served: Served) -> None:
    whole = text_of(served.chat("Hello", model="en", max_tokens=12))
    begun = [*HELLO, {"role": "assistant", "content": whole[:5]}]
    for fields in (
        {"messages": begun, "continue_final_message": True, "add_generation_prompt": False},
        {"messages": [*HELLO, {**begun[-1], "prefix": True}]},
        {"messages": [*HELLO, {**begun[-1], "partial": True}]},
    ):
        assert text_of(served.chat("", model="en", max_tokens=7, **fields)) == whole[5:]
    closed = served.chat("", model="en", max_tokens=7, messages=begun)
    assert tokens_of(closed) > tokens_of(
        served.chat("", model="en", max_tokens=7, messages=begun, continue_final_message=True)
    )


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"continue_final_message": True}, "continue_final_message"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "x"}], "continue_final_message": True,
          "add_generation_prompt": True}, "add_generation_prompt"),
        ({"messages": [{"role": "user", "content": "x", "prefix": True}]}, "messages[0]"),
        ({"messages": [{"role": "assistant", "content": "x", "prefix": True}, *HELLO]}, "messages"),
    ],
)  # fmt: skip
def test_what_cannot_be_continued_says_so(served: Served, fields: dict[str, Any], place: str) -> None:
    reply = served.chat("Hello", model="en", **fields)
    assert reply.status_code == 400 and error_of(reply)["param"] == place


def test_the_words_that_begin_an_answer_may_be_left_out(served: Served) -> None:
    with_words = tokens_of(served.chat("Hello", model="en"))
    assert tokens_of(served.chat("Hello", model="en", add_generation_prompt=True)) == with_words
    assert tokens_of(served.chat("Hello", model="en", add_generation_prompt=False)) < with_words


def test_a_template_is_told_its_variables_and_no_others(served: Served) -> None:
    served.engine.load_adapter("thinks", write_adapter(served.folder / "thinks.gguf", template=THINKS))
    try:
        plain = tokens_of(served.chat("Hello", model="thinks"))
        off = served.chat("Hello", model="thinks", chat_template_kwargs={"enable_thinking": False})
        assert tokens_of(off) == plain + len("(no thoughts)")
        assert tokens_of(served.chat("Hello", model="thinks", reasoning_effort="none")) == tokens_of(off)
        assert tokens_of(served.chat("Hello", model="thinks", reasoning_effort="high")) == plain + len("(high)")
        unknown = served.chat("Hello", model="thinks", chat_template_kwargs={"custom": "日本"})
        assert unknown.status_code == 400
        assert "has no variable 'custom'; known: enable_thinking, reasoning_effort" in error_of(unknown)["message"]
    finally:
        served.engine.unload_adapter("thinks")
    variables: dict[str, Any]
    for variables in ({"enable_thinking": False}, {"enable_thinking": None}):  # as it is without thoughts
        assert served.chat("Hello", model="en", chat_template_kwargs=variables).status_code == 200
    for variables in ({"enable_thinking": True}, {"messages": []}, {"bos_token": "x"}, {"range": 1}):
        reply = served.chat("Hello", model="en", chat_template_kwargs=variables)
        assert reply.status_code == 400 and next(iter(variables)) in error_of(reply)["message"]
    assert served.chat("Hello", model="en", reasoning_effort="high").status_code == 400


def test_an_effort_that_the_template_does_not_know_is_refused_by_its_own_name(served: Served) -> None:
    refused = {
        "reasoning_effort": served.chat("Hello", model="en", reasoning_effort="high"),
        "reasoning.effort": served.post(
            "/v1/responses", {"model": "en", "input": "Hello", "reasoning": {"effort": "high"}}
        ),
        "chat_template_kwargs": served.chat("Hello", model="en", chat_template_kwargs={"reasoning_effort": "high"}),
    }
    for name, reply in refused.items():
        assert reply.status_code == 400 and error_of(reply)["param"] == name
        assert error_of(reply)["message"].startswith(f"{name}: the model's chat template has no variable 'reasoning_")


def test_other_spellings_mean_the_same(served: Served) -> None:
    for one, other in (
        ({"repeat_penalty": 2.0}, {"repetition_penalty": 2.0}),
        ({"max_tokens": 5}, {"n_predict": 5, "max_tokens": None}),
        ({"top_k": 0, "temperature": 1, "seed": 1}, {"top_k": -1, "temperature": 1, "seed": 1}),
    ):
        assert text_of(served.chat("Hello", model="en", **one)) == text_of(served.chat("Hello", model="en", **other))
    coldest = {"temperature": 5, "top_k": 0, "min_p": 0, "max_tokens": 8}
    assert text_of(served.chat("Hello", model="en", top_p=0, **coldest)) == text_of(
        served.chat("Hello", model="en", temperature=0, max_tokens=8)
    )
    reply = served.chat("Hello", repeat_penalty=2, repetition_penalty=1.5)
    assert reply.status_code == 400 and error_of(reply)["param"] == "repetition_penalty"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n_predict"])
def test_minus_one_is_no_limit_of_an_answer(name: str) -> None:
    assert ChatRequest.model_validate({"messages": HELLO, name: -1}).limit is None
    assert ChatRequest.model_validate({"messages": HELLO, name: 3}).limit == 3
    for wrong in (0, -2):
        with pytest.raises(ValidationError, match=name if name != "n_predict" else "max_tokens"):
            ChatRequest.model_validate({"messages": HELLO, name: wrong})
    assert ResponsesRequest.model_validate({"input": "Hello", "max_output_tokens": -1}).chat().limit is None


@pytest.mark.parametrize(("back", "picked"), [(0, [5, 5, 5]), (1, [5, 6, 5]), (64, [5, 6, 7]), (-1, [6, 7, 5])])
def test_the_repeat_penalty_looks_as_far_back_as_it_is_told(back: int, picked: list[int]) -> None:
    logits = np.array([0, 0, 0, 0, 0, 10, 9, 8], np.float32)
    vocabulary = Vocabulary(8, frozenset({2}), lambda token, special: b"x")
    options = SamplingOptions(repeat_penalty=1.5, repeat_last_n=back)
    sampler = Sampler(options, [5] + [0] * 100, vocabulary)
    assert [sampler.pick(logits).token for _ in picked] == picked


EOS = 2


def test_an_answer_ends_where_the_request_says(served: Served) -> None:
    ends = {"model": "en", "logit_bias": {str(EOS): 100}, "max_tokens": 9}

    def made(**fields: Any) -> tuple[int, str]:
        body = served.chat("Hello", **{**ends, **fields}).json()
        return body["usage"]["completion_tokens"], body["choices"][0]["finish_reason"]

    assert made() == (0, "stop")
    assert made(ignore_eos=True) == (9, "length")
    assert made(min_tokens=4) == (4, "stop")
    whole = text_of(served.chat("Hello", model="en", max_tokens=9))
    stopped = served.chat("Hello", model="en", max_tokens=9, stop_token_ids=[letter(whole[3])])
    assert text_of(stopped) == whole[: whole.index(whole[3])]
    assert stopped.json()["choices"][0]["finish_reason"] == "stop"
    late = served.chat("Hello", model="en", max_tokens=9, stop_token_ids=[letter(whole[3])], min_tokens=9)
    assert whole[3] not in text_of(late) and len(text_of(late)) == 9
    for bad in ({"min_tokens": 10}, {"stop_token_ids": [10**6]}, {"ignore_eos": True, "guided_choice": ["a"]}):
        assert served.chat("Hello", **ends, **bad).status_code == 400, bad


def test_stop_strings_are_not_looked_at_before_min_tokens(served: Served) -> None:
    whole = text_of(served.chat("Hello", model="en", max_tokens=9))
    early = served.chat("Hello", model="en", max_tokens=9, stop=[whole[2]], min_tokens=4)
    later = whole.find(whole[2], 4)
    assert text_of(early) == (whole if later < 0 else whole[:later])
    assert text_of(served.chat("Hello", model="en", max_tokens=9, stop=[whole], min_tokens=4)) == whole
    late = served.chat("Hello", model="en", max_tokens=9, stop=[whole[4]], min_tokens=4)
    assert text_of(late) == whole[:4] and late.json()["choices"][0]["finish_reason"] == "stop"


def test_more_tokens_than_there_is_room_for_cannot_be_demanded(served: Served) -> None:
    reply = served.post("/v1/chat/completions", {"messages": HELLO, "min_tokens": served.engine.context})
    assert reply.status_code == 400 and error_of(reply)["message"].startswith("min_tokens is ")


def test_two_limits_of_one_answer_have_to_agree(served: Served) -> None:
    assert served.chat("Hello", max_tokens=3, max_completion_tokens=3).status_code == 200
    error = error_of(served.chat("Hello", max_tokens=3, max_completion_tokens=5))
    assert error["param"] == "max_completion_tokens" and "'max_tokens'" in error["message"]


def test_a_seed_of_minus_one_is_none(served: Served) -> None:
    said = {text_of(served.chat("Hello", model="en", temperature=2, seed=-1, max_tokens=20)) for _ in range(4)}
    assert len(said) > 1


IMAGINED = {"type": "function", "function": {"name": "f"}}
FORMS: list[tuple[dict[str, Any], Any]] = [
    ({"guided_choice": ["yes", "a/b \"c\"", "日本"]}, {"enum": ["yes", "a/b \"c\"", "日本"]}),
    ({"guided_regex": "[ab]{2}/[0-9]"}, {"pattern": "^[ab]{2}/[0-9]$"}),
    ({"guided_regex": r"^x\/(y|z)$"}, {"enum": ["x/y", "x/z"]}),
    ({"guided_grammar": 'root ::= "up" | "down"'}, {"enum": ["up", "down"]}),
    ({"guided_grammar": 'start: "up" | "down"'}, {"enum": ["up", "down"]}),
    ({"grammar": 'root ::= [x-z] [0-9]'}, {"pattern": "^[x-z][0-9]$"}),
    ({"structured_outputs": {"choice": ["left"]}}, {"const": "left"}),
    ({"structured_outputs": {"regex": "a|bc"}}, {"enum": ["a", "bc"]}),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "schema"), FORMS)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_text_has_the_form_that_was_asked_for(served: Served, fields: Any, schema: Any, path: str) -> None:
    body = {"model": "en", **({"messages": HELLO} if "chat" in path else {"prompt": "On"})}
    for seed in range(3):
        reply = served.post(path, {**body, "max_tokens": 30, "temperature": 2, "seed": seed, **fields})
        assert reply.json()["choices"][0]["finish_reason"] == "stop"
        jsonschema_rs.validate(schema, text_of(reply))


BOOLEANS = {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}


@pytest.mark.parametrize(
    "fields",
    [
        {"guided_json": BOOLEANS}, {"guided_json": json.dumps(BOOLEANS)}, {"structured_outputs": {"json": BOOLEANS}},
        {"json_schema": BOOLEANS},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": BOOLEANS}}},
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_json_has_the_form_that_was_asked_for_by_any_name(served: Served, fields: dict[str, Any], path: str) -> None:
    body = {"model": "en", **({"messages": HELLO} if "chat" in path else {"prompt": "On"})}
    reply = served.post(path, {**body, "max_tokens": 60, "temperature": 2, "seed": 4, **fields})
    assert reply.json()["choices"][0]["finish_reason"] == "stop"
    jsonschema_rs.validate(BOOLEANS, json.loads(text_of(reply)))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"guided_choice": ["a"], "guided_regex": "b"}, "guided_choice: an answer has one form, and guided_regex"),
        ({"guided_choice": []}, "guided_choice: a choice is a list of texts"),
        ({"guided_choice": [""]}, "guided_choice: a choice is a list of texts"),
        ({"guided_regex": "(?=a)b"}, "guided_regex: this regular expression cannot be followed (found: look-around"),
        ({"guided_regex": ""}, "guided_regex: a regex is a text"),
        ({"guided_json": "{x"}, "guided_json: is no JSON"),
        ({"guided_json": {"not": {"type": "null"}}}, "guided_json: this JSON schema cannot be followed: 'not' at '/'"),
        ({"grammar": 'root ::= "a" b'}, "grammar: this grammar cannot be followed"),
        ({"grammar": "root ::= (((((" }, "grammar: this grammar cannot be followed"),
        ({"guided_choice": ["a"], "stop": "a"}, "stop: does not go with"),
        ({"guided_regex": "a", "tools": [IMAGINED]}, "guided_regex: does not go with tools"),
    ],
)  # fmt: skip
def test_a_form_that_cannot_be_had_says_why(served: Served, fields: dict[str, Any], reason: str) -> None:
    reply = served.chat("Hello", model="en", **fields)
    error = error_of(reply)
    assert reply.status_code == 400 and error["message"].startswith(reason), reply.text
    assert error["param"] == reason.partition(":")[0]
    assert "%llguidance" not in reply.text and "start:" not in reply.text
