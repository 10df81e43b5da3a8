"""Text files of people as text, whatever wrote them. It knows nothing of what the text is for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from slm.artifacts import require_file
from slm.errors import DamagedFileError
from slm.terminal.console import note
from slm.text.encoding.decode import decode, open_text


def read_text(path: Path | str) -> str:
    """A file's text, lines ended by \\n; what is not certain about its encoding is noted on stderr.

    Raises MissingFileError, InputError (a folder) and DamagedFileError (no text).
    """
    path = require_file(path)
    try:
        found = decode(path.read_bytes())
    except DamagedFileError as error:
        raise _no_text(path, error) from error
    _say(path, found.note)
    return unix_lines(found.text)


def text_lines(path: Path | str) -> Iterator[str]:
    """The same line by line, each with its end, for files of any size."""
    path = require_file(path)
    try:
        with open_text(path) as stream:
            yield from stream
            _say(path, stream.note)
    except DamagedFileError as error:
        raise _no_text(path, error) from error


def unix_lines(text: str) -> str:
    """The text with every line ended by \\n, as Python's own reading of files has it."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _say(path: Path, about: str) -> None:
    if about:
        note(f"'{path}': {about}")


def _no_text(path: Path, error: DamagedFileError) -> DamagedFileError:
    return DamagedFileError(f"'{path}' cannot be read as text: {error.what}")
