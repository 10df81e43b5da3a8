"""Preference data is refused in every spelling, and the command that the hint names makes what can be learned."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest

from slm.errors import DamagedFileError, UnsupportedError
from train.data.records import Record, conversation_record, text_record

HI = {"role": "user", "content": "Hi"}
PAIR = [HI, {"role": "assistant", "content": "Hello"}]


def record(**values: Any) -> Record:
    return conversation_record(values, "'x.jsonl', line 7")


ASKED: list[dict[str, Any]] = [
    {"messages": PAIR}, {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    {"instruction": "Hi", "output": "Hello"}, {"prompt": "Hi", "completion": "Hello"},
    {"prompt": "Hi", "response": "Hello"}, {"question": "Hi", "answer": "Hello"},
]  # fmt: skip
JUDGED = [{"label": True}, {"label": "True"}, {"label": 1}, {"kto_tag": True}, {"kto_tag": "true"}]
COMPARED = [
    {"rejected_response": "Go"}, {"rejected_messages": [HI, PAIR[1]]}, {"rejected": "Go"}, {"response_rejected": "Go"},
]  # fmt: skip


def by_jq(error: UnsupportedError | DamagedFileError, row: dict[str, Any]) -> list[dict[str, Any]]:
    """What the hint's own command makes of the row."""
    program = error.hint.split("jq -c '")[1].split("'")[0]
    run = subprocess.run(["jq", "-c", program], input=json.dumps(row), capture_output=True, text=True, check=True)
    return [json.loads(line) for line in run.stdout.splitlines()]


@pytest.mark.skipif(shutil.which("jq") is None, reason="runs the command that the hint names")
@pytest.mark.parametrize("mark", [*JUDGED, *COMPARED], ids=str)
@pytest.mark.parametrize("asked", ASKED, ids=lambda row: "/".join(row))
def test_preferences_in_any_spelling_are_refused_and_the_way_out_works(
    asked: dict[str, Any], mark: dict[str, Any]
) -> None:
    with pytest.raises(UnsupportedError, match="preference data") as caught:
        record(**asked, **mark)
    (row,) = by_jq(caught.value, asked | mark)
    assert list(record(**row).messages) == PAIR
    for name in mark.keys() & {"label", "kto_tag"}:
        for bad in (False, 0, "false", "0"):
            with pytest.raises(UnsupportedError, match="KTO") as caught:
                record(**asked, **{name: bad})
            assert by_jq(caught.value, asked | {name: bad}) == []


@pytest.mark.skipif(shutil.which("jq") is None, reason="runs the command that the hint names")
@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", "value": "Hello"},
         "rejected": {"from": "gpt", "value": "Go"}},
        {"messages": [HI], "chosen": "Hello", "rejected": "Go"},
        {"messages": [HI], "chosen": [PAIR[1]], "rejected": [PAIR[1]]},
        {"prompt": "Hi", "chosen": PAIR, "rejected": PAIR}, {"chosen": PAIR, "rejected": PAIR},
        {"prompt": [HI], "chosen": [PAIR[1]], "rejected": [PAIR[1]]},
        {"instruction": "Hi", "input": "", "chosen": "Hello", "rejected": "Go"},
        {"question": "Hi", "chosen": "Hello", "rejected": ""},
        {"instruction": "Hi", "input": "", "output": ["Hello", "Go"]}, {"prompt": "Hi", "completion": ["Hello", "Go"]},
        {"contents": [{"role": "user", "parts": [{"text": "H"}, {"text": "i"}]},
                      {"role": "model", "parts": [{"text": "Hello"}]}]},
        {"dialogue": PAIR}, {"rows": [{"messages": PAIR}]},
    ],
    ids=lambda row: "/".join(row),
)  # fmt: skip
def test_the_command_of_a_hint_makes_what_can_be_learned(row: dict[str, Any]) -> None:
    with pytest.raises((UnsupportedError, DamagedFileError)) as caught:
        record(**row)
    assert isinstance(caught.value, UnsupportedError | DamagedFileError)
    (made,) = by_jq(caught.value, row)
    assert list(record(**made).messages) == PAIR


def test_no_command_is_named_that_does_not_work() -> None:
    with pytest.raises(DamagedFileError, match="no known format") as caught:
        record(segments=[{"label": False, "text": "Hi"}, {"label": True, "text": "Hello"}])
    assert "jq" not in caught.value.hint and '"completion"' in caught.value.hint
    with pytest.raises(DamagedFileError, match="no known format") as caught:
        record(entries=[{"a": 1}])
    assert "jq" not in caught.value.hint


def test_a_label_that_is_no_verdict_is_only_counted() -> None:
    assert record(messages=PAIR, label="sports", rejected=None, rejected_score=0.2).unused == (
        "label",
        "rejected_score",
    )
    assert text_record({"text": "A line.", "label": 1}, "x").text == "A line."
    with pytest.raises(UnsupportedError, match="KTO"):
        text_record({"prompt": "Hi", "completion": "Hello", "label": False}, "x")
