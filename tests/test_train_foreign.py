"""Rows that other trainers, exporters and services write: their meaning is kept, or they are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from slm.errors import DamagedFileError, UnsupportedError
from train.data.records import Record, conversation_record, text_record

ASKED, ANSWERED = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def record(**values: Any) -> Record:
    return conversation_record(values, "f.jsonl:1")


def contents(found: Record) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in found.messages]


@pytest.mark.parametrize("name", ["weight", "train", "trainable", "learn", "loss"])
def test_a_turn_that_is_not_to_be_learned_is_not(name: str) -> None:
    found = record(messages=[ASKED, {**ANSWERED, name: False}, ASKED, {**ANSWERED, name: True}])
    assert found.skipped == {1} and found.unused == ()


@pytest.mark.parametrize(
    "mark",
    [{"masked": True}, {"is_trained": False}, {"supervised": 0}, {"noLoss": True}, {"label": 0}, {"turn-weight": 0.5}],
)
def test_a_mark_on_a_turn_whose_name_speaks_of_learning_is_refused_and_not_counted(mark: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=f'turn 2: "{next(iter(mark))}".*whether it is learned'):
        record(messages=[ASKED, {**ANSWERED, **mark}])


@pytest.mark.parametrize(
    "mark",
    [{"train": False}, {"weight": 0}, {"weight": 0.5}, {"loss": False}, {"mask": 1}, {"masked": True}, {"label": 0}],
)
def test_a_part_of_a_turn_that_is_not_to_be_learned_is_refused_and_not_learned(mark: dict[str, Any]) -> None:
    parts = [{"type": "text", "text": "Hel", **mark}, {"type": "text", "text": "lo", "train": True}]
    name = next(iter(mark))
    with pytest.raises(UnsupportedError, match=f'turn 2, part 1 of the content: .*("{name}"|marked as not learned)'):
        record(messages=[ASKED, {"role": "assistant", "content": parts}])
    function = {"name": "seats", "arguments": {}}
    for marked in ({"function": function, **mark}, {"function": {**function, **mark}}):
        with pytest.raises(UnsupportedError, match="turn 2, a call: "):
            record(messages=[ASKED, {"role": "assistant", "content": None, "tool_calls": [marked]}])


def test_parts_that_are_learned_with_their_turn_are_read_and_their_other_fields_counted() -> None:
    def parts(*texts: str, **more: Any) -> list[dict[str, Any]]:
        return [{"type": "text", "text": text, **more} for text in texts]

    asked = {"role": "user", "content": parts("Hi", weight=0, cache_control={"type": "ephemeral"})}
    found = record(messages=[asked, {"role": "assistant", "content": parts("Hel", "lo", train=True, weight=1)}])
    assert contents(found) == [("user", "Hi"), ("assistant", "Hello")] and found.skipped == frozenset()
    assert found.unused == ("messages[].content[].cache_control",)
    with pytest.raises(UnsupportedError, match=r"turn 1, part 1 of the content: .*turn of the user"):
        record(messages=[{"role": "user", "content": parts("Hi", train=True)}, ANSWERED])


@pytest.mark.parametrize("mark", [{"sample_weight": 0.2}, {"is_train": False}, {"trainable": 0}])
def test_a_mark_on_a_row_whose_name_speaks_of_learning_is_refused(mark: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=f'"{next(iter(mark))}".*whether the example is learned'):
        record(messages=[ASKED, ANSWERED], **mark)


@pytest.mark.parametrize("value", ["true", "False", " FALSE ", "no", "0", "0.0", "1e-1", [0, 1], ["0"]])
def test_a_mark_spelled_as_text_or_in_a_list_is_refused_as_any_other(value: Any) -> None:
    for name in ("masked", "train", "is_trained"):
        with pytest.raises(UnsupportedError, match=f'turn 2: "{name}"'):
            record(messages=[ASKED, {**ANSWERED, name: value}])
    for name in ("masked", "train", "weight", "sample_weight"):
        with pytest.raises(UnsupportedError, match=f'the "{name}"|"{name}" seems'):
            record(messages=[ASKED, ANSWERED], **{name: value})


@pytest.mark.parametrize("row", [{"text": "A line."}, {"prompt": "Hi", "completion": " there"}])
def test_a_running_text_is_refused_for_the_marks_that_a_conversation_is(row: dict[str, Any]) -> None:
    for mark in ({"weight": 0}, {"train": False}, {"train": "false"}, {"loss_mask": [0, 1]}, {"mask": 1},
                 {"sample_weight": 0.5}, {"images": ["a.png"]}, {"input_ids": [1, 2]}):  # fmt: skip
        for read in (text_record, conversation_record):
            with pytest.raises(UnsupportedError, match=next(iter(mark)) if "input_ids" not in mark else "tokens"):
                read(row | mark, "f.jsonl:1")
    found = text_record(row | {"weight": 1, "loss_mask": None, "url": "x"}, "f.jsonl:1")
    assert found.unused == ("url",) and found.text


@pytest.mark.parametrize("name", ["system", "instructions", "input", "context", "reasoning", "instruction", "choices"])
def test_what_a_running_text_would_lose_is_refused_unless_the_prompt_has_it(name: str) -> None:
    row = {"prompt": "Hi", "completion": " there"}
    with pytest.raises(UnsupportedError, match=name):
        text_record({**row, name: "Be brief."}, "f.jsonl:1")
    assert name == "choices" or text_record({**row, name: "Hi"}, "f.jsonl:1").unused == ()
    assert text_record({"text": "A line.", name: "Be brief."}, "f.jsonl:1").unused == (name,)


def test_names_that_speak_of_something_else_are_only_counted() -> None:
    found = record(messages=[ASKED, {**ANSWERED, "label": "greeting"}], loss=2.3, training_set="a", restraint=1)
    assert found.unused == ("loss", "training_set", "restraint", "messages[].label")


@pytest.mark.parametrize(
    "name", ["system", "system_prompt", "system_message", "system_instruction", "developer", "instructions"]
)
@pytest.mark.parametrize("value", ["Be brief.", [{"type": "text", "text": "Be brief."}], [{"text": "Be brief."}]])
def test_the_systems_text_reaches_the_model_by_every_name_and_in_parts(name: str, value: Any) -> None:
    assert contents(record(**{name: value, "prompt": "Hi", "response": "Hello"}))[0] == ("system", "Be brief.")
    assert contents(record(**{name: value, "messages": [ASKED, ANSWERED]}))[0] == ("system", "Be brief.")


def test_two_system_texts_are_refused_and_the_same_one_twice_is_one() -> None:
    with pytest.raises(UnsupportedError, match="several system texts: system, instructions"):
        record(system="A", instructions="B", messages=[ASKED, ANSWERED])
    assert len(record(system="A", system_prompt="A", messages=[ASKED, ANSWERED]).messages) == 3


@pytest.mark.parametrize("name", ["reasoning", "thinking", "reasoning_content"])
def test_a_thought_beside_an_answer_is_learned_as_one_in_a_turn_is(name: str) -> None:
    paired = record(question="2+2?", answer="4", **{name: "Add."})
    turned = record(messages=[{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4", name: "Add."}])
    assert contents(paired) == contents(turned) and "<think>\nAdd.\n</think>" in contents(paired)[1][1]


def test_a_second_thought_is_refused_and_the_same_one_twice_is_one() -> None:
    said: dict[str, Any]
    for said in ({"content": "x</think>A", "thinking": "Add."}, {"thinking": "Add.", "reasoning": "Multiply."}):
        with pytest.raises(UnsupportedError, match=r"turn 2: there are several thoughts: .*thinking"):
            record(messages=[ASKED, {**ANSWERED, **said}])
        with pytest.raises(UnsupportedError, match="several thoughts"):
            record(
                **{"question": "Hi", "answer": said.get("content", "Hello"), "think": "No."} | said | {"content": None}
            )
    whole = "<think>\nAdd.\n</think>\n\nHello"
    for alike in ({"content": whole, "thinking": "Add.\n"}, {"thinking": "Add.", "reasoning": "Add.", "think": None}):
        found = record(messages=[ASKED, {**ANSWERED, **alike}])
        assert contents(found)[1][1] == whole and found.unused == ()


def test_a_second_question_is_refused_unless_one_holds_the_other() -> None:
    with pytest.raises(UnsupportedError, match='both "instruction" and "prompt" ask'):
        record(instruction="Be brief.", prompt="Where is the key?", response="Drawer 6.")
    whole = record(instruction="Where is it?", prompt="### Instruction:\nWhere is it?\n", response="There.")
    assert contents(whole)[0] == ("user", "Where is it?") and whole.unused == ()


def test_a_thought_in_a_channel_of_its_own_is_not_learned_as_an_answer() -> None:
    with pytest.raises(UnsupportedError, match="turn 2: the turn is of the channel 'analysis'"):
        record(messages=[ASKED, {**ANSWERED, "channel": "analysis"}, {**ANSWERED, "channel": "final"}])
    assert record(messages=[ASKED, {**ANSWERED, "channel": "final"}]).unused == ()


def test_turns_in_columns_and_in_the_words_of_other_services_are_read() -> None:
    plain = contents(record(messages=[ASKED, ANSWERED]))
    assert contents(record(messages={"role": ["user", "assistant"], "content": ["Hi", "Hello"]})) == plain
    assert (
        contents(record(messages=[{"role": "USER", "message": "Hi"}, {"role": "Chatbot", "message": "Hello"}])) == plain
    )
    with pytest.raises(DamagedFileError, match="must be a list of turns"):
        record(messages={"role": ["user", "assistant"], "content": ["Hi"]})


@pytest.mark.parametrize("none", [None, "", []])
def test_a_column_that_is_null_or_empty_hides_no_other(none: Any) -> None:
    plain = contents(record(messages=[ASKED, ANSWERED]))
    turns = [
        {"role": none, "from": "human", "content": none, "value": "Hi"},
        {"role": "assistant", "content": none, "text": "Hello"},
    ]
    for found in (
        record(messages=none, conversations=turns, chosen=None, rejected=None, input_ids=None),
        record(messages=none, prompt="Hi", completion="Hello", conversation=none),
        record(instruction="Hi", output=none, response="Hello", text=none),
        record(prompt=none, question="Hi", completion=none, answer="Hello"),
    ):
        assert contents(found) == plain and found.unused == ()
    assert record(messages=none, text="A line.").text == "A line."
    assert text_record({"text": none, "prompt": "Hi", "completion": " there"}, "x").text == "Hi there"
    assert text_record({"text": "A line.", "prompt": none, "completion": none}, "x").text == "A line."


def test_columns_that_are_all_null_are_named_as_before_and_a_call_needs_no_text() -> None:
    for values, says in (
        ({"messages": None}, '"messages" must be a list of turns'),
        ({"instruction": "Q", "output": None}, '"output" must be text .is null'),
        ({"messages": [{"role": "user", "value": None}, ANSWERED]}, 'no text in "value"'),
    ):
        with pytest.raises(DamagedFileError, match=says):
            record(**values)
    call = {"type": "function", "function": None, "name": "seats", "arguments": None, "parameters": {"floor": 2}}
    turn = record(messages=[ASKED, {"role": "assistant", "content": None, "tool_calls": [call]}]).messages[1]
    assert turn["content"] == "" and turn["tool_calls"][0]["function"] == {"name": "seats", "arguments": {"floor": 2}}


def test_the_preferences_of_openai_are_named_and_the_hint_keeps_the_question() -> None:
    with pytest.raises(UnsupportedError, match="preference data") as raised:
        record(input={"messages": [ASKED]}, preferred_output=[ANSWERED], non_preferred_output=[ANSWERED])
    assert "{messages: (.input.messages + .preferred_output)}" in str(raised.value.hint)
