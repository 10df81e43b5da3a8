"""Text that is piped into stdin, decoded as every other text is. It knows nothing of what the text is for."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from slm.errors import DamagedFileError, InputError, MissingFileError
from slm.terminal.console import note

if TYPE_CHECKING:
    from slm.text.encoding.decode import Decoded

_JUDGED_BYTES = 1 << 13  # of earlier lines, which help to tell the encoding of a short one


def is_terminal() -> bool:
    """Whether a person sits at stdin, so that nothing has to be read before it is asked for."""
    return sys.stdin.isatty()


def is_piped() -> bool:
    """Whether somebody hands over text on purpose: a pipe, a file, a socket; no terminal, /dev/null or closed stdin."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def read_stdin() -> str:
    """All of stdin as text. Raises MissingFileError (closed) and InputError (no text)."""
    try:
        raw = sys.stdin.buffer.read()
    except OSError as error:
        raise _closed(error) from error
    from slm.terminal.text_file import unix_lines

    return unix_lines(_text(raw).text)


def stdin_lines() -> Iterator[str]:
    """Lines of stdin as they come, each with its end. Raises as `read_stdin`."""
    said: set[str] = set()
    seen = b""  # lines that are not ASCII
    try:
        while raw := sys.stdin.buffer.readline():
            if b"\0" in raw or raw.startswith((b"\xff\xfe", b"\xfe\xff")):  # two bytes a character, also in line ends
                yield from _text(raw + sys.stdin.buffer.read()).text.splitlines(keepends=True)
                return
            if raw.isascii() and b"\x1b" not in raw:
                yield raw.decode("ascii")
                continue
            seen = seen[-_JUDGED_BYTES:] + raw
            found = _text(seen, said)
            yield found.text.split("\n")[-2 if raw.endswith(b"\n") else -1]
    except OSError as error:
        raise _closed(error) from error


def _text(raw: bytes, said: set[str] | None = None) -> Decoded:
    """Decoded, with a note on stderr of what is not certain; of `said` each once."""
    from slm.text.encoding.decode import decode

    try:
        found = decode(raw)
    except DamagedFileError as error:
        raise InputError(
            f"what is piped into stdin cannot be read: {error.what}", hint="Pipe text in, in UTF-8 if you can choose."
        ) from error
    about = found.note or (f"it is read as {found.encoding}" if found.encoding != "UTF-8" else "")
    if about and (said is None or about not in said):
        note(f"stdin is not plain UTF-8: {about}")
        if said is not None:
            said.add(about)
    return found


def _closed(error: OSError) -> InputError:
    return MissingFileError(
        f"nothing can be read from stdin: {error.strerror or error}", hint="Pipe text in, or give it as an option."
    )
