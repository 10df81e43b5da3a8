"""Every error the user may meet, as one family. It knows nothing of how an error is shown.

SlmError
├── InputError                a file, folder or value from the user is not what it must be
│   ├── MissingFileError      it is not there
│   ├── DamagedFileError      it is there, but truncated, corrupt or of another format
│   ├── UnsupportedError      it is sound, but of a kind we do not handle
│   └── UnknownNameError      a name that nothing carries; lists the names that exist
├── MismatchError             two sound things do not belong together
├── VerificationError         a result was compared with its reference and differs
├── DivergenceError          a loss or gradient of a training run is no number any more
├── MissingExtraError         a package of an optional extra is not installed
├── LicenceError              terms have to be accepted first
├── DownloadError             no source delivered the file
├── UploadError               a hub did not take what was sent
├── ResourceError             no disk space, no memory, port in use
└── EngineError               the inference process failed
    ├── EngineDiedError       it ended while requests were in flight
    └── ContextOverflowError  prompt and answer do not fit into the context
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable
from typing import Any

# What stands between the user and the host of a database's address, and a password among its parameters. A password may
# hold any character, also an @ that should have been written %40: the last one counts.
_INSIDE = re.compile(r"(?i)(postgres(?:ql)?://[^\s:/?#@'\"]*):[^\s'\"]*@")
_PARAMETER = re.compile(r"(?i)\b((?:ssl)?password=)(?:'(?:\\.|[^'])*'|[^\s&'\"]+)")


def without_passwords(text: str) -> str:
    """The text with *** for every password in an address or a connection string of a database."""
    return _PARAMETER.sub(r"\1***", _INSIDE.sub(r"\1:***@", text))


def _shown(text: str) -> str:
    return without_passwords(text.encode("utf-8", "backslashreplace").decode("utf-8"))


class SlmError(Exception):
    """What was wrong, what was found, and the command that puts it right.

    `what` is one sentence without a full stop; `found` and `hint` may be empty. Passwords of database addresses are
    left out. Bytes of a damaged file that are not
    UTF-8 (lone surrogates) are shown as escapes, so that every error can be printed and sent.
    """

    def __init__(self, what: str, *, found: str = "", hint: str = "") -> None:
        self.what, self.found, self.hint = map(_shown, (what, found, hint))
        super().__init__(self.what)

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process as what it is, whatever its kind was made of."""
        return _again, (type(self), self.what, self.found, self.hint)

    def __str__(self) -> str:
        text = self.what
        if self.found:
            text += f" (found: {self.found})"
        if self.hint:
            text += f". {self.hint}"
        return text


def _again(kind: type[SlmError], what: str, found: str, hint: str) -> SlmError:
    error = kind.__new__(kind)
    SlmError.__init__(error, what, found=found, hint=hint)
    return error


class InputError(SlmError):
    """A file, folder or value from the user is not what it must be."""


class MissingFileError(InputError):
    """A named file or folder is not there."""


class DamagedFileError(InputError):
    """A file is truncated, corrupt or of another format than its name says."""


class UnsupportedError(InputError):
    """A sound input of a kind that is not handled here."""


class UnknownNameError(InputError):
    """A name that nothing carries. The message lists the names that exist."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, hint: str = "") -> None:
        listed = ", ".join(sorted(known)) or "none"
        super().__init__(f"unknown {kind} '{name}'; known: {listed}", hint=hint)


class MismatchError(SlmError):
    """Two sound things do not belong together."""


class VerificationError(SlmError):
    """A result was compared with its reference and differs."""


class DivergenceError(SlmError):
    """A loss or gradient of a training run is no number any more."""


class MissingExtraError(SlmError):
    """A package of an optional extra is not installed."""

    def __init__(self, package: str, extra: str, *, needed_by: str = "this command") -> None:
        super().__init__(
            f"{needed_by} needs the package '{package}'",
            hint=f"In a clone, install it with: pip install -c constraints.txt '.[{extra}]'",
        )


def require_extra(module: str, extra: str, *, package: str = "") -> None:
    """Raise MissingExtraError unless a module can be imported; to be asked before an hour's work, not after it.

    package: what is installed for it, where it is called otherwise.
    """
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(package or module, extra)


class LicenceError(SlmError):
    """Terms have to be accepted first."""


class DownloadError(SlmError):
    """No source delivered the file."""


class UploadError(SlmError):
    """A hub did not take what was sent."""


class ResourceError(SlmError):
    """No disk space, no memory, port in use."""


class EngineError(SlmError):
    """The inference process failed."""


class EngineDiedError(EngineError):
    """The inference process ended while requests were in flight."""


class ContextOverflowError(EngineError):
    """Prompt and answer do not fit into the context."""
