"""The lines of a batch, as OpenAI writes them: what a line asks, what is wrong with it, and the line that answers it.

It knows nothing of who answers, nor of the fields of a body: those are judged by whoever answers.
"""

from __future__ import annotations

import hashlib
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pydantic_core import from_json

from serve.server.guard import GENERATION, not_json
from slm.artifacts import require_file
from slm.errors import DamagedFileError

_FIELDS = ("custom_id", "method", "url", "body")


@dataclass(frozen=True)
class LineFault:
    """Why a line is asked of nobody, as an error of OpenAI's output format."""

    code: str
    message: str


@dataclass(frozen=True)
class BatchEntry:
    """One line of a batch: where it stands in the file (number from 1, offset and size in bytes), and what it asks.

    key names its content, so that an answer is found again when lines are moved or put right. custom_id is None where
    the line does not say it. A line with a fault has an answer already.
    """

    number: int
    offset: int
    size: int
    key: str
    custom_id: str | None
    url: str = ""
    fault: LineFault | None = None

    def body_in(self, file: BinaryIO) -> dict[str, Any]:
        """The body of a line without a fault, read from the file. Raises DamagedFileError where it has changed."""
        file.seek(self.offset)
        line = file.read(self.size)
        if key_of(line) != self.key:
            raise DamagedFileError(
                f"line {self.number} of '{file.name}' was changed while the batch was running",
                hint="Run the same command with --resume: what was answered is kept.",
            )
        body: dict[str, Any] = from_json(line)["body"]
        return body

    def answered(self, status: int, body: dict[str, Any]) -> dict[str, Any]:
        """The line that holds a response of HTTP."""
        response = {"status_code": status, "request_id": f"req_{self.key}", "body": body}
        return {"id": self.id, "custom_id": self.custom_id, "response": response, "error": None}

    def refused(self, fault: LineFault) -> dict[str, Any]:
        """The line that says what is wrong with it."""
        error = {"code": fault.code, "message": fault.message}
        return {"id": self.id, "custom_id": self.custom_id, "response": None, "error": error}

    @property
    def id(self) -> str:
        return f"batch_req_{self.key}"


def key_of(line: bytes) -> str:
    """What names a line's content."""
    return hashlib.sha256(line.strip()).hexdigest()[:24]


def entries_of(path: Path) -> list[BatchEntry]:
    """Every line of a batch that is not empty. A line that is wrong has a fault, and the others are as they are.

    Raises MissingFileError, InputError (a folder) and DamagedFileError: no line at all, or no UTF-8 text.
    """
    with require_file(path).open("rb") as file:
        if file.read(2) in (BOM_UTF16_LE, BOM_UTF16_BE):
            raise DamagedFileError(f"'{path}' is UTF-16", hint="Save it as UTF-8, one JSON object a line.")
        file.seek(0)
        found = list(_judged(_lines(file)))
    if not found:
        raise DamagedFileError(
            f"'{path}' holds no request", found="no line",
            hint='Write a JSON object a line: {"custom_id", "method": "POST", "url": "/v1/chat/completions", "body"}.',
        )  # fmt: skip
    return found


def _lines(file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """(number, offset, bytes) of each line that holds something."""
    offset = 0
    for number, line in enumerate(file, 1):
        mark = len(BOM_UTF8) if number == 1 and line.startswith(BOM_UTF8) else 0
        if line[mark:].strip():
            yield number, offset + mark, line[mark:]
        offset += len(line)


def _judged(lines: Iterator[tuple[int, int, bytes]]) -> Iterator[BatchEntry]:
    taken: dict[str, int] = {}
    for number, offset, line in lines:
        place = (number, offset, len(line), key_of(line))
        custom_id, url, fault = _read(line)
        if fault is None and custom_id is not None and (first := taken.setdefault(custom_id, number)) != number:
            fault = LineFault("duplicate_custom_id", f"custom_id: '{custom_id}' is that of line {first} already")
        if fault:
            fault = LineFault(fault.code, f"line {number}: {fault.message}")
        yield BatchEntry(*place, custom_id, url, fault)


def _read(line: bytes) -> tuple[str | None, str, LineFault | None]:
    """(custom_id, url, what is wrong) of a line. As the server reads bodies: strict JSON, UTF-8, no NaN."""
    try:
        value = from_json(line.strip(), allow_inf_nan=False)
    except ValueError as error:
        return None, "", LineFault("invalid_json_line", f"it {not_json(error)}")
    if not isinstance(value, dict):
        return None, "", LineFault("invalid_request", f"it is no JSON object (found: {type(value).__name__})")
    custom_id = value.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        missing = "it has no custom_id" if custom_id is None else "custom_id: has to be a text that is not empty"
        return None, "", LineFault("missing_custom_id", missing)
    return custom_id, str(value.get("url")), _fault_of(value)


def _fault_of(value: dict[str, Any]) -> LineFault | None:
    if unknown := sorted(value.keys() - set(_FIELDS)):
        return LineFault("unknown_field", f"{unknown[0]}: no such field; a line has {', '.join(_FIELDS)}")
    if value.get("method") != "POST":
        return LineFault("invalid_method", f"method: has to be POST (found: {value.get('method')!r})")
    if value.get("url") not in GENERATION:
        known = ", ".join(sorted(GENERATION))
        return LineFault("invalid_url", f"url: is none of {known} (found: {str(value.get('url'))[:80]!r})")
    if not isinstance(value.get("body"), dict):
        return LineFault("invalid_body", "body: has to be the JSON object of a request")
    return None
