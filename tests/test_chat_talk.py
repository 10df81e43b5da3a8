"""A conversation at work: what the model is sent, what is kept of it, and what the commands do to it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serve.chat.opening import Desk, Opening, Setup
from serve.chat.sessions import Archive, Keeper
from serve.chat.talk import Chat
from serve.chat.terminal import toolbar, turn
from slm.errors import EngineDiedError, InputError, SlmError, UnknownNameError
from slm.joints import SamplingOptions
from tests.tiny_chat import ScriptedTalker
from tests.tiny_pointing import LineIndex

SAMPLING = SamplingOptions(max_tokens=10, temperature=0.5)


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    opened = Archive(tmp_path / "sessions.sqlite")
    yield opened
    opened.close()


def chat_with(talker: ScriptedTalker, archive: Archive | None = None, index: LineIndex | None = None) -> Chat:
    setup = Setup("tiny", index="handbook" if index else None)
    opening = Opening(setup, lambda wanted, _: Desk(wanted, talker, index if wanted.index else None))
    opening.desk()
    return Chat(opening, Keeper(archive, print), "base", SAMPLING, interactive=True)


def contents(talker: ScriptedTalker, number: int = -1) -> list[str]:
    return [f"{message['role'][0]}:{message['content']}" for message in talker.sent[number]]


def test_system_text_earlier_turns_and_documents_are_sent_together() -> None:
    talker = ScriptedTalker([["Ten ", "days."], ["Yes."], ["Here."]])
    talk = chat_with(talker, index=LineIndex())
    turn(talk, "/system Be brief.")
    turn(talk, "How many days?")
    turn(talk, "Really?")
    assert contents(talker) == ["s:Be brief.", "u:How many days?", "a:Ten days.", "u:[1] Ten days. Really?"]
    turn(talk, "/rag off")
    turn(talk, "Where?")
    assert contents(talker)[-3:] == ["u:Really?", "a:Yes.", "u:Where?"]


def test_the_user_is_told_before_old_turns_are_left_out(capsys: pytest.CaptureFixture[str], archive: Archive) -> None:
    talker = ScriptedTalker([["a" * 40]] * 8, context=210)
    talk = chat_with(talker, archive)
    for n in range(4):
        turn(talk, f"{n}" * 20)
    seen = capsys.readouterr().err
    assert "the context is nearly full" in seen and "not sent" not in seen and len(contents(talker)) == 7
    turn(talk, "4" * 20)
    assert "the context of 210 tokens is full: 2 questions from the beginning" in capsys.readouterr().err
    assert [text[2] for text in contents(talker)] == ["2", "a", "3", "a", "4"]
    assert archive.latest() and len(archive.exchanges(1)) == 5 == len(talk.exchanges)
    turn(talk, "/stats")
    assert "left out of what is sent: 2" in capsys.readouterr().err
    for n in range(5, 8):  # and from then on without a word
        turn(talk, f"{n}" * 20)
    assert "not sent" not in capsys.readouterr().err and talk.first > 2


@pytest.mark.parametrize("break_off", [KeyboardInterrupt(), EngineDiedError("the process ended")])
def test_what_was_said_before_an_answer_broke_off_is_kept(
    archive: Archive, break_off: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    talker = ScriptedTalker([["Ten d", break_off], ["More."]], context=4096)
    talk = chat_with(talker, archive)
    turn(talk, "How many?")
    assert "stopped]" in capsys.readouterr().err or isinstance(break_off, SlmError)
    (exchange,) = archive.exchanges(1)
    assert exchange.answer == "Ten d" and exchange.facts["stopped"] is True
    counted = (exchange.facts.get("prompt_tokens", 0), exchange.facts.get("completion_tokens", 0))
    assert counted == ((9, 5) if isinstance(break_off, KeyboardInterrupt) else (0, 0))
    assert talk.used == sum(counted)
    turn(talk, "Go on.")
    assert contents(talker) == ["u:How many?", "a:Ten d", "u:Go on."]


def test_ctrl_c_while_an_answer_is_being_kept_does_nothing(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = chat_with(ScriptedTalker([["Ten."]]), archive)
    keep = Archive.answered

    def interrupted(self: Archive, *arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        keep(self, *arguments)

    monkeypatch.setattr(Archive, "answered", interrupted)
    before = signal.getsignal(signal.SIGINT)
    turn(talk, "How many?")
    assert archive.exchanges(1)[0].answer == "Ten." and signal.getsignal(signal.SIGINT) is before


def test_the_question_is_on_disk_before_it_is_answered(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    talker = ScriptedTalker([["Ten."]])
    seen: list[Any] = []
    count = talker.chat

    def look(*arguments: Any) -> Any:
        seen.extend((e.question, e.answer) for e in Archive(archive.path).exchanges(1))
        return count(*arguments)

    monkeypatch.setattr(talker, "chat", look)
    turn(chat_with(talker, archive), "How many?")
    assert seen == [("How many?", None)]


def test_retry_keeps_the_old_answer_until_there_is_another_and_takes_another_seed(archive: Archive) -> None:
    talker = ScriptedTalker([["One."], [KeyboardInterrupt()], ["Two."]])
    talk = chat_with(talker, archive)
    turn(talk, "How many?")
    turn(talk, "/retry")
    assert archive.exchanges(1)[0].answer == "One."
    turn(talk, "/retry")
    assert [(e.question, e.answer) for e in archive.exchanges(1)] == [("How many?", "Two.")]
    assert contents(talker) == ["u:How many?"] and [s.seed for s in talker.samplings] == [0, 1, 2]


def test_edit_and_undo_change_what_was_asked(archive: Archive) -> None:
    talker = ScriptedTalker([["One."], ["Two."], ["Three."]])
    talk = chat_with(talker, archive)
    turn(talk, "first")
    turn(talk, "second")
    turn(talk, "/edit other")
    assert contents(talker) == ["u:first", "a:One.", "u:other"]
    assert [e.question for e in archive.exchanges(1)] == ["first", "other"]
    turn(talk, "/undo")
    assert [e.question for e in talk.exchanges] == ["first"] == [e.question for e in archive.exchanges(1)]


def test_edit_alone_puts_the_question_back_into_the_prompt() -> None:
    talk = chat_with(ScriptedTalker([["One."], ["Two."]]))
    talk.drawn = True
    turn(talk, "first")
    turn(talk, "/edit")
    assert talk.prefill == "first"
    talk.drawn = False
    turn(talk, "changed")
    assert [e.question for e in talk.exchanges] == ["changed"]


def test_sessions_are_named_left_and_gone_on_with(archive: Archive, capsys: pytest.CaptureFixture[str]) -> None:
    talker = ScriptedTalker([["One."], ["Two."], ["Three."]])
    talk = chat_with(talker, archive)
    for line in (
        "/system Be brief.",
        "How far is Osaka?",
        "/save trip",
        "/clear",
        "/system off",
        "Hello",
        "/load trip",
    ):
        turn(talk, line)
    shown = capsys.readouterr()
    assert "session trip: 1 question" in shown.err and shown.out.endswith("One.\n")
    turn(talk, "And back?")
    assert contents(talker) == ["s:Be brief.", "u:How far is Osaka?", "a:One.", "u:And back?"]
    turn(talk, "/sessions osaka")
    (row,) = capsys.readouterr().err.splitlines()[1:]
    assert row.startswith("trip  ") and row.endswith("How far is Osaka? One.")
    assert [e.question for e in archive.exchanges(2)] == ["Hello"]


def test_a_question_without_an_answer_is_pointed_out(archive: Archive, capsys: pytest.CaptureFixture[str]) -> None:
    archive.asked(archive.begin("tiny", "", "killed"), "How many?")
    talk = chat_with(ScriptedTalker([["Ten."]]), archive)
    turn(talk, "/load killed")
    assert "/retry asks it again" in capsys.readouterr().err
    turn(talk, "/retry")
    assert archive.exchanges(1)[0].answer == "Ten."


def test_export_writes_both_forms_and_over_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talk = chat_with(ScriptedTalker([["One."]]))
    turn(talk, "first")
    turn(talk, f"/export {tmp_path}/a.md")
    turn(talk, f"/export {tmp_path}/a.json")
    assert (tmp_path / "a.md").read_text().startswith("# first\n\nModel: ")
    assert json.loads((tmp_path / "a.json").read_text())["exchanges"][0]["answer"] == "One."
    turn(talk, f"/export {tmp_path}/a.md")
    assert "is there already" in capsys.readouterr().err


def test_settings_are_checked_and_used(capsys: pytest.CaptureFixture[str]) -> None:
    talker = ScriptedTalker([["One."]])
    talk = chat_with(talker)
    for line in ("/set temperature 0", "/set max-tokens 7", "/set top_p 2", "/set seed x", "/set nothing 1", "/set"):
        turn(talk, line)
    said = capsys.readouterr().err
    assert "top_p is a number from 1e-09 to 1 (found: 2)" in said and "seed is a whole number" in said
    assert "unknown setting 'nothing'" in said and "max_tokens 7\n" in said
    turn(talk, "first")
    assert talker.samplings == [replace(SAMPLING, temperature=0.0, max_tokens=7)]


def test_sources_can_be_read_again_also_after_the_session_was_left(
    archive: Archive, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = chat_with(ScriptedTalker([["Ten [1]."]]), archive, LineIndex())
    for line in ("How many?", "/save here", "/clear", "/sources", "/load here"):
        turn(talk, line)
    capsys.readouterr()
    turn(talk, "/sources")
    assert capsys.readouterr().err == "* 1. Trips > Hotels (trips.md)\n  2. 会議室 > 取り消し (rooms.md)\n"
    turn(talk, "/sources 2")
    assert "鍵は総務にあります。" in capsys.readouterr().err
    turn(talk, "/sources 3")
    assert "unknown source '3'; known: 1, 2" in capsys.readouterr().err


def test_the_toolbar_says_who_answers_from_what_and_how_full_the_context_is(archive: Archive) -> None:
    talk = chat_with(ScriptedTalker([["a" * 60]], context=200), archive, LineIndex())
    assert toolbar(talk) == "scripted · base · context 0% of 200 · handbook by the model"
    turn(talk, "q" * 20)
    turn(talk, "/save trip")
    assert toolbar(talk) == "scripted · base · context 47% of 200 · handbook by the model · session trip"
    talk.wanted = "auto"
    talk.exchanges[-1].facts |= {"adapter": "ja", "reason": "Japanese letters"}
    assert "auto: ja (Japanese letters)" in toolbar(talk)


def test_where_nothing_is_kept_the_commands_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    talk = chat_with(ScriptedTalker([]))
    for line in ("/save a", "/load a", "/sessions"):
        turn(talk, line)
    assert capsys.readouterr().err.count("Start without --no-save.") == 3 and "not saved" in toolbar(talk)


def test_what_cannot_be_opened_leaves_the_chat_as_it_was() -> None:
    closed: list[str] = []

    def opened(setup: Setup, stack: ExitStack) -> Desk:
        stack.callback(closed.append, setup.model)
        if setup.model == "gone":
            raise UnknownNameError("model", "gone", ["tiny"])
        return Desk(setup, ScriptedTalker([["One."]], name=setup.model))

    talk = Chat(Opening(Setup("tiny"), opened), Keeper(None, print), "base", SAMPLING, interactive=True)
    turn(talk, "/model gone")
    assert closed == ["gone"] and talk.opening.desk().talker.name == "tiny"
    turn(talk, "/model other")
    assert closed == ["gone", "tiny"] and talk.opening.desk().talker.name == "other"
    talk.opening.close()
    assert closed == ["gone", "tiny", "other"]


def test_an_error_in_a_script_ends_it_and_a_person_may_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    talk = chat_with(ScriptedTalker([]))
    turn(talk, "/set x 1")
    assert "error: unknown setting" in capsys.readouterr().err
    talk.interactive = False
    with pytest.raises(InputError):
        turn(talk, "/set x 1")
