"""Sessions on disk: an SQLite file in the data folder. It knows nothing of models or terminals.

A question is written before it is answered, and its answer when it is there, each in a transaction that is on the disk
when the call returns (write-ahead log, synchronous=FULL): a process that is killed loses the running answer alone. What
is taken back or replaced is marked, not deleted. Several processes may use the file at once.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.chat.conversation import Exchange
from slm.errors import DamagedFileError, InputError, ResourceError, SlmError, UnknownNameError, UnsupportedError
from slm.text.normal_form import nfkc

_FORM = 1
_TABLES = """
CREATE TABLE session (
    id INTEGER PRIMARY KEY, name TEXT UNIQUE, model TEXT NOT NULL, system TEXT NOT NULL DEFAULT '',
    began REAL NOT NULL, changed REAL NOT NULL);
CREATE TABLE exchange (
    id INTEGER PRIMARY KEY, session INTEGER NOT NULL REFERENCES session(id), asked REAL NOT NULL,
    question TEXT NOT NULL, answer TEXT, facts TEXT NOT NULL DEFAULT '{}', gone INTEGER NOT NULL DEFAULT 0);
CREATE INDEX exchange_of_session ON exchange(session, id);
"""
_ROWS = """SELECT s.id, s.name, s.model, s.system, s.changed, count(e.id),
    (SELECT question FROM exchange WHERE session = s.id AND NOT gone ORDER BY id LIMIT 1)
    FROM session s LEFT JOIN exchange e ON e.session = s.id AND NOT e.gone {where}
    GROUP BY s.id ORDER BY s.changed DESC, s.id DESC LIMIT ?"""

# So long another process is waited for, in seconds.
_PATIENCE_S = 10.0


@dataclass(frozen=True)
class SavedSession:
    """changed: seconds since 1970. title: its first question. found: the exchange that a search found, or ""."""

    id: int
    name: str
    model: str
    system: str
    changed: float
    exchanges: int
    title: str
    found: str = ""

    @property
    def label(self) -> str:
        """How it is called: its name, else its number."""
        return self.name or str(self.id)


class Archive:
    """An open file of sessions. Close it."""

    def __init__(self, path: Path) -> None:
        """Raises DamagedFileError, UnsupportedError (of a newer version), ResourceError (no place to write).

        A file that is there and may only be read is opened to be read.
        """
        self.path, self.may_write = path, True
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # what is said here is for nobody else
            self._db = sqlite3.connect(path, timeout=_PATIENCE_S, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            self.may_write = False
            try:
                self._db = _only_read(path)
            except sqlite3.Error:
                raise ResourceError(f"sessions cannot be kept in '{path}': {error}", hint=_ELSEWHERE) from error
        try:
            with self._told():
                self._settle()
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Nothing is lost when it is not called."""
        self._db.close()

    def begin(self, model: str, system: str, name: str = "") -> int:
        """A new session's number. Raises InputError for a name that is taken or is a number."""
        now = time.time()
        with self._told(name):
            return int(
                self._db.execute(
                    "INSERT INTO session (name, model, system, began, changed) VALUES (?, ?, ?, ?, ?)",
                    (checked_name(name) if name else None, model, system, now, now),
                ).lastrowid
                or 0
            )

    def asked(self, session: int, question: str, *, instead_of: int | None = None) -> int:
        """Keep a question; the number of its exchange. instead_of: the exchange that it takes the place of."""
        now = time.time()
        with self._told(), self._transaction():
            if instead_of is not None:
                self._db.execute("UPDATE exchange SET gone = 1 WHERE id = ?", (instead_of,))
            cursor = self._db.execute(
                "INSERT INTO exchange (session, asked, question) VALUES (?, ?, ?)", (session, now, _clean(question))
            )
            self._db.execute("UPDATE session SET changed = ? WHERE id = ?", (now, session))
        return int(cursor.lastrowid or 0)

    def answered(self, exchange: int, answer: str, facts: dict[str, Any]) -> None:
        """Keep an answer in place of none, or of the one before."""
        with self._told():
            self._db.execute(
                "UPDATE exchange SET answer = ?, facts = ? WHERE id = ?", (_clean(answer), json.dumps(facts), exchange)
            )

    def taken_back(self, exchange: int) -> None:
        """The exchange is no part of its session any more."""
        with self._told():
            self._db.execute("UPDATE exchange SET gone = 1 WHERE id = ?", (exchange,))

    def settle(self, session: int, *, model: str, system: str) -> None:
        """What the session goes on with."""
        with self._told():
            self._db.execute("UPDATE session SET model = ?, system = ? WHERE id = ?", (model, _clean(system), session))

    def call(self, session: int, name: str) -> None:
        """Name a session. Raises InputError for a name that is taken or is a number."""
        with self._told(name):
            self._db.execute("UPDATE session SET name = ? WHERE id = ?", (checked_name(name), session))

    def exchanges(self, session: int) -> list[Exchange]:
        """The questions and answers of a session, in order."""
        with self._told():
            rows = self._db.execute(
                "SELECT question, answer, id, facts FROM exchange WHERE session = ? AND NOT gone ORDER BY id",
                (session,),
            ).fetchall()
        return [Exchange(question, answer, id, json.loads(facts)) for question, answer, id, facts in rows]

    def latest(self) -> SavedSession | None:
        """The session that was used last."""
        return next(iter(self.listed(1)), None)

    def find(self, label: str) -> SavedSession | None:
        """The session of that name or number."""
        number = int(label) if label.isascii() and label.isdigit() and len(label) < 19 else -1
        return next(iter(self._rows("WHERE s.name = ? OR s.id = ?", (label, number), 1)), None)

    def get(self, label: str) -> SavedSession:
        """As `find`. Raises UnknownNameError with the latest that there are."""
        found = self.find(label)
        if found is None:
            known = [row.label for row in self.listed(10)]
            raise UnknownNameError("session", label, known, hint="/sessions WORDS searches them all.")
        return found

    def listed(self, limit: int = 20) -> list[SavedSession]:
        """The sessions with a question, used last first."""
        return self._rows("WHERE EXISTS (SELECT 1 FROM exchange WHERE session = s.id AND NOT gone)", (), limit)

    def search(self, words: str, limit: int = 20) -> list[SavedSession]:
        """Sessions with an exchange in which all the words occur, in any case and width of letters; used last first."""
        wanted = _folded(words).split()
        found: dict[int, str] = {}
        with self._told():
            rows = self._db.execute("SELECT session, question, answer FROM exchange WHERE NOT gone ORDER BY id DESC")
            for session, question, answer in rows:
                text = f"{question}\n{answer or ''}"
                if session not in found and all(word in _folded(text) for word in wanted):
                    found[session] = text
        if not found:
            return []
        sessions = {row.id: row for row in self._rows("", (), -1) if row.id in found}
        return [
            SavedSession(**{**vars(row), "found": _around(found[row.id], wanted)}) for row in sessions.values()
        ][:limit]  # fmt: skip

    def questions(self, limit: int = 500) -> list[str]:
        """What was asked in any session, latest first."""
        with self._told():
            rows = self._db.execute("SELECT question FROM exchange ORDER BY id DESC LIMIT ?", (limit,)).fetchall()
        return [question for (question,) in rows]

    def _settle(self) -> None:
        if self.may_write:
            self._log_ahead()
            self._db.execute("PRAGMA synchronous = FULL")
        (form,) = self._db.execute("PRAGMA user_version").fetchone()
        if form == 0 and self.may_write:
            with self._transaction():  # another process may have made them by now
                if self._db.execute("PRAGMA user_version").fetchone() == (0,):
                    for statement in filter(str.strip, _TABLES.split(";")):
                        self._db.execute(statement)
                    self._db.execute(f"PRAGMA user_version = {_FORM}")
        elif form != _FORM:
            raise UnsupportedError(
                f"'{self.path}' was written by another version of the program", found=f"form {form}, not {_FORM}",
                hint=_ELSEWHERE,
            )  # fmt: skip

    def _log_ahead(self) -> None:
        """Write-ahead logging, which lasts. SQLite does not wait for another process that is changing to it as well."""
        until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.02)

    def _rows(self, where: str, values: Sequence[Any], limit: int) -> list[SavedSession]:
        with self._told():
            rows = self._db.execute(_ROWS.format(where=where), (*values, limit)).fetchall()
        return [
            SavedSession(id, name or "", model, system, at, n, title or "")
            for id, name, model, system, at, n, title in rows
        ]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def _told(self, name: str = "") -> Iterator[None]:
        """What SQLite raises as errors of ours."""
        try:
            yield
        except sqlite3.IntegrityError as error:
            raise InputError(f"there is a session '{name}' already", hint=f"Go on with it: /load {name}") from error
        except (sqlite3.Error, ValueError) as error:
            raise _error_of(error, self.path) from error


class Keeper:
    """The session that is being written. It begins with its first question.

    archive: None where nothing is kept. told: hears of what cannot be kept, once; the conversation goes on.
    """

    def __init__(self, archive: Archive | None, told: Callable[[str], None], name: str = "") -> None:
        self.archive, self.name = archive, name
        self.session: int | None = None
        self._told = told

    def go_on(self, saved: SavedSession) -> None:
        """From now on write into a session that there is."""
        self.session, self.name = saved.id, saved.name

    def begin_anew(self) -> None:
        """The next question begins another session."""
        self.session, self.name = None, ""

    def call(self, name: str) -> None:
        """Name the session. Raises InputError: a name that is taken, or nothing is kept."""
        if self.archive is None:
            raise InputError("this conversation is not saved", hint="Start without --no-save.")
        name = checked_name(name)
        if self.session is not None:
            self.archive.call(self.session, name)
        elif self.archive.find(name):
            raise InputError(f"there is a session '{name}' already", hint=f"Go on with it: /load {name}")
        self.name = name

    def asked(self, exchange: Exchange, model: str, system: str, *, instead_of: int | None = None) -> None:
        """Keep a question, which gets its id."""
        with self._guarded() as archive:
            if archive is not None:
                if self.session is None:
                    self.session = archive.begin(model, system, self.name)
                exchange.id = archive.asked(self.session, exchange.question, instead_of=instead_of)

    def answered(self, exchange: Exchange) -> None:
        """Keep its answer."""
        with self._guarded() as archive:
            if archive is not None and exchange.id is not None:
                archive.answered(exchange.id, exchange.answer or "", exchange.facts)

    def taken_back(self, exchange: Exchange) -> None:
        """It is no part of the session any more."""
        with self._guarded() as archive:
            if archive is not None and exchange.id is not None:
                archive.taken_back(exchange.id)

    def settle(self, model: str, system: str) -> None:
        """What the session goes on with."""
        with self._guarded() as archive:
            if archive is not None and self.session is not None:
                archive.settle(self.session, model=model, system=system)

    @contextmanager
    def _guarded(self) -> Iterator[Archive | None]:
        try:
            yield self.archive
        except SlmError as error:
            self.archive = None
            self._told(f"from here on this conversation is not saved: {error}")


def _only_read(path: Path) -> sqlite3.Connection:
    """A connection to a file in a place where nothing can be written, not even SQLite's index of its log."""
    unchanging = "" if path.with_name(f"{path.name}-wal").exists() else "&immutable=1"
    uri = f"{path.absolute().as_uri()}?mode=ro{unchanging}"
    return sqlite3.connect(uri, uri=True, timeout=_PATIENCE_S, isolation_level=None)


_ELSEWHERE = "Move the file away, choose another place with SLM_HOME=FOLDER, or chat with --no-save."


def _error_of(error: Exception, path: Path) -> SlmError:
    kind = DamagedFileError if isinstance(error, ValueError) or "malformed" in str(error) else ResourceError
    if "not a database" in str(error):
        kind = DamagedFileError
    full = "full" in str(error)  # sqlite's SQLITE_FULL: "database or disk is full"
    hint = "Make room on the disk, choose another place with SLM_HOME=FOLDER, or chat with --no-save."
    return kind(f"the sessions in '{path}' cannot be used: {error}", hint=hint if full else _ELSEWHERE)


def checked_name(name: str) -> str:
    """A session's name. Raises InputError for one that is a number or has more than one line."""
    name = name.strip()
    if not name or name.isdigit() or not name.isprintable():
        raise InputError(f"'{name}' cannot be a session's name", hint="A name is one line and no number.")
    return name


def _clean(text: str) -> str:
    """Text that UTF-8 can hold."""
    return text.encode("utf-8", "replace").decode()


def _folded(text: str) -> str:
    return nfkc(text).casefold()


def _around(text: str, words: Sequence[str], width: int = 70) -> str:
    """A piece of the text with the first of the words, on one line."""
    line = " ".join(text.split())
    at = min((found for word in words if (found := _folded(line).find(word)) >= 0), default=0)
    start = max(0, at - width // 3)
    piece = line[start : start + width]
    return ("…" if start else "") + piece + ("…" if start + width < len(line) else "")
