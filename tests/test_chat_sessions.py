"""Sessions on disk: written as they are held, by several at once, killed or not; found again, and never in the way."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.chat.conversation import Exchange
from serve.chat.sessions import Archive, Keeper
from slm.errors import DamagedFileError, InputError, ResourceError, UnknownNameError, UnsupportedError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    opened = Archive(tmp_path / "data" / "sessions.sqlite")
    yield opened
    opened.close()


def held(archive: Archive, name: str, *pairs: tuple[str, str]) -> int:
    session = archive.begin("tiny", "", name)
    for question, answer in pairs:
        archive.answered(archive.asked(session, question), answer, {"adapter": "en"})
    return session


def test_a_session_comes_back_as_it_was(archive: Archive) -> None:
    session = archive.begin("tiny", "Be brief.", "trip")
    archive.answered(archive.asked(session, "どこ？\n二行目"), "大阪 🍣", {"stopped": True})
    archive.asked(session, "and then?")
    with_others = Archive(archive.path)
    saved = with_others.get("trip")
    assert (saved.id, saved.system, saved.model, saved.exchanges) == (session, "Be brief.", "tiny", 2)
    first, second = with_others.exchanges(saved.id)
    assert (first.question, first.answer, first.facts) == ("どこ？\n二行目", "大阪 🍣", {"stopped": True})
    assert (second.question, second.answer) == ("and then?", None)
    assert with_others.latest() == saved and with_others.get(str(session)) == saved
    with_others.close()


def test_nobody_else_can_read_them(archive: Archive) -> None:
    held(archive, "", ("a", "b"))
    for file in archive.path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file


_KILLED = """
import os, signal, sys
from pathlib import Path
from serve.chat.sessions import Archive
archive = Archive(Path(sys.argv[1]))
session = archive.begin("tiny", "", "killed")
for n in range(50):
    id = archive.asked(session, f"question {n}")
    if n == 37:
        os.kill(os.getpid(), signal.SIGKILL)
    archive.answered(id, f"answer {n}", {})
"""


def test_a_killed_process_loses_the_running_answer_alone(tmp_path: Path) -> None:
    path = tmp_path / "sessions.sqlite"
    done = subprocess.run([sys.executable, "-c", _KILLED, str(path)], cwd=ROOT, timeout=120)
    assert done.returncode == -signal.SIGKILL
    archive = Archive(path)
    exchanges = archive.exchanges(archive.get("killed").id)
    assert [e.question for e in exchanges] == [f"question {n}" for n in range(38)]
    assert [e.answer for e in exchanges] == [*(f"answer {n}" for n in range(37)), None]


_WRITES = """
import sys
from pathlib import Path
from serve.chat.sessions import Archive
archive = Archive(Path(sys.argv[1]))
session = archive.begin("tiny", "", sys.argv[2])
for n in range(30):
    archive.answered(archive.asked(session, f"{n}"), f"{sys.argv[2]} {n}", {})
"""


def test_processes_write_at_once_and_from_the_first_moment_on(tmp_path: Path) -> None:
    path = tmp_path / "sessions.sqlite"
    running = [subprocess.Popen([sys.executable, "-c", _WRITES, str(path), name], cwd=ROOT) for name in ("a", "b")]
    assert [process.wait(120) for process in running] == [0, 0]
    archive = Archive(path)
    for name in ("a", "b"):
        answers = [e.answer for e in archive.exchanges(archive.get(name).id)]
        assert answers == [f"{name} {n}" for n in range(30)]


def test_what_is_taken_back_or_replaced_is_not_shown_and_not_deleted(archive: Archive) -> None:
    session = archive.begin("tiny", "")
    first = archive.asked(session, "one")
    second = archive.asked(session, "two", instead_of=first)
    archive.taken_back(archive.asked(session, "three"))
    assert [e.id for e in archive.exchanges(session)] == [second]
    rows = sqlite3.connect(archive.path).execute("SELECT question, gone FROM exchange ORDER BY id").fetchall()
    assert rows == [("one", 1), ("two", 0), ("three", 1)]


def test_words_are_found_in_all_sessions_in_any_case_and_width(archive: Archive) -> None:
    held(archive, "trip", ("How much is a hotel in Osaka?", "13,000 yen"), ("thanks", "Bye"))
    held(archive, "部屋", ("会議室は？", "ＡＢＣ室です"))
    assert [row.label for row in archive.search("OSAKA yen")] == ["trip"]
    assert archive.search("osaka")[0].found == "How much is a hotel in Osaka? 13,000 yen"
    assert [row.label for row in archive.search("abc室")] == ["部屋"]
    assert archive.search("osaka 会議室") == [] and archive.search("%") == []
    assert [row.label for row in archive.listed()] == ["部屋", "trip"]
    assert archive.questions(2) == ["会議室は？", "thanks"]


def test_a_session_without_a_question_is_not_listed(archive: Archive) -> None:
    archive.begin("tiny", "")
    assert archive.listed() == [] and archive.latest() is None


def test_a_name_is_for_one_session_and_no_number(archive: Archive) -> None:
    held(archive, "trip", ("a", "b"))
    with pytest.raises(InputError, match="'trip' already"):
        archive.begin("tiny", "", "trip")
    other = held(archive, "", ("c", "d"))
    with pytest.raises(InputError, match="'trip' already"):
        archive.call(other, "trip")
    for name in ("12", " ", "a\nb"):
        with pytest.raises(InputError, match="cannot be a session's name"):
            archive.call(other, name)
    archive.call(other, "other")
    assert archive.get("other").id == other
    with pytest.raises(UnknownNameError, match="known: other, trip"):
        archive.get("nobody")


@pytest.mark.parametrize("content", [b"this is no database, whatever its name says" * 40, b"\0" * 8192])
def test_a_damaged_file_is_named_with_what_to_do_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "sessions.sqlite"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"sessions\.sqlite.*--no-save"):
        Archive(path)
    assert path.read_bytes() == content


def test_a_file_of_a_newer_version_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "sessions.sqlite"
    sqlite3.connect(path).execute("PRAGMA user_version = 99").connection.close()
    with pytest.raises(UnsupportedError, match="form 99"):
        Archive(path)


def test_a_place_that_cannot_be_written_is_an_error_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="SLM_HOME"):
        Archive(tmp_path / "file" / "sessions.sqlite")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ResourceError, match="sessions cannot be kept in"):
        Archive(tmp_path / "folder")


def test_sessions_in_a_place_that_is_only_read_are_found_and_read(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.answered(archive.asked(archive.begin("tiny", "", "trip"), "How far is Osaka?"), "Far.", {})
    archive.close()

    def refused(*_: object) -> int:
        raise PermissionError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", refused)
    only_read = Archive(archive.path)
    assert [row.label for row in only_read.search("osaka")] == ["trip"] and not only_read.may_write
    assert [exchange.answer for exchange in only_read.exchanges(1)] == ["Far."]
    told: list[str] = []
    Keeper(only_read, told.append).asked(Exchange("one"), "tiny", "")
    only_read.close()
    assert len(told) == 1 and "not saved" in told[0] and "readonly" in told[0]


def test_a_conversation_goes_on_when_it_cannot_be_saved_any_more(archive: Archive) -> None:
    told: list[str] = []
    keeper = Keeper(archive, told.append)
    first, second = Exchange("one", "1"), Exchange("two", "2")
    keeper.asked(first, "tiny", "")
    keeper.answered(first)
    archive._db.execute("DROP TABLE exchange")
    for _ in range(2):
        keeper.asked(second, "tiny", "")
        keeper.answered(second)
    assert len(told) == 1 and "not saved" in told[0] and keeper.archive is None


def test_nothing_is_kept_before_the_first_question(archive: Archive) -> None:
    keeper = Keeper(archive, print, "later")
    keeper.settle("tiny", "Be brief.")
    assert archive.find("later") is None
    keeper.asked(Exchange("one"), "tiny", "Be brief.")
    assert archive.get("later").system == "Be brief."
