"""Opens text files line by line and JSON files object by object, and says what is wrong with one it cannot read.

It knows nothing of formats of training data, of languages or of tokens. Memory does not grow with the file,
except for a file that is one JSON list or has objects over several lines.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from slm.artifacts import require_file
from slm.errors import DamagedFileError, InputError
from slm.terminal.console import note
from slm.text.encoding.decode import DecodedLines, open_text
from train.data.kinds import refuse_other_kinds

# A line of this size is a whole library; more often a file without line breaks, or no text at all.
_LONGEST_LINE = 1 << 26
_SPACE = re.compile(r"[ \t\r\n]*")


def text_lines(file: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text without the white space around it) of every line that is not blank; raises as `lines`.

    A byte order mark goes too: files that were joined have one in the middle.
    """
    for number, line in lines(file):
        if text := line.strip().removeprefix("\ufeff").strip():
            yield number, text


def lines(file: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of every line of a text file in any encoding (`slm.text.encoding.decode`).

    What is not certain about the encoding is noted once, with the file's name. Raises MissingFileError, InputError (a
    folder, a device), or DamagedFileError for what is no text or was cut off.
    """
    refuse_other_kinds(file)
    require_file(file, hint=f"Name the files in it, for example: --data '{file}'/*.jsonl" if file.is_dir() else "")
    if not file.is_file():
        raise InputError(f"'{file}' is not a regular file; it is read more than once")
    state = file.stat()
    encoding = _encoding_of(file, state.st_size, state.st_mtime_ns)
    for number, line in enumerate(_utf8_lines(file) if encoding == "UTF-8" else _other_lines(file), start=1):
        if "\0" in line:
            raise DamagedFileError(
                f"'{file}', line {number} holds a NUL byte (column {line.index(chr(0)) + 1}), which no text does",
                hint=f"Look at it: head -n {number} '{file}' | tail -n 1 | od -c | head",
            )
        if len(line) > _LONGEST_LINE:
            raise _too_long(file, number)
        yield number, line.rstrip("\r\n")


@lru_cache(maxsize=256)
def _encoding_of(file: Path, size: int, changed: int) -> str:
    """The encoding's name; size and time of change are of the file, which is looked at again when they differ."""
    with _opened(file) as stream:
        return stream.encoding


def _opened(file: Path) -> DecodedLines:
    try:
        return open_text(file)
    except DamagedFileError as error:
        raise DamagedFileError(f"'{file}' is no text: {error.what}", hint="Give plain text or JSONL.") from error


def _other_lines(file: Path) -> Iterator[str]:
    with _opened(file) as stream:
        yield from stream
        if stream.note:
            _note_once(f"'{file}': {stream.note}")


def _utf8_lines(file: Path) -> Iterator[str]:
    """The lines of a UTF-8 file; a bad byte becomes U+FFFD and a note, a cut-off end is an error."""
    with file.open("rb") as stream:
        number = 0
        while raw := stream.readline(_LONGEST_LINE + 1):
            number += 1
            if len(raw) > _LONGEST_LINE:
                raise _too_long(file, number)
            raw = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            try:
                yield raw.decode("utf-8")
            except UnicodeDecodeError as error:
                if error.reason == "unexpected end of data" and not raw.endswith(b"\n"):
                    raise DamagedFileError(
                        f"'{file}', line {number} ends in the middle of a character: the file is cut off",
                        hint="Fetch it again.",
                    ) from error
                _note_once(f"'{file}', line {number} holds bytes that are not UTF-8: they became U+FFFD")
                yield raw.decode("utf-8", "replace")


def _too_long(file: Path, number: int) -> DamagedFileError:
    return DamagedFileError(
        f"'{file}', line {number} is longer than {_LONGEST_LINE >> 20} MB",
        hint="Break the text into lines, or write one JSON object a line.",
    )


@lru_cache(maxsize=256)
def _note_once(text: str) -> None:
    """A file is read more than once; what there is to say of it is said once."""
    note(text)


def json_objects(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number of the line it begins on, object) of every object of a file.

    One a line, one JSON list, or objects that go over several lines, one after the other. Raises DamagedFileError
    with line, column and the text there.
    """
    first = next(text_lines(file), (0, ""))[1]
    read = _list_items if first.startswith("[") else _several_lines_each if _goes_on(first) else _one_a_line
    for line, value in read(file):
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


def _goes_on(line: str) -> bool:
    """Whether a line is the beginning of an object that ends on a later one."""
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return line.startswith("{") and error.pos >= len(line)
    except (ValueError, RecursionError):
        pass
    return False


def _several_lines_each(file: Path) -> Iterator[tuple[int, Any]]:
    """(line, value) of pretty-printed objects; the text is held in memory, the objects are not."""
    parts = list(text_lines(file))
    text = "\n".join(part for _, part in parts)
    decoder, place, row, seen = json.JSONDecoder(), 0, 0, 0
    while place < len(text):
        row += text.count("\n", seen, place)
        seen = place
        try:
            value, end = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            raise _not_json(file, parts[error.lineno - 1][0], text, error) from error
        except (ValueError, RecursionError) as error:
            raise _not_json(file, parts[row][0], text, error) from error
        yield parts[row][0], value
        match = _SPACE.match(text, end)
        place = match.end() if match else end


def _kind(value: Any) -> str:
    names = {list: "list", str: "string", bool: "truth value", int: "number", float: "number", type(None): "null"}
    return names.get(type(value), type(value).__name__)
