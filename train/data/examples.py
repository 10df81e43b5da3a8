"""Reads training text: plain files and JSONL in the usual formats, one Example each, as a stream.

It knows nothing of tokenizers, templates or models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm.errors import DamagedFileError, InputError
from slm.joints import Message
from slm.text import language
from train.data.kinds import refuse_other_kinds
from train.data.lines import json_objects, looks_like_json_objects, text_lines
from train.data.records import Record, conversation_record, text_record

JSONL = (".jsonl", ".ndjson", ".json")
PLAIN_TEXT = (".txt", ".text", ".md")
# So many characters say which language a text is in.
_LANGUAGE_SAMPLE = 2000

Parse = Callable[[dict[str, Any], str], Record]


@dataclass(frozen=True)
class Example:
    """A conversation (`messages`) or a plain text (`text`), its language code, and where it stands.

    tools: the functions that may be called. skipped: numbers from 0 of the assistant's turns that are not learned.
    unused: fields of its row that mean nothing here.
    """

    file: Path
    line: int
    lang: str
    messages: tuple[Message, ...] = ()
    text: str = ""
    tools: tuple[dict[str, Any], ...] = ()
    skipped: frozenset[int] = frozenset()
    unused: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        return f"'{self.file}', line {self.line}"

    @property
    def is_document(self) -> bool:
        """Whether it is a whole text, and not one line of a plain file."""
        return self.file.suffix in JSONL

    @property
    def answers(self) -> list[int]:
        """Numbers from 0 of the turns that are learned: the assistant's that say or call something."""
        return [
            number
            for number, message in enumerate(self.messages)
            if message["role"] == "assistant" and number not in self.skipped
            and (message["content"].strip() or message.get("tool_calls"))
        ]  # fmt: skip

    def key(self, seed: int) -> int:
        """A 64-bit hash of what it says, other for each seed."""
        digest = hashlib.blake2b(self.text.encode(), digest_size=8, key=seed.to_bytes(8, "little"))
        for message in self.messages:
            digest.update(f"\0{message['role']}\0{message['content']}".encode())
            if calls := message.get("tool_calls"):
                digest.update(json.dumps(calls, sort_keys=True).encode())
        return int.from_bytes(digest.digest(), "little")


def read_conversations(files: Sequence[Path], *, lang: str | None = None) -> Iterator[Example]:
    """The examples of instruction data: conversations of JSONL files in any of the formats, and plain texts.

    The format is found line by line. A text file's lines and JSONL lines with "text" alone are texts. `lang` keeps
    only that language. Raises DamagedFileError with file and line, or InputError when there is nothing to read.
    """
    for file in files:
        refuse_other_kinds(file)
        if file.suffix not in (*JSONL, *PLAIN_TEXT) and not file.is_dir():
            raise InputError(
                f"'{file}' is neither JSONL ({', '.join(JSONL)}) nor plain text ({', '.join(PLAIN_TEXT)})",
                hint="Instruction data are one JSON object a line; rename the file if it is one of them.",
            )
    return _kept(files, lang, conversation_record)


def read_texts(files: Sequence[Path], *, lang: str | None = None) -> Iterator[Example]:
    """The texts of plain files (one Example a line) and of JSONL files with "text" or prompt/completion.

    Raises DamagedFileError with file and line, or InputError when there is nothing to read.
    """
    return _kept(files, lang, text_record)


def _kept(files: Sequence[Path], lang: str | None, parse: Parse) -> Iterator[Example]:
    """The examples of all files in the wanted language."""
    twice = {str(file) for file in files if list(files).count(file) > 1}
    if twice:
        raise InputError(
            f"'{min(twice)}' is named twice", hint="To see it twice an epoch: --weight 2, once for each --data."
        )
    others: set[str] = set()
    some = False
    for file in files:
        empty = True
        for example in _examples(file, lang, parse):
            empty = False
            if lang is None or example.lang == lang:
                some = True
                yield example
            else:
                others.add(example.lang)
        if empty:
            raise InputError(f"there is nothing to train on in '{file}': no line with content")
    if not some:
        names = ", ".join(f"'{file}'" for file in files)
        raise InputError(f"no example in {names} has the language '{lang}'", found=", ".join(sorted(others)))


def _examples(file: Path, lang: str | None, parse: Parse) -> Iterator[Example]:
    if file.suffix in JSONL:
        for line, values in json_objects(file):
            record = parse(values, f"'{file}', line {line}")
            whole = record.text or "\n".join(message["content"] for message in record.messages)
            _require_whole_characters(whole, record, file, line)
            found, unused = _language(values, whole, lang, file, line), record.unused
            if "lang" in unused and found == values["lang"]:
                unused = tuple(name for name in unused if name != "lang")
            yield Example(file, line, found, record.messages, record.text, record.tools, record.skipped, unused)
        return
    if looks_like_json_objects(file):
        raise InputError(f"'{file}' holds JSON objects, not plain text", hint="Rename it to .jsonl.")
    found = lang or language.detect(_beginning(file)).language or "und"
    for line, text in text_lines(file):
        yield Example(file, line, found, text=text)


def _require_whole_characters(text: str, record: Record, file: Path, line: int) -> None:
    calls = [message["tool_calls"] for message in record.messages if "tool_calls" in message]
    whole = text + (json.dumps([calls, record.tools], ensure_ascii=False) if calls or record.tools else "")
    try:
        whole.encode()
    except UnicodeEncodeError as error:
        raise DamagedFileError(
            f"'{file}', line {line} holds half a character: a \\u escape without its other half",
            found=ascii(whole[max(0, error.start - 10) : error.start + 10]),
        ) from error


def _beginning(file: Path) -> str:
    sample = ""
    for _, text in text_lines(file):
        sample += text + "\n"
        if len(sample) > 10 * _LANGUAGE_SAMPLE:
            break
    return sample


def _language(values: dict[str, Any], text: str, wanted: str | None, file: Path, line: int) -> str:
    """The line's own "lang", else the one asked for, else the detected one ("und" where undecided).

    Files of code say "python" there, which is no language that anybody speaks: that is not used.
    """
    given = values.get("lang")
    if given is not None:
        if not isinstance(given, str) or not given:
            raise DamagedFileError(f'\'{file}\', line {line}: "lang" must be a language code such as "en"')
        if given == wanted or language.is_code(given):
            return given
    return wanted or language.detect(text[:_LANGUAGE_SAMPLE]).language or "und"
