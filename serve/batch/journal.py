"""The answers of a batch on their way: kept beside the output as they come (`--resume` goes on from them), and put in
order when all are there.

Answers come in any order, and a process may end at any moment: each is a line of its own that is appended whole. It
knows nothing of how an answer comes about.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from serve.batch.entries import BatchEntry
from slm.artifacts import new_file
from slm.errors import InputError, MismatchError, ResourceError
from slm.native.locks import take_lock
from slm.terminal.console import note

_HEAD = b"slm-batch "
_SYNC_S = 5.0  # what a power failure may lose; the end of the process alone loses nothing
_DONE, _SERVER_FAULT = 200, 500


def partial_of(output: Path) -> Path:
    """Where the answers are kept until all of them are there."""
    return output.with_name(f"{output.name}.partial")


class BatchJournal:
    """The answers that are there, by the keys of their lines. Open it with `opened_journal`; one thread uses it."""

    def __init__(self, path: Path, file: FileIO) -> None:
        """file: of that path, to read and write, without a buffer: what is written is with the system at once."""
        self.path = path
        self._file = file
        self._places: dict[str, tuple[int, int]] = {}
        self._failed: set[str] = set()
        self._synced = time.monotonic()
        self._made_with = self._read()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def failed(self, key: str) -> bool:
        """Whether the answer that is there is an error."""
        return key in self._failed

    def begin(self, made_with: Mapping[str, Any]) -> None:
        """Say what answers from here on. Raises MismatchError where the kept answers are of something else."""
        asked = json.loads(json.dumps(made_with))
        if self._made_with is None:
            self._append(_HEAD + _dumped(asked))
            self._made_with = asked
        differing = [name for name in asked if self._made_with.get(name) != asked[name]]
        if differing:
            name = differing[0]
            raise MismatchError(
                f"the answers in '{self.path}' are of another {name}",
                found=f"{self._made_with.get(name)!r}, now {asked[name]!r}"[:300],
                hint="Give the same model, adapters and context, or throw those answers away with --fresh.",
            )

    def put(self, key: str, row: dict[str, Any]) -> None:
        """Keep one answer. Raises ResourceError where the disk does not take it."""
        head = f"{key} ".encode()
        written = _dumped(row)
        place = self._append(head + written)
        self._places[key] = (place + len(head), len(written))
        if time.monotonic() - self._synced > _SYNC_S:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def clear(self) -> None:
        """Throw everything away that is kept."""
        self._file.truncate(0)
        self._places, self._failed, self._made_with = {}, set(), None

    def write(self, output: Path, entries: Iterable[BatchEntry]) -> None:
        """Write the output, a line for each entry in their order; it is whole or absent."""
        with new_file(output) as temporary, temporary.open("wb") as out:
            for entry in entries:
                out.write((_dumped(entry.refused(entry.fault)) if entry.fault else self._row(entry.key)) + b"\n")

    def _row(self, key: str) -> bytes:
        offset, size = self._places[key]
        self._file.seek(offset)
        return self._file.read(size)

    def _append(self, line: bytes) -> int:
        """Write a line at the end; where it begins."""
        try:
            place = self._file.seek(0, os.SEEK_END)
            if self._file.write(line + b"\n") <= len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise ResourceError(
                f"no further answer can be written to '{self.path}': {error.strerror}",
                hint="What was answered is kept; make some space and go on with --resume.",
            ) from error
        return place

    def _read(self) -> dict[str, Any] | None:
        """Take in what is there, and cut off what a killed process had begun to write. What answered, None: nobody.

        What the machine was at fault for is asked again: a line of the last run may have met an engine that ended.
        """
        with self.path.open("rb") as file:
            head = file.readline()
            if not head.endswith(b"\n"):
                if head and not head.startswith(_HEAD[: len(head)]):
                    raise _foreign(self.path)
                self._file.truncate(0)
                return None
            made_with = _object(head.removeprefix(_HEAD)) if head.startswith(_HEAD) else None
            if made_with is None:
                raise _foreign(self.path)
            end = len(head)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                key, _, row = line[:-1].partition(b" ")
                status, name = status_of(_object(row)), key.decode("ascii", "replace")
                if status < _SERVER_FAULT:
                    self._places[name] = (end + len(key) + 1, len(row))
                    self._failed |= {name} if status != _DONE else set()
                end += len(line)
        self._file.truncate(end)
        return made_with


@contextmanager
def opened_journal(output: Path, *, resume: bool, fresh: bool) -> Iterator[BatchJournal]:
    """The journal of an output. When the block ends well it is removed, and when it has nothing to keep.

    Raises InputError where a broken-off batch has answers and neither `resume` nor `fresh` is asked, ResourceError
    where another process writes them or the folder takes none.
    """
    path = partial_of(output)
    with _opened(path, output) as file:
        take_lock(
            file,
            ResourceError(f"another process is writing '{path}'", hint="Wait for it, or name another output with -o."),
        )
        journal = BatchJournal(path, file)
        if fresh:
            journal.clear()
        if len(journal) and not resume:
            raise InputError(
                f"a batch into '{output}' was broken off", found=f"{len(journal):,} answers in '{path}'",
                hint="Go on with --resume, or throw them away with --fresh.",
            )  # fmt: skip
        try:
            yield journal
        except BaseException:
            if len(journal):
                note(f"{len(journal):,} answers stay in '{path}': the same command with --resume goes on from there")
            else:
                path.unlink(missing_ok=True)
            raise
        path.unlink(missing_ok=True)


def _opened(path: Path, output: Path) -> FileIO:
    if output.is_dir():
        raise InputError(f"'{output}' is a folder where a file is needed", hint="Name a file with -o.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("r+b" if path.exists() else "w+b", buffering=0)
    except OSError as error:
        raise ResourceError(
            f"cannot write '{path}': {error.strerror}", hint="Choose another output with -o."
        ) from error


def _foreign(path: Path) -> InputError:
    return InputError(
        f"'{path}' is where the answers are kept on their way, but it holds something else; it is left untouched",
        hint="Name another output with -o, or remove that file yourself.",
    )


def _dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def status_of(row: dict[str, Any] | None) -> int:
    """The status of a row's answer; what has none, or cannot be read, counts as the machine's fault."""
    response = row.get("response") if row else None
    return int(response.get("status_code", _SERVER_FAULT)) if isinstance(response, dict) else _SERVER_FAULT


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
