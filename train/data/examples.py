"""Reads training text: plain files and JSONL in the usual formats, one Example each, as a stream.

It knows nothing of tokenizers, templates or models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm import language
from slm.errors import DamagedFileError, InputError
from slm.joints import Message
from train.data.lines import json_objects, looks_like_json_objects, text_lines

JSONL = (".jsonl", ".ndjson", ".json")
PLAIN_TEXT = (".txt", ".text", ".md")
# The names of roles in ShareGPT files -> ours.
_ROLES = {
    "system": "system", "human": "user", "user": "user",
    "gpt": "assistant", "assistant": "assistant", "model": "assistant", "chatgpt": "assistant", "bot": "assistant",
}  # fmt: skip
_KNOWN = "messages, conversations (ShareGPT), instruction/output (alpaca), prompt/completion, text"
# So many characters say which language a text is in.
_LANGUAGE_SAMPLE = 2000


@dataclass(frozen=True)
class Example:
    """A conversation (`messages`) or a plain text (`text`), its language code, and where it stands."""

    file: Path
    line: int
    lang: str
    messages: tuple[Message, ...] = ()
    text: str = ""

    @property
    def where(self) -> str:
        return f"'{self.file}', line {self.line}"

    @property
    def is_document(self) -> bool:
        """Whether it is a whole text, and not one line of a plain file."""
        return self.file.suffix in JSONL

    def key(self, seed: int) -> int:
        """A 64-bit hash of what it says, other for each seed."""
        digest = hashlib.blake2b(self.text.encode(), digest_size=8, key=seed.to_bytes(8, "little"))
        for message in self.messages:
            digest.update(f"\0{message['role']}\0{message['content']}".encode())
        return int.from_bytes(digest.digest(), "little")


def read_conversations(files: Sequence[Path], *, lang: str | None = None) -> Iterator[Example]:
    """The examples of instruction data: conversations of JSONL files in any of the formats, and plain texts.

    The format is found line by line. A text file's lines and JSONL lines with "text" alone are texts. `lang` keeps
    only that language. Raises DamagedFileError with file and line, or InputError when there is nothing to read.
    """
    for file in files:
        if file.suffix not in (*JSONL, *PLAIN_TEXT) and not file.is_dir():
            raise InputError(
                f"'{file}' is neither JSONL ({', '.join(JSONL)}) nor plain text ({', '.join(PLAIN_TEXT)})",
                hint="Instruction data are one JSON object a line; rename the file if it is one of them.",
            )
    return _kept(files, lang, _example_of)


def read_texts(files: Sequence[Path], *, lang: str | None = None) -> Iterator[Example]:
    """The texts of plain files (one Example a line) and of JSONL files with "text" or prompt/completion.

    Raises DamagedFileError with file and line, or InputError when there is nothing to read.
    """
    return _kept(files, lang, _text_example)


def _kept(files: Sequence[Path], lang: str | None, parse: Any) -> Iterator[Example]:
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


def _examples(file: Path, lang: str | None, parse: Any) -> Iterator[Example]:
    if file.suffix in JSONL:
        for line, record in json_objects(file):
            messages, text = parse(record, file, line)
            whole = text or "\n".join(message["content"] for message in messages)
            try:
                whole.encode()
            except UnicodeEncodeError as error:
                raise DamagedFileError(
                    f"'{file}', line {line} holds half a character: a \\u escape without its other half",
                    found=ascii(whole[max(0, error.start - 10) : error.start + 10]),
                ) from error
            yield Example(file, line, _language(record, whole, lang, file, line), messages, text)
        return
    if looks_like_json_objects(file):
        raise InputError(f"'{file}' holds JSON objects, not plain text", hint="Rename it to .jsonl.")
    found = lang or language.detect(_beginning(file)).language or "und"
    for line, text in text_lines(file):
        yield Example(file, line, found, text=text)


def _beginning(file: Path) -> str:
    sample = ""
    for _, text in text_lines(file):
        sample += text + "\n"
        if len(sample) > 10 * _LANGUAGE_SAMPLE:
            break
    return sample


def _language(record: dict[str, Any], text: str, wanted: str | None, file: Path, line: int) -> str:
    """The line's own "lang", else the one asked for, else the detected one ("und" where undecided)."""
    given = record.get("lang")
    if given is not None:
        if not isinstance(given, str) or not given:
            raise DamagedFileError(f'\'{file}\', line {line}: "lang" must be a language code such as "en"')
        return given
    return wanted or language.detect(text[:_LANGUAGE_SAMPLE]).language or "und"


def _text_of(record: dict[str, Any], key: str, file: Path, line: int) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise DamagedFileError(f"'{file}', line {line}: \"{key}\" must be text (is {type(value).__name__})")
    return value


def _text_example(record: dict[str, Any], file: Path, line: int) -> tuple[tuple[Message, ...], str]:
    if "text" in record:
        text = _text_of(record, "text", file, line)
    elif "prompt" in record:
        text = _text_of(record, "prompt", file, line) + _text_of(record, "completion", file, line)
    else:
        raise DamagedFileError(
            f'\'{file}\', line {line} has neither "text" nor "prompt" and "completion"',
            found=", ".join(sorted(record)) or "an empty object",
            hint="For conversations use: slm train sft",
        )
    if not text.strip():
        raise DamagedFileError(f"'{file}', line {line} has an empty text")
    return (), text


def _example_of(record: dict[str, Any], file: Path, line: int) -> tuple[tuple[Message, ...], str]:
    """(messages, "") of a conversation or ((), text). alpaca's files have a "text" beside the turns; turns win."""
    if "messages" in record:
        messages = _turns(record, "messages", file, line)
    elif "conversations" in record:
        messages = _turns(record, "conversations", file, line)
    elif "instruction" in record:
        question = _text_of(record, "instruction", file, line)
        if record.get("input"):
            question += "\n\n" + _text_of(record, "input", file, line)
        messages = [_turn("user", question), _turn("assistant", _text_of(record, "output", file, line))]
    elif isinstance(record.get("prompt"), list):  # TRL's conversational form
        messages = _turns(record, "prompt", file, line) + _turns(record, "completion", file, line)
    elif "prompt" in record:
        messages = [
            _turn("user", _text_of(record, "prompt", file, line)),
            _turn("assistant", _text_of(record, "completion", file, line)),
        ]
    elif "text" in record:
        return _text_example(record, file, line)
    else:
        raise DamagedFileError(
            f"'{file}', line {line} is in no known format",
            found=", ".join(sorted(record)) or "an empty object",
            hint=f"Known: {_KNOWN}.",
        )
    if record.get("system") and messages[0]["role"] != "system":
        messages.insert(0, _turn("system", _text_of(record, "system", file, line)))
    if not any(message["role"] == "assistant" and message["content"].strip() for message in messages):
        raise DamagedFileError(f"'{file}', line {line} has no answer of the assistant to learn from")
    return tuple(messages), ""


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _turns(record: dict[str, Any], name: str, file: Path, line: int) -> list[Message]:
    """A list of turns with "role" and "content", or ShareGPT's "from" and "value"."""
    value = record.get(name)
    if not isinstance(value, list) or not value:
        raise DamagedFileError(f"'{file}', line {line}: \"{name}\" must be a list of turns")
    turns = []
    for number, turn in enumerate(value, start=1):
        if not isinstance(turn, dict):
            raise DamagedFileError(f"'{file}', line {line}: turn {number} is not an object")
        role_key, text_key = ("from", "value") if "from" in turn else ("role", "content")
        role = _ROLES.get(str(turn.get(role_key)))
        if role is None:
            raise DamagedFileError(
                f"'{file}', line {line}: turn {number} has the \"{role_key}\" {turn.get(role_key)!r}",
                hint=f"Known: {', '.join(_ROLES)}.",
            )
        if not isinstance(turn.get(text_key), str):
            raise DamagedFileError(f"'{file}', line {line}: turn {number} has no text in \"{text_key}\"")
        turns.append(_turn(role, turn[text_key]))
    return turns
