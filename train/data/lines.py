"""Opens text files line by line and JSON files object by object, and says what is wrong with one it cannot read.

It knows nothing of formats of training data, of languages or of tokens. Memory does not grow with the file,
except for a file that is one JSON list.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from slm.artifacts import require_file
from slm.errors import DamagedFileError, InputError

# What files begin with that are no text (each format's specification) -> its name, and the command that unpacks it.
_NOT_TEXT = {
    b"\x1f\x8b": ("gzip data", "gunzip -k"),
    b"BZh": ("bzip2 data", "bunzip2 -k"),
    b"\xfd7zXZ\x00": ("xz data", "unxz -k"),
    b"\x28\xb5\x2f\xfd": ("Zstandard data", "unzstd"),
    b"PK\x03\x04": ("a zip archive", "unzip"),
    b"PAR1": ("a Parquet table", ""),
    b"%PDF": ("a PDF document", ""),
    b"GGUF": ("a GGUF model", ""),
    b"SQLite": ("a SQLite database", ""),
}
# Python's name of an encoding -> what people call it, and what iconv does.
_ENCODINGS = {
    "utf-32": ("UTF-32", "UTF-32"),
    "utf-16": ("UTF-16", "UTF-16"),
    "utf-16-le": ("UTF-16", "UTF-16LE"),
    "utf-16-be": ("UTF-16", "UTF-16BE"),
    "cp932": ("Shift-JIS", "CP932"),
    "euc_jp": ("EUC-JP", "EUC-JP"),
    "iso2022_jp": ("ISO-2022-JP", "ISO-2022-JP"),
    "cp1252": ("Latin-1 (Windows-1252)", "WINDOWS-1252"),
}
_HEAD = 4096
_SAMPLE = 1 << 16
# A line of this size is a whole library; more often a file without line breaks, or no text at all.
_LONGEST_LINE = 1 << 26
_HIRAGANA = re.compile(r"[ぁ-ん]")
_SPACE = re.compile(r"[ \t\r\n]*")


def text_lines(file: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text without the white space around it) of every line that is not blank; raises as `lines`."""
    for number, line in lines(file):
        if text := line.strip():
            yield number, text


def lines(file: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of every line of a UTF-8 file.

    Raises MissingFileError, InputError (a folder, a device) or DamagedFileError that names the likely encoding and
    the command that converts it.
    """
    require_file(file, hint=f"Name the files in it, for example: --data '{file}'/*.jsonl" if file.is_dir() else "")
    if not file.is_file():
        raise InputError(f"'{file}' is not a regular file; it is read more than once")
    with file.open("rb") as stream:
        _check_head(file, stream.read(_HEAD))
        stream.seek(0)
        number = 0
        while raw := stream.readline(_LONGEST_LINE + 1):
            number += 1
            if len(raw) > _LONGEST_LINE:
                raise DamagedFileError(
                    f"'{file}', line {number} is longer than {_LONGEST_LINE >> 20} MB",
                    hint="Break the text into lines, or write one JSON object a line.",
                )
            line = _decoded(file, number, raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw, stream)
            yield number, line.rstrip("\r\n")


def json_objects(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number of the line it begins on, object) of every object of a JSONL file, or of a file that is one JSON list.

    Raises DamagedFileError with line, column and the text there.
    """
    first = next(text_lines(file), (0, ""))[1]
    for line, value in _list_items(file) if first.startswith("[") else _one_a_line(file):
        if not isinstance(value, dict):
            raise DamagedFileError(
                f"'{file}', line {line} is not a JSON object",
                found=f"a {_kind(value)}: {json.dumps(value, ensure_ascii=False)[:40]}",
            )
        yield line, value


def looks_like_json_objects(file: Path) -> bool:
    """Whether the first line with content is a JSON object, whatever the file is called."""
    for _, text in text_lines(file):
        if not text.startswith("{"):
            return False
        try:
            return isinstance(json.loads(text), dict)
        except (ValueError, RecursionError):
            return False
    return False


def _check_head(file: Path, head: bytes) -> None:
    """Refuse what is no text, and UTF-16 and UTF-32, whose lines cannot be found by their line breaks."""
    for magic, (name, command) in _NOT_TEXT.items():
        if head.startswith(magic):
            hint = f"Unpack it: {command} '{file}'" if command else "Give plain text or JSONL."
            raise DamagedFileError(f"'{file}' is {name}, not text", hint=hint)
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise _not_utf8(file, "", "utf-32")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise _not_utf8(file, "", "utf-16")
    if head.count(0) * 4 >= len(head) > 1:  # Latin text in UTF-16 without a mark: every second byte is zero
        raise _not_utf8(file, "", "utf-16-le" if head[1::2].count(0) > head[::2].count(0) else "utf-16-be")


def _decoded(file: Path, number: int, raw: bytes, stream: BinaryIO) -> str:
    line = f", line {number}"
    if b"\0" in raw:
        raise DamagedFileError(
            f"'{file}'{line} holds a NUL byte (column {raw.index(0) + 1}), which no text does",
            hint=f"Look at it: head -n {number} '{file}' | tail -n 1 | od -c | head",
        )
    if b"\x1b$" in raw:
        raise _not_utf8(file, line, "iso2022_jp")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data" and not raw.endswith(b"\n"):
            raise DamagedFileError(
                f"'{file}'{line} ends in the middle of a character: the file is cut off", hint="Fetch it again."
            ) from error
        more = stream.read(_SAMPLE)
        raise _not_utf8(file, line, likely_encoding(raw + more[: more.rfind(b"\n") + 1])) from error


def likely_encoding(data: bytes) -> str | None:
    """Python's name of the encoding that bytes which are not UTF-8 are likely in, or None.

    Japanese prose always has hiragana, and the two encodings read as one another have none or do not decode.
    """
    kana = {}
    for name in ("cp932", "euc_jp"):
        try:
            kana[name] = len(_HIRAGANA.findall(data.decode(name)))
        except UnicodeDecodeError:
            kana[name] = 0
    best = max(kana, key=lambda name: kana[name])
    if kana[best]:
        return best
    try:
        data.decode("cp1252")
    except UnicodeDecodeError:
        return None
    return "cp1252" if sum(byte > 127 for byte in data) * 3 < len(data) else None


def _not_utf8(file: Path, line: str, encoding: str | None) -> DamagedFileError:
    if encoding is None:
        return DamagedFileError(f"'{file}'{line} is not UTF-8 text", hint="Save the file as UTF-8.")
    name, iconv = _ENCODINGS[encoding]
    return DamagedFileError(
        f"'{file}'{line} is not UTF-8 text; it looks like {name}",
        hint=f"Convert it: iconv -f {iconv} -t UTF-8 '{file}' > '{file.with_stem(file.stem + '-utf8')}'",
    )


def _one_a_line(file: Path) -> Iterator[tuple[int, Any]]:
    for number, text in text_lines(file):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _not_json(file, number, text, error) from error
        yield number, value


def _not_json(file: Path, number: int, text: str, error: Exception) -> DamagedFileError:
    where, found = f"'{file}', line {number}", ""
    reason = str(error)
    if isinstance(error, json.JSONDecodeError):
        where, reason = f"{where}, column {error.colno}", error.msg
        found = f"{text[max(0, error.pos - 20) : error.pos]}⟪here⟫{text[error.pos : error.pos + 20]}"
    return DamagedFileError(
        f"{where} is not JSON: {reason}", found=found, hint="Each line must be one whole JSON object."
    )


def _list_items(file: Path) -> Iterator[tuple[int, Any]]:
    """(line, value) of the items of a file that is one JSON list; the text is held in memory, the items are not."""
    parts = list(text_lines(file))
    text = "\n".join(part for _, part in parts)  # no JSON string goes over a line break, so stripping changed nothing
    decoder, row, place, seen = json.JSONDecoder(), 0, 1, 0

    def skip(start: int) -> int:
        match = _SPACE.match(text, start)
        return match.end() if match else start

    while text[skip(place) : skip(place) + 1] != "]":
        place = skip(place)
        row += text.count("\n", seen, place)
        seen = place
        try:
            value, end = decoder.raw_decode(text, place)
            comma = skip(end)
            if text[comma : comma + 1] not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, comma)
        except json.JSONDecodeError as error:
            raise _not_json(file, parts[error.lineno - 1][0], text, error) from error
        except (ValueError, RecursionError) as error:
            raise _not_json(file, parts[row][0], text, error) from error
        yield parts[row][0], value
        place = comma + (text[comma] == ",")
    rest = skip(skip(place) + 1)
    if rest < len(text):
        after = json.JSONDecodeError("Extra data behind the list", text, rest)
        raise _not_json(file, parts[after.lineno - 1][0], text, after)


def _kind(value: Any) -> str:
    names = {list: "list", str: "string", bool: "truth value", int: "number", float: "number", type(None): "null"}
    return names.get(type(value), type(value).__name__)
