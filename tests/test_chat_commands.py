"""What a typed line is, what a model is sent of a conversation, and what is exported of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.chat.acts import paths_like
from serve.chat.commands import COMMANDS, TypedLine, help_text, near_command, typed
from serve.chat.conversation import Exchange, fitting, messages_of, room_for
from serve.chat.export import as_json, as_markdown
from slm.errors import InputError
from slm.joints import Message

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("line", "command", "text"),
    [
        ("/help", "help", ""),
        ("/model  gemma-3-270m ", "model", "gemma-3-270m"),
        ("/exit", "quit", ""),
        ("/reset", "clear", ""),
        ("/set temperature 0.2", "set", "temperature 0.2"),
        ("/system Be brief.\nAlways.", "system", "Be brief.\nAlways."),
        ("/system\nBe brief.", "system", "Be brief."),
        ("/etc/hosts is what?", "", "/etc/hosts is what?"),
        ("/usr", "", "/usr"),
        ("/Help", "", "/Help"),
        ("//help", "", "//help"),
        ("/", "", "/"),
        (" /help", "", "/help"),
        ("/help\nme with this", "", "/help\nme with this"),
        ("what is /help?", "", "what is /help?"),
    ],
)
def test_only_known_commands_are_commands(line: str, command: str, text: str) -> None:
    assert typed(line) == TypedLine(command, text)


@pytest.mark.parametrize(
    ("line", "said"),
    [("/clear the table please", "takes nothing"), ("/load", "needs NAME"), ("/export  ", "needs FILE")],
)
def test_an_argument_too_many_or_too_few_is_told(line: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        typed(line)


def test_a_slip_is_pointed_out_and_a_path_is_not() -> None:
    assert near_command("/hlep") == "/help" and near_command("/sesions x") == "/sessions"
    assert near_command("/xyzzy") == near_command("/Help") == near_command("/") == "/help"
    assert near_command("/etc/hosts is what?") is None and near_command("/usr is what?") is None


def test_help_names_every_command_on_rows_that_fit_and_so_does_the_guide() -> None:
    guide = (ROOT / "docs" / "chat.md").read_text(encoding="utf-8")
    for command in COMMANDS:
        assert f"\n/{command.name}" in f"\n{help_text()}" and f"`/{command.name}" in guide
    for columns in (20, 40, 60, 100):
        assert all(len(row) < columns for row in help_text(columns).splitlines())
    assert "/quit\n  leave (also\n" in help_text(20)


def test_files_are_offered_where_a_command_takes_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("talk.md", "table.json", ".hidden"):
        (tmp_path / name).touch()
    (tmp_path / "tales").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths_like("ta") == ["table.json", "tales/", "talk.md"] and paths_like(".h") == [".hidden"]
    assert paths_like("~/tal") == ["~/tales/", "~/talk.md"] and paths_like("tales/") == []
    assert paths_like(f"{tmp_path}/tab") == [f"{tmp_path}/table.json"] and paths_like("nowhere/x") == []
    assert paths_like("~nobody-of-that-name/x") == [] and paths_like("a\0b/x") == []


# --- what a model is sent ---------------------------------------------------------------------------------------


def count(messages: Sequence[Message]) -> int:
    return sum(len(message["content"]) for message in messages)


def talk(*sizes: int) -> list[Exchange]:
    return [Exchange("q" * (size // 2), "a" * (size - size // 2)) for size in sizes]


def test_a_question_without_an_answer_is_not_sent_again() -> None:
    said = [Exchange("one", "1"), Exchange("killed"), Exchange("stopped at once", "")]
    asked: list[Message] = [{"role": "user", "content": "two"}]
    assert [m["content"] for m in messages_of("sys", said, asked)] == ["sys", "one", "1", "two"]
    assert [m["role"] for m in messages_of("", said, asked)] == ["user", "assistant", "user"]


def test_old_exchanges_go_first_and_room_is_made_for_more_than_one() -> None:
    asked: list[Message] = [{"role": "user", "content": "?" * 10}]
    everything = fitting("s" * 10, talk(20, 20, 20, 20), asked, 0, count, 100)
    assert everything.first == 0 and everything.tokens == 100
    less = fitting("s" * 10, talk(20, 20, 20, 20), asked, 0, count, 99)
    assert less.first == 2 and less.tokens == 60 and less.messages[0]["content"] == "s" * 10


def test_what_was_left_out_stays_left_out() -> None:
    sent = fitting("", talk(20, 20, 20), [], 2, count, 1000)
    assert sent.first == 2 and sent.tokens == 20


def test_a_question_that_is_too_long_alone_is_sent_alone() -> None:
    asked: list[Message] = [{"role": "user", "content": "?" * 500}]
    sent = fitting("", talk(20, 20), asked, 0, count, 100)
    assert (sent.first, sent.messages) == (2, asked)


def test_nothing_is_left_out_where_the_room_is_unknown() -> None:
    sent = fitting("", talk(20, 20), [], 0, lambda _: 1 // 0, room_for(0, 256))
    assert sent.first == 0 and len(sent.messages) == 4


@given(st.lists(st.integers(2, 60), max_size=12), st.integers(1, 400), st.integers(0, 5))
def test_what_is_sent_fits_whatever_was_said(sizes: list[int], room: int, first: int) -> None:
    sent = fitting("sys", talk(*sizes), [{"role": "user", "content": "now"}], first, count, room)
    assert sent.first >= min(first, len(sizes)) and sent.messages[-1]["content"] == "now"
    assert sent.tokens <= room or sent.first == len(sizes)


def test_the_answer_gets_what_it_may_have_but_at_most_a_quarter() -> None:
    assert room_for(4096, 256) == 3840 and room_for(1000, 5000) == 750


# --- export -----------------------------------------------------------------------------------------------------

SOURCE = {"number": 1, "cited": True, "place": "Leave", "source": "leave.md", "quote": "Ten.", "text": "Ten days."}
SAID = [
    Exchange("How many days?", "**Ten** [1].", 1, {"adapter": "en", "sources": [SOURCE]}),
    Exchange("もう一度", "十日", 2, {"stopped": True}),
    Exchange("killed"),
]


def test_a_conversation_as_markdown() -> None:
    assert as_markdown("leave", "m", "Be brief.", SAID) == (
        "# leave\n\nModel: m\n\nSystem: Be brief.\n\n"
        "## Question 1\n\nHow many days?\n\n### Answer (en)\n\n**Ten** [1].\n\n- [1] Leave (leave.md)\n\n"
        "## Question 2\n\nもう一度\n\n### Answer\n\n十日\n\n(stopped)\n\n"
        "## Question 3\n\nkilled\n\n### Answer\n\n(no answer)\n"
    )


def test_a_conversation_as_json_is_what_an_api_takes_and_what_was_measured() -> None:
    body = json.loads(as_json("leave", "m", "Be brief.", SAID))
    assert body["messages"][:2] == [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many days?"},
    ]  # fmt: skip
    assert len(body["messages"]) == 5
    assert body["exchanges"][0]["sources"] == [SOURCE] and body["exchanges"][2]["answer"] is None


def test_the_prompt_is_there_before_anything_heavy_is_imported() -> None:
    code = """
import sys
import slm_cli, serve.cli.chat, serve.chat.acts, serve.chat.terminal, serve.chat.sessions
from serve.chat.editor import Editor
Editor(lambda: [], lambda: "")
heavy = ["numpy", "llama_cpp", "gguf", "jinja2", "pydantic", "fastapi", "httpx", "rich", "serve.engine.engine"]
print([module for module in heavy if module in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "[]\n"
