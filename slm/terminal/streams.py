"""stdin, stdout and stderr as people hand them over: closed, full, a pipe nobody reads, of a small character set.

It knows nothing of commands. `settle` is called once, before a command runs; `lost` says afterwards whether what was
printed has arrived.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from contextlib import suppress
from typing import IO, Any

_HANDLER, _MESSAGES_HANDLER = "slm-replace", "slm-plain"
# What typewriters have for marks that our own messages and typographers use; nothing is lost with them.
_PLAIN = {
    "·": "-", "•": "*", "…": "...", "–": "-", "—": "-", "‘": "'", "’": "'", "“": '"', "”": '"', "→": "->", "×": "x",
    "≤": "<=", "≥": ">=", "\xa0": " ",
}  # fmt: skip


class _Text(io.TextIOWrapper):
    """A text stream that remembers its failure, and shows no `buffer`: click would write UTF-8 there for ascii."""

    failure: OSError | None = None

    @property
    def buffer(self) -> Any:
        raise AttributeError("buffer")

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self.failure = error
            raise


class _Messages(_Text):
    """stderr: a message that cannot be written is no reason to end what it reports on."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


class _Replacing:
    """Counts the characters that stdout's encoding does not have; each is shown as a question mark, or plainly.

    Bytes of a file name or argument that are no text (surrogates of PEP 383) go out as they came in.
    """

    count = 0

    def __call__(self, error: UnicodeError) -> tuple[str | bytes, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        code = ord(error.object[error.start])
        if 0xDC80 <= code <= 0xDCFF:
            return bytes([code - 0xDC00]), error.start + 1
        if plain := _PLAIN.get(error.object[error.start]):
            return plain, error.start + 1
        self.count += 1
        return "?", error.start + 1


def _escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    """For messages, where names have to be told apart: an escape, or the plain sign for what is one."""
    if isinstance(error, UnicodeEncodeError) and (plain := _PLAIN.get(error.object[error.start])):
        return plain, error.start + 1
    return codecs.backslashreplace_errors(error)


replaced = _Replacing()
_settled: dict[str, _Text] = {}  # click puts a stream of its own in the place of sys.stdout when a pipe breaks


def settle() -> None:
    """Make the three streams safe to use, whatever the parent process gave.

    A closed one is opened on the null device, else the next file or socket, a child's too, would get its number and
    be written to. It is opened the wrong way round, so that reading stdin or writing stdout still fails and is told
    (the way of gnulib's stdopen); messages to a closed stderr are for nobody.
    """
    for number, mode in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # takes the lowest free number, which is this one
            os.set_inheritable(number, True)
    codecs.register_error(_HANDLER, replaced)
    codecs.register_error(_MESSAGES_HANDLER, _escaped)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = _wrapped(_Text, sys.stdout, 1, _HANDLER)
    if isinstance(sys.stdout, _Text):
        _settled["stdout"] = sys.stdout
    sys.stderr = _wrapped(_Messages, sys.stderr, 2, _MESSAGES_HANDLER)


def _wrapped(kind: type[_Text], stream: Any, number: int, errors: str) -> Any:
    if stream is None:
        opened: IO[bytes] = open(number, "wb", closefd=False)  # noqa: SIM115
        return kind(opened, encoding="utf-8", errors=errors, line_buffering=number == 2)
    if isinstance(stream, _Text) or not hasattr(stream, "buffer"):  # settled before, or a stand-in
        return stream
    stream.flush()
    return kind(
        stream.buffer, encoding=stream.encoding, errors=errors,
        line_buffering=stream.line_buffering, write_through=stream.write_through,
    )  # fmt: skip


def lost() -> OSError | None:
    """Why what was printed cannot be delivered, or None when all of it was. What is left of it is then dropped."""
    out = _settled.get("stdout")
    if out is None:
        return None
    with suppress(OSError, ValueError):  # ValueError: the command closed it
        out.flush()
    if out.failure is not None:
        null = os.open(os.devnull, os.O_WRONLY)  # or the interpreter tries again at its end, and says so
        os.dup2(null, 1)
        os.close(null)
    return out.failure


def coloured() -> bool | None:
    """False where no colours are wanted (https://no-color.org) or the terminal has none; None: as the stream is."""
    return False if os.environ.get("NO_COLOR") or os.environ.get("TERM", "").lower() in ("dumb", "unknown") else None


def says(text: str) -> bool:
    """Whether stdout's encoding has every character of the text."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def why_not_written(error: OSError) -> str:
    """One sentence for people about a stdout that took nothing."""
    if error.errno == errno.EBADF:
        return "stdout is closed; what the command printed is lost"
    return f"stdout cannot be written: {error.strerror or error}"
