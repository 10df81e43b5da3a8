"""Reads training text: plain files and JSONL in the usual formats, one Example each, and splits off held-out ones.

It knows nothing of tokenizers, templates or models.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm import language
from slm.artifacts import require_file
from slm.errors import DamagedFileError, InputError
from slm.joints import Message

JSONL = (".jsonl", ".ndjson", ".json")
# The names of roles in ShareGPT files -> ours.
_ROLES = {
    "system": "system", "human": "user", "user": "user",
    "gpt": "assistant", "assistant": "assistant", "model": "assistant", "chatgpt": "assistant", "bot": "assistant",
}  # fmt: skip
_KNOWN = "messages, conversations (ShareGPT), instruction/output (alpaca), prompt/completion"


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


def read_conversations(files: Sequence[Path], *, lang: str | None = None) -> list[Example]:
    """The conversations of JSONL files; the format is found line by line. `lang` keeps only that language.

    Raises DamagedFileError with file and line, or InputError when nothing is left.
    """
    examples = []
    for file in files:
        if file.suffix not in JSONL:
            require_file(file)
            raise InputError(
                f"'{file}' is not JSONL; instruction data are one JSON object a line",
                hint="For plain text use: slm train lora",
            )
        for line, record in _records(file):
            messages = _conversation(record, file, line)
            text = "\n".join(message["content"] for message in messages)
            examples.append(Example(file, line, _language(record, text, lang, file, line), messages=messages))
    return _kept(examples, files, lang)


def read_texts(files: Sequence[Path], *, lang: str | None = None) -> list[Example]:
    """The texts of plain files (one Example a line) and of JSONL files with "text" or prompt/completion.

    Raises DamagedFileError with file and line, or InputError when nothing is left.
    """
    examples = []
    for file in files:
        if file.suffix in JSONL:
            for line, record in _records(file):
                text = _plain(record, file, line)
                examples.append(Example(file, line, _language(record, text, lang, file, line), text=text))
        else:
            lines = list(_lines(file))
            whole = lang or language.detect("\n".join(text for _, text in lines)).language or "und"
            examples += [Example(file, line, whole, text=text) for line, text in lines]
    return _kept(examples, files, lang)


def _kept(examples: list[Example], files: Sequence[Path], lang: str | None) -> list[Example]:
    names = ", ".join(f"'{file}'" for file in files)
    if not examples:
        raise InputError(f"there is nothing to train on in {names}: no line with content")
    kept = [example for example in examples if lang is None or example.lang == lang]
    if not kept:
        found = ", ".join(sorted({example.lang for example in examples}))
        raise InputError(f"no example in {names} has the language '{lang}'", found=found)
    return kept


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of every line that is not blank."""
    require_file(file)
    with file.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise DamagedFileError(f"'{file}', line {number} is not UTF-8 text ({error.reason})") from error
            if text:
                yield number, text


def _records(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, text in _lines(file):
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DamagedFileError(
                f"'{file}', line {number} is not JSON: {error}", hint="Each line must be one whole JSON object."
            ) from error
        if not isinstance(record, dict):
            raise DamagedFileError(f"'{file}', line {number} is not a JSON object")
        yield number, record


def _language(record: dict[str, Any], text: str, wanted: str | None, file: Path, line: int) -> str:
    """The line's own "lang", else the one asked for, else the detected one ("und" where undecided)."""
    given = record.get("lang")
    if given is not None:
        if not isinstance(given, str) or not given:
            raise DamagedFileError(f'\'{file}\', line {line}: "lang" must be a language code such as "en"')
        return given
    return wanted or language.detect(text).language or "und"


def _text_of(record: dict[str, Any], key: str, file: Path, line: int) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise DamagedFileError(f"'{file}', line {line}: \"{key}\" must be text (is {type(value).__name__})")
    return value


def _plain(record: dict[str, Any], file: Path, line: int) -> str:
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
    return text


def _conversation(record: dict[str, Any], file: Path, line: int) -> tuple[Message, ...]:
    if "messages" in record:
        messages = _turns(record["messages"], "messages", "role", "content", file, line)
    elif "conversations" in record:
        messages = _turns(record["conversations"], "conversations", "from", "value", file, line)
    elif "instruction" in record:
        question = _text_of(record, "instruction", file, line)
        if record.get("input"):
            question += "\n\n" + _text_of(record, "input", file, line)
        messages = [_turn("user", question), _turn("assistant", _text_of(record, "output", file, line))]
    elif "prompt" in record:
        messages = [
            _turn("user", _text_of(record, "prompt", file, line)),
            _turn("assistant", _text_of(record, "completion", file, line)),
        ]
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
    return tuple(messages)


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _turns(value: Any, name: str, role_key: str, text_key: str, file: Path, line: int) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise DamagedFileError(f"'{file}', line {line}: \"{name}\" must be a list of turns")
    turns = []
    for number, turn in enumerate(value, start=1):
        if not isinstance(turn, dict):
            raise DamagedFileError(f"'{file}', line {line}: turn {number} is not an object")
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


def split_held_out(examples: Sequence[Example], fraction: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(training, held-out) examples: of each language `fraction`, at least one, drawn with `seed`.

    Equal examples stay on one side, so that nothing held out is also trained on. Raises InputError when a
    language has fewer than two different examples.
    """
    groups: dict[str, dict[Any, list[Example]]] = defaultdict(lambda: defaultdict(list))
    for example in examples:
        key = example.text or tuple((m["role"], m["content"]) for m in example.messages)
        groups[example.lang][key].append(example)
    held: set[tuple[Path, int]] = set()
    for lang in sorted(groups):
        keys = list(groups[lang])
        if len(keys) < 2:
            raise InputError(
                f"the language '{lang}' has only one example: nothing can be held out to measure the loss on",
                hint="Add examples, or name held-out data with --eval-data.",
            )
        count = min(len(keys) - 1, max(1, round(len(keys) * fraction)))
        for key in random.Random(f"{seed}:{lang}").sample(keys, count):
            held.update((example.file, example.line) for example in groups[lang][key])
    train = [example for example in examples if (example.file, example.line) not in held]
    return train, [example for example in examples if (example.file, example.line) in held]
