"""What a row and a turn of training data say: known fields are honoured, others refused by name or counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from slm.chat.prompt import TEMPLATES
from slm.errors import DamagedFileError, InputError, UnsupportedError
from slm.joints import Message
from tests.tiny_masks import TAGGED_TEMPLATES, learned
from tests.tiny_runs import base, options
from tests.tiny_training import byte_level_tokenizer, conversations, write_jsonl
from train.data.examples import Example, read_conversations, read_texts
from train.data.masks import ExampleEncoder
from train.data.prepare import prepare_conversations
from train.data.records import Record, conversation_record, text_record
from train.data.show import show_masks

__all__ = ["base"]  # a fixture

HI = {"role": "user", "content": "Hi"}
WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
TOOL = {"type": "function", "function": WEATHER}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TURNS = [
    Message(role="user", content="Weather in Oslo?"),
    Message(role="assistant", content="", tool_calls=[CALL]),
    Message(role="tool", content='{"c": 4}', tool_call_id="c1", name="weather"),
    Message(role="assistant", content="It is 4 degrees."),
]


def record(**values: Any) -> Record:
    return conversation_record(values, "'x.jsonl', line 7")


def spans(record: Record, template: str = TEMPLATES["chatml"]) -> list[str]:
    """What is learned of a record, as text."""
    tokenizer = byte_level_tokenizer()
    example = Example(Path("x.jsonl"), 7, "en", record.messages, "", record.tools, record.skipped)
    encoded = ExampleEncoder(tokenizer, template).conversation(example)
    return [span for item in encoded for span in learned(tokenizer, item)]


# Turns that are not learned


@pytest.mark.parametrize(
    "field", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"training": False}, {"loss": False}, {"loss": 0}]
)
@pytest.mark.parametrize("sharegpt", [False, True])
def test_a_turn_marked_so_is_not_learned_and_stays_in_the_prompt(field: dict[str, Any], sharegpt: bool) -> None:
    bad, good = {"role": "assistant", "content": "BAD"}, {"role": "assistant", "content": "Good."}
    turns: list[dict[str, Any]] = [HI, bad | field, HI, good | {"weight": 1}, HI, good]
    if sharegpt:
        turns = [{"from": t.pop("role"), "value": t.pop("content"), **t} for t in map(dict, turns)]
    read = record(**{"conversations" if sharegpt else "messages": turns})
    assert spans(read) == ["Good.<|im_end|>"] * 2
    assert read.unused == () and read.messages[1]["content"] == "BAD"


@pytest.mark.parametrize("field", [{"weight": 0.5}, {"weight": 2}, {"train": "no"}, {"loss": -1}])
def test_a_weight_between_is_refused_by_name(field: dict[str, Any]) -> None:
    (name,) = field
    with pytest.raises(UnsupportedError, match=rf"line 7, turn 2: \"{name}\" is"):
        record(messages=[HI, {"role": "assistant", "content": "x"} | field])


def test_learning_a_users_turn_is_refused_and_not_learning_it_changes_nothing() -> None:
    answer = {"role": "assistant", "content": "x"}
    assert spans(record(messages=[HI | {"train": False}, answer])) == ["x<|im_end|>"]
    with pytest.raises(UnsupportedError, match="turn of the user"):
        record(messages=[HI | {"train": True}, answer])


def test_examples_without_a_turn_to_learn_are_counted_and_the_others_are_trained_on(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    silent: dict[str, Any] = {"messages": [HI, {"role": "assistant", "content": "x", "weight": 0}]}
    file = write_jsonl(tmp_path / "d.jsonl", [*conversations(4), silent])
    prepared = prepare_conversations(options(base, file, template="chatml"))
    assert len(prepared.train) + len(prepared.held_out) == 4
    assert "1 examples have no turn to learn" in capsys.readouterr().err
    with pytest.raises(InputError, match="no example has a turn to learn"):
        prepare_conversations(options(base, write_jsonl(tmp_path / "e.jsonl", [silent]), template="chatml"))


# Functions


def openai(**changes: Any) -> dict[str, Any]:
    call = CALL | {"function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    turns = [
        {"role": "user", "content": "Weather in Oslo?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": '{"c": 4}'},
        {"role": "assistant", "content": "It is 4 degrees.", "tool_calls": None, "refusal": None},
    ]
    return {"messages": turns, "tools": [TOOL]} | changes


def sharegpt(**changes: Any) -> dict[str, Any]:
    call = json.dumps({"name": "weather", "arguments": {"city": "Oslo"}})
    turns = [
        {"from": "human", "value": "Weather in Oslo?"}, {"from": "function_call", "value": call},
        {"from": "observation", "value": '{"c": 4}'}, {"from": "gpt", "value": "It is 4 degrees."},
    ]  # fmt: skip
    return {"conversations": turns, "tools": json.dumps([WEATHER])} | changes


def old_openai() -> dict[str, Any]:
    call = {"name": "weather", "arguments": '{"city": "Oslo"}'}
    turns = [
        {"role": "user", "content": "Weather in Oslo?"},
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "weather", "content": '{"c": 4}'},
        {"role": "assistant", "content": "It is 4 degrees."},
    ]
    return {"messages": turns, "functions": [WEATHER]}


@pytest.mark.parametrize("make", [openai, sharegpt, old_openai])
def test_calls_are_learned_and_their_results_are_not_in_every_spelling(make: Any) -> None:
    read = record(**make())
    assert [m["role"] for m in read.messages] == ["user", "assistant", "tool", "assistant"]
    assert read.messages[1]["tool_calls"][0]["function"] == CALL["function"]
    assert read.messages[2]["name"] == "weather" and read.messages[2]["content"] == '{"c": 4}'
    assert read.tools == (TOOL,) and read.unused == ()
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    for name, end in (("chatml", "<|im_end|>"), ("gemma", "<end_of_turn>"), ("alpaca", "<|endoftext|>")):
        assert spans(read, TEMPLATES[name]) == [f"{call}{end}", f"It is 4 degrees.{end}"]


def test_functions_are_written_by_a_template_that_knows_them() -> None:
    knowing = (
        "{% if tools %}{{ '<|im_start|>tools ' + tools | tojson + '<|im_end|>\n' }}{% endif %}{% for m in messages %}"
        "{{ '<|im_start|>' + m.role + '\n' + m.content }}{% for c in m.tool_calls or [] %}{{ '\n<tool_call>\n' +"
        " c.function | tojson + '\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    called = '\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>'
    assert spans(record(**openai()), knowing) == [called, "It is 4 degrees.<|im_end|>"]
    tokenizer = byte_level_tokenizer()
    read = record(**openai())
    (item,) = ExampleEncoder(tokenizer, knowing).conversation(
        Example(Path("x.jsonl"), 7, "en", read.messages, "", read.tools, read.skipped)
    )
    assert tokenizer.decode(item.ids).startswith("<|im_start|>tools [")


@pytest.mark.parametrize(
    ("turn", "says"),
    [
        ({"from": "function_call", "value": "weather in Oslo"}, "the call is not JSON"),
        ({"from": "function_call", "value": '{"arguments": {}}'}, "no function's name"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 3}}]}, "arguments.*a number"),
        ({"role": "assistant", "tool_calls": "f()"}, '"tool_calls" is not JSON'),
        ({"role": "assistant", "tool_calls": '{"name": "f"}'}, "must be a list"),
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, "a turn of the user calls"),
        ({"role": "user", "content": None}, "no text"),
        ({"role": "user"}, "no text"),
        ({"role": "user", "content": 3}, "must be text .is a number"),
        ({"role": "wizard", "content": "x"}, "Known: system, developer"),
    ],
)
def test_a_broken_turn_is_named_by_its_number(turn: dict[str, Any], says: str) -> None:
    with pytest.raises(DamagedFileError, match=rf"line 7, turn 2: .*{says}"):
        record(messages=[HI, turn, {"role": "assistant", "content": "x"}])


def test_a_list_of_functions_that_is_none_is_named() -> None:
    with pytest.raises(DamagedFileError, match='"tools" is not JSON'):
        record(**openai(tools="weather"))
    assert record(**openai(tools="null")).tools == record(**openai(tools=" null\n", functions="[]")).tools == ()
    assert record(**openai(tools="null", functions=json.dumps([WEATHER]))).tools == (TOOL,)
    said = {"role": "assistant", "content": "x", "tool_calls": "null", "function_call": "null"}
    assert record(messages=[HI, said]).messages[1] == {"role": "assistant", "content": "x"}
    with pytest.raises(DamagedFileError, match='entry of "tools" has no name'):
        record(**openai(tools=[{"type": "function"}]))
    assert record(**openai(tools="[]")).tools == record(**openai(tools=None)).tools == ()


# Contents


def test_parts_of_text_are_joined_and_others_refused_by_name() -> None:
    def parts(*texts: str) -> list[dict[str, Any]]:
        return [{"type": "text", "text": text, "image_url": None} for text in texts]

    read = record(messages=[{"role": "user", "content": parts("a", "b")}, {"role": "assistant", "content": parts("c")}])
    assert [m["content"] for m in read.messages] == ["ab", "c"]
    for part in ({"type": "image_url", "image_url": {"url": "x"}}, {"type": "input_audio"}, {"type": "image"}):
        with pytest.raises(UnsupportedError, match=rf"turn 1: part 2 of the content is '{part['type']}'"):
            record(messages=[{"role": "user", "content": [*parts("a"), part]}, {"role": "assistant", "content": "x"}])


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_a_thought_stands_before_its_answer(field: str) -> None:
    answer = {"role": "assistant", "content": "Four."}
    read = record(messages=[HI, answer | {field: "add them\n"}])
    assert read.messages[1]["content"] == "<think>\nadd them\n</think>\n\nFour."
    said = {"role": "assistant", "content": "<think>\nx\n</think>\n\nFour."}
    assert record(messages=[HI, said | {field: "x"}]).messages[1]["content"] == said["content"]


def test_roles_are_known_in_any_case_and_the_developer_is_the_system() -> None:
    turns = [("Developer", "Be terse."), ("User", "Hi"), ("Assistant", "Hello"), ("USER", "?"), ("Model", "!")]
    read = record(messages=[{"role": role, "content": text} for role, text in turns])
    assert [m["role"] for m in read.messages] == ["system", "user", "assistant", "user", "assistant"]


# Formats


PAIR = [HI, {"role": "assistant", "content": "Hello"}]


@pytest.mark.parametrize(
    "values",
    [
        {"question": "Hi", "answer": "Hello"}, {"query": "Hi", "response": "Hello", "history": []},
        {"input": "Hi", "output": "Hello"}, {"instruction": "Hi", "context": "", "response": "Hello"},
        {"instruction": "Hi", "input": None, "output": "Hello"}, {"messages": json.dumps(PAIR)},
        {"prompt": [HI], "completion": "Hello"}, {"conversation": PAIR},
        {"instruction": "", "input": "Hi", "output": "Hello"}, {"prompt": "Hi", "completion": [PAIR[1]], "weight": 1},
    ],
)  # fmt: skip
def test_a_question_and_its_answer_go_by_many_names(values: dict[str, Any]) -> None:
    read = record(**values)
    assert list(read.messages) == PAIR and read.unused == ()


def test_a_rows_own_system_text_stands_first_and_once() -> None:
    system = {"role": "system", "content": "Be kind."}
    for name in ("system", "system_prompt"):
        assert list(record(messages=PAIR, **{name: "Be kind."}).messages) == [system, *PAIR]
    assert list(record(messages=[system, *PAIR], system="Be kind.").messages) == [system, *PAIR]
    other = record(messages=[system, *PAIR], system="Rhyme.")
    assert [m["content"] for m in other.messages] == ["Rhyme.", "Be kind.", "Hi", "Hello"]
    assert record(question="Hi", answer="Hello", system_prompt="Be kind.").messages[0] == system


def test_earlier_questions_of_alpaca_come_first() -> None:
    read = record(instruction="c", output="d", history=[["a", "b"]])
    assert [m["content"] for m in read.messages] == ["a", "b", "c", "d"]
    with pytest.raises(DamagedFileError, match="pairs"):
        record(instruction="c", output="d", history=["a"])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"prompt": "Hi", "chosen": "Hello", "rejected": "Go"}, r"DPO.*jq -c '\{prompt, completion: .chosen\}'"),
        ({"chosen": PAIR, "rejected": PAIR}, r"DPO.*jq -c '\{messages: .chosen\}'"),
        ({"prompt": "Hi", "completion": "Go", "label": False}, "KTO.*jq"),
        ({"messages": PAIR, "images": ["a.png"]}, '"images" is not learned'),
        ({"messages": PAIR, "weight": 0.5}, 'the "weight" 0.5'),
        ({"messages": PAIR, "chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs"),
        ({"messages": PAIR, "documents": [{"text": "x"}]}, "documents"),
        ({"question": "Which?", "choices": ["a", "b"], "answer": "a"}, "choices"),
        ({"input_ids": [1, 2], "labels": [1, 2]}, "tokens, not text"),
        ({"messages": [*PAIR, {"role": "assistant", "content": None, "refusal": "No."}]}, '"refusal"'),
        ({"messages": [HI, {"role": "assistant", "content": "x", "train_detail": [{"a": 1}]}]}, "train_detail"),
    ],
)  # fmt: skip
def test_what_would_change_the_meaning_is_refused_by_name(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UnsupportedError, match=f"'x.jsonl', line 7.*{says}"):
        record(**values)
    if "chosen" in values:
        with pytest.raises(InputError):
            text_record(values, "x")


@pytest.mark.parametrize(
    "field", ["weight", "train", "train_on_turn", "loss", "loss_weight", "loss_scale", "loss_mask"]
)
@pytest.mark.parametrize("none", [0, False, 0.0])
def test_a_turn_that_counts_nothing_is_not_learned(field: str, none: float) -> None:
    read = record(messages=[HI, {"role": "assistant", "content": "Wrong.", field: none}, *PAIR])
    assert read.skipped == {1} and read.unused == ()
    assert record(messages=[HI, PAIR[1] | {field: 1}]).skipped == frozenset()


@pytest.mark.parametrize(
    ("field", "value"),
    [("mask", 0), ("mask", 1), ("mask", False), ("ignore", True), ("loss_scale", 0.3), ("loss_mask", [1, 0])],
)
def test_a_mark_that_may_mean_either_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(UnsupportedError, match=f'turn 2: "{field}"'):
        record(messages=[HI, PAIR[1] | {field: value}])


@pytest.mark.parametrize("field", ["weight", "loss_weight", "loss_scale", "loss_mask", "mask"])
def test_an_example_that_counts_nothing_is_refused_by_name(field: str) -> None:
    with pytest.raises(UnsupportedError, match=f'the whole example has the "{field}" 0'):
        record(messages=PAIR, **{field: 0})


def test_other_fields_are_counted_in_the_report(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row | {"id": n, "source": "a", "empty": None} for n, row in enumerate(conversations(12))]
    rows[0]["messages"][0]["name"] = "Kim"
    file = write_jsonl(tmp_path / "d.jsonl", rows)
    prepared = prepare_conversations(options(base, file, template="chatml"))
    assert prepared.unused_fields == {"id": 12, "source": 12, "messages[].name": 1}
    assert "12 examples have them: id 12, source 12, messages[].name 1" in capsys.readouterr().err
    show_masks(options(base, file, template="chatml"), 1)
    assert "id 12, source 12" in capsys.readouterr().err
    texts = write_jsonl(tmp_path / "t.jsonl", [{"text": "a line", "url": "x"}])
    assert [example.unused for example in read_texts([texts])] == [("url",)]


def test_a_programming_language_is_not_a_language_of_the_text(tmp_path: Path) -> None:
    answer = "This function adds two numbers and gives the sum back to you."
    rows = [{"prompt": "What does it do?", "completion": answer, "lang": lang} for lang in ("python", "go", "en-US")]
    file = write_jsonl(tmp_path / "d.jsonl", rows)
    assert [(e.lang, e.unused) for e in read_conversations([file])] == [
        ("en", ("lang",)), ("en", ("lang",)), ("en-US", ()),
    ]  # fmt: skip


# {% generation %}


@pytest.mark.parametrize("name", TAGGED_TEMPLATES)
def test_what_a_templates_generation_tag_holds_is_learned(name: str) -> None:
    template, expected = TAGGED_TEMPLATES[name]
    turns = [("user", "Hi"), ("assistant", "Hello"), ("user", "?"), ("assistant", "Yes.")]
    read = record(messages=[{"role": role, "content": text} for role, text in turns])
    assert spans(read, template) == expected


def test_a_call_in_both_of_openais_spellings_is_one_call() -> None:
    def turn(name: str) -> dict[str, Any]:
        call = {"name": "seats", "arguments": '{"floor": 2}'}
        return {"role": "assistant", "content": None, "function_call": {**call, "name": name},
                "tool_calls": [{"id": "c", "type": "function", "function": call}]}  # fmt: skip

    asked = {"role": "user", "content": "Any free seats?"}
    record = conversation_record({"messages": [asked, turn("seats")]}, "line 1")
    assert [call["function"]["name"] for call in record.messages[1]["tool_calls"]] == ["seats"]
    with pytest.raises(UnsupportedError, match="different calls"):
        conversation_record({"messages": [asked, turn("rooms")]}, "line 1")
