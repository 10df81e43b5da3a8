"""What a terminal shows of an answer: its text as it comes, what was said before it broke off, and its passages."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rag.answer.cite import Citations
from slm.joints import Finish, Grounded, Passage
from slm.terminal.answer import ShownAnswer, show_sources, sources_of

FINISH = Finish("stop", None, "", prompt_tokens=30, completion_tokens=5, prefill_s=0.5, decode_s=0.25)
PASSAGES = [
    Passage("Leave", "Paid leave", "Twenty days a year.", "leave.md", 0.9),
    Passage("Rooms\x1b[31m", "", "Rooms close at ten.", "rooms\x07.md", 0.8),
]


def grounded() -> Grounded:
    return Grounded([], PASSAGES, Citations(PASSAGES), lambda: [passage.text for passage in PASSAGES])


def listed(from_passages: Grounded) -> str:
    lines: list[str] = []
    show_sources(sources_of(from_passages), lines.append)
    return "\n".join(lines)


def test_an_answer_is_written_piece_by_piece_and_its_line_is_ended(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[str] = []

    def pieces() -> Iterator[str | Finish]:
        for piece in ("Twenty", " days."):
            time.sleep(0.02)
            yield piece
            seen.append(capsys.readouterr().out)
        yield FINISH

    shown = ShownAnswer().show(pieces())
    assert seen == ["Twenty", " days."] and capsys.readouterr().out == "\n"
    assert (shown.text, shown.finish) == ("Twenty days.", FINISH) and 0.01 < shown.first_s < 10


def test_what_was_said_before_an_answer_broke_off_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    def pieces() -> Iterator[str | Finish]:
        yield "Twenty"
        raise KeyboardInterrupt

    shown = ShownAnswer()
    with pytest.raises(KeyboardInterrupt):
        shown.show(pieces())
    assert (shown.text, shown.finish) == ("Twenty", None) and capsys.readouterr().out == "Twenty\n"


def test_a_silent_answer_is_taken_and_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    shown = ShownAnswer().show(["Twenty days [1].", FINISH], grounded(), silent=True)
    assert shown.text == "Twenty days [1]." and capsys.readouterr().out == ""


def test_cited_passages_are_listed_under_an_answer_with_their_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    asked = grounded()
    ShownAnswer().show(["Twenty days a", " year [1", "].", FINISH], asked)
    assert capsys.readouterr().out == "Twenty days a year [1].\n"
    assert listed(asked) == "\nSources:\n  1. Leave > Paid leave (leave.md)\n     “Twenty days a year.”"


def test_an_answer_that_cites_nothing_lists_what_it_was_given_with_visible_characters_alone() -> None:
    asked = grounded()
    ShownAnswer().show(["No idea.", FINISH], asked, silent=True)
    text = listed(asked)
    assert text.startswith("\nThe answer cites no passage. It was given these:\n  1. Leave > Paid leave (leave.md)\n")
    assert "  2. Rooms (rooms.md)" in text and not any(char in text for char in "\x1b\x07")


def test_a_source_below_the_working_folder_is_shown_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    passages = [
        Passage("A", "", "Text.", str(tmp_path / "docs" / "a.md"), 1.0),
        Passage("B", "", "Text.", "/b.md", 1.0),
    ]
    text = listed(Grounded([], passages, Citations(passages), lambda: ["", ""]))
    assert "1. A (docs/a.md)" in text and "2. B (/b.md)" in text


def test_speeds_leave_out_cached_tokens_and_the_first_token_and_are_none_when_too_short_to_tell() -> None:
    assert FINISH.timings() == {"prefill_tokens_per_s": 60.0, "decode_tokens_per_s": 16.0}
    assert Finish("stop", None, "", 30, 1, 0.0, 0.0, 10).timings() == {
        "prefill_tokens_per_s": None, "decode_tokens_per_s": None,
    }  # fmt: skip
