"""What the chat tells beside answers: who gave one and why, what is left of the context, who reads documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import wcwidth

from serve.chat import acts, terminal
from serve.chat.editor import LineReader
from serve.chat.opening import Desk, Opening, Setup
from serve.chat.sessions import Archive, Keeper
from serve.chat.talk import Chat
from serve.chat.talker import LocalTalker, Talker
from serve.chat.terminal import toolbar, turn
from serve.engine.engine import Engine
from slm.errors import EngineDiedError
from slm.joints import Reader, SamplingOptions
from tests.test_chat_talk import archive, contents
from tests.tiny_chat import ScriptedTalker
from tests.tiny_engine import Files, engine, files
from tests.tiny_pointing import LineIndex, tiny_reader

SAMPLING = SamplingOptions(max_tokens=5, temperature=0.5)
FIXTURES = (archive, engine, files)  # pytest looks for them in this module


def chat_with(
    talker: Talker, archive: Archive | None = None, *, index: LineIndex | None = None, reader: Reader | None = None,
    adapters: dict[str, Path] | None = None,
) -> Chat:  # fmt: skip
    setup = Setup("tiny", adapters or {}, "handbook" if index else None)
    opening = Opening(setup, lambda wanted, _: Desk(wanted, talker, index, reader))
    opening.desk()
    return Chat(opening, Keeper(archive, print), "auto" if adapters else "base", SAMPLING, interactive=True)


# --- who answered -----------------------------------------------------------------------------------------------


def test_an_answer_says_which_language_chose_its_adapter(
    engine: Engine, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = chat_with(LocalTalker(engine), adapters={"en": files.a, "ja": files.b})
    turn(talk, "日本の首都はどこですか。")
    assert "[ja (100% of the text is in Japanese script) · " in capsys.readouterr().err
    assert "· auto: ja (100% of the text is in Japanese script) ·" in toolbar(talk)
    turn(talk, "/adapter en")
    turn(talk, "もう一度")
    assert "[en · " in capsys.readouterr().err


def test_an_answer_of_one_token_is_said_to_be_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    turn(chat_with(ScriptedTalker([["a"]])), "Which?")
    assert "· 1 token · " in capsys.readouterr().err


def test_a_session_says_what_answered_it_and_is_not_here(archive: Archive, capsys: pytest.CaptureFixture[str]) -> None:
    number = archive.begin("tiny", "", "old")
    for who in ("base", None, "ja", "reader"):
        facts = {"adapter": who, **({"sources": [], "reader": True} if who == "reader" else {})}
        archive.answered(archive.asked(number, "q"), "a", facts)
    turn(chat_with(ScriptedTalker([]), archive), "/load old")
    said = capsys.readouterr().err
    assert "ja answered there and is not loaded: /adapter ja=FILE" in said
    assert "some answers were from documents: /rag INDEX" in said
    turn(chat_with(ScriptedTalker([]), archive, index=LineIndex(), adapters={"ja": Path("x")}), "/load old")
    assert "not loaded" not in (said := capsys.readouterr().err) and "/rag" not in said


@pytest.mark.parametrize("model", ["tiny at http://127.0.0.1:9", "other"])
def test_a_session_with_another_model_says_how_to_go_on_with_that(
    model: str, archive: Archive, capsys: pytest.CaptureFixture[str]
) -> None:
    archive.answered(archive.asked(archive.begin(model, "", "old"), "q"), "a", {})
    turn(chat_with(ScriptedTalker([]), archive), "/load old")
    said = capsys.readouterr().err
    assert f"it was held with {model}" in said
    assert ("; slm chat --url http://127.0.0.1:9 goes there" in said) == (" at " in model)
    assert ("; /model other goes on with that" in said) == (model == "other")


# --- what is sent -----------------------------------------------------------------------------------------------


def test_equal_questions_without_an_answer_hide_nothing_that_was_said() -> None:
    """Where nothing is kept, two of them are equal in all that they hold."""
    gone = EngineDiedError("the process ended")
    talker = ScriptedTalker([[gone], ["One."], ["Two."]])
    talk = chat_with(talker)
    for line in ("Again?", "first", "Again?"):
        turn(talk, line)
    assert contents(talker) == ["u:first", "a:One.", "u:Again?"]
    turn(talk, "/undo")
    assert [exchange.answer for exchange in talk.exchanges] == [None, "One."]


def test_the_context_in_use_is_that_of_what_is_there(archive: Archive) -> None:
    talk = chat_with(ScriptedTalker([["a" * 10], ["b" * 30]], context=100), archive)
    for line in ("q" * 10, "q" * 10):
        turn(talk, line)
    assert "context 60% of 100" in toolbar(talk)
    turn(talk, "/undo")
    assert "context 20% of 100" in toolbar(talk)
    turn(talk, "/clear")
    assert "context 0% of 100" in toolbar(talk)
    turn(talk, "/load 1")
    assert "context 20% of 100" in toolbar(talk)


def test_a_reader_says_once_that_it_takes_neither_system_text_nor_earlier_turns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    alone = "the reader takes no "
    talk = chat_with(ScriptedTalker([["Ten."]]), index=LineIndex(), reader=tiny_reader([3, 2, 1, 0]))
    turn(talk, "Where?")
    assert alone not in capsys.readouterr().err
    turn(talk, "And there?")
    said = capsys.readouterr().err
    assert f"[{alone}earlier turns; /reader model does]" in said
    turn(talk, "And now?")
    assert alone not in capsys.readouterr().err
    turn(talk, "/clear")
    turn(talk, "/system Be brief.")
    turn(talk, "Where?")
    assert f"[{alone}system text; /reader model does]" in capsys.readouterr().err


# --- commands ---------------------------------------------------------------------------------------------------


def test_the_models_that_are_listed_are_others_that_can_talk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLM_HOME", str(tmp_path))
    for name, what in (("tiny", "model"), ("multilingual-e5-small", "embedder"), ("distilgpt2", "model")):
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(f'{{"kind": "model", "name": "{name}", "what": "{what}", "files": {{}}}}')
    talk = chat_with(ScriptedTalker([]))
    turn(talk, "/model")
    assert capsys.readouterr().err == "now: tiny; also: distilgpt2\n"
    assert acts.arguments_of(talk, "model", "") == ["distilgpt2"]


def test_a_retry_without_chance_is_said_to_hardly_differ(capsys: pytest.CaptureFixture[str]) -> None:
    """It may: what is in the cache by now is computed in batches of another size."""
    talk = chat_with(ScriptedTalker([["One."], ["One."]]))
    for line in ("first", "/set temperature 0", "/retry"):
        turn(talk, line)
    assert "the answer will hardly differ" in capsys.readouterr().err


def test_rows_of_sessions_fit_the_terminal(archive: Archive, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("東京の" * 30, "word " * 40):
        archive.asked(archive.begin("tiny", ""), text)
    acts.list_sessions(archive, "", acts.say, columns=60)
    rows = capsys.readouterr().err.splitlines()
    assert len(rows) == 2 and all(50 < wcwidth.wcswidth(row) <= 59 and row.endswith("…") for row in rows)


class _Typed(LineReader):
    """What somebody types; a KeyboardInterrupt is Ctrl-C at an empty prompt, "" what was dropped with it."""

    def __init__(self, *lines: str | type[BaseException]) -> None:
        self.lines: Iterator[str | type[BaseException]] = iter(lines)
        self.defaults: list[str] = []

    def read(self, prompt: str, default: str = "") -> str:
        self.defaults.append(default)
        line = next(self.lines, EOFError)
        if isinstance(line, str):
            return line
        raise line


def loop(talk: Chat, *lines: str | type[BaseException]) -> _Typed:
    typed = _Typed(*lines)
    terminal._loop(talk, typed)
    return typed


@pytest.mark.parametrize("dropped", ["", KeyboardInterrupt])
def test_an_edit_that_is_given_up_replaces_nothing(dropped: str | type[BaseException], archive: Archive) -> None:
    talk = chat_with(ScriptedTalker([["One."], ["Two."]]), archive)
    turn(talk, "first")
    talk.replacing, talk.prefill = talk.exchanges[-1], "first"
    typed = loop(talk, dropped, "second")
    assert typed.defaults[0] == "first"
    assert [exchange.question for exchange in talk.exchanges] == ["first", "second"]


def test_only_two_ctrl_c_in_a_row_at_an_empty_prompt_leave(capsys: pytest.CaptureFixture[str]) -> None:
    typed = loop(chat_with(ScriptedTalker([])), KeyboardInterrupt, "", KeyboardInterrupt, "/help", KeyboardInterrupt)
    assert len(typed.defaults) == 6  # the sixth is the end of the input
    assert capsys.readouterr().err.count("Ctrl-C again") == 3
    typed = loop(chat_with(ScriptedTalker([])), KeyboardInterrupt, KeyboardInterrupt, "never")
    assert len(typed.defaults) == 2
