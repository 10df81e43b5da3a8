"""The questions of a chat evaluation: a line of JSON each, with the rules by which an answer is right.

It knows nothing of models. An item may bring an answer that is right and one that is wrong; the rules are held against
both when the file is read, so that a rule that judges wrongly is found before anything is measured.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm.errors import DamagedFileError, InputError, SlmError
from slm.joints import Message
from slm.terminal.text_file import read_text
from train.measure.answers.rules import AnswerRule, rule_of

_FIELDS = ("id", "lang", "kind", "system", "prompt", "rules", "right", "wrong")
_HINT = 'A line is {"id": "en-1", "lang": "en", "kind": "arithmetic", "prompt": ..., "rules": [{"rule": ...}]}.'


@dataclass(frozen=True)
class ChatItem:
    """A question, in which language and of which kind it is, and the rules that a right answer keeps, all of them."""

    id: str
    lang: str
    kind: str
    messages: tuple[Message, ...]
    rules: tuple[AnswerRule, ...]
    right: str | None = None
    wrong: str | None = None

    def broken(self, answer: str) -> tuple[str, ...]:
        """The names of the rules that an answer breaks; none: it is right. An empty answer is never right."""
        if not answer.strip():
            return ("empty",)
        return tuple(rule.name for rule in self.rules if not rule.check(answer))


def read_items(path: Path | str) -> list[ChatItem]:
    """The items of a JSON Lines file. Raises MissingFileError, InputError, DamagedFileError with the line's number."""
    items: list[ChatItem] = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            items.append(_item(json.loads(line)))
        except SlmError as error:
            raise DamagedFileError(f"'{path}', line {number}: {error.what}", hint=error.hint) from error
        except (ValueError, RecursionError) as error:
            raise DamagedFileError(f"'{path}', line {number} is no item: {error}", hint=_HINT) from error
    twice = [name for name, count in Counter(item.id for item in items).items() if count > 1]
    if twice:
        raise DamagedFileError(f"'{path}' has two items called '{twice[0]}'")
    if not items:
        raise InputError(f"'{path}' holds no item", hint=_HINT)
    return items


def first_of_each(items: Sequence[ChatItem], count: int) -> list[ChatItem]:
    """The first `count` items of each kind in each language, in the file's order; 0: all."""
    seen: Counter[tuple[str, str]] = Counter()
    kept = []
    for item in items:
        seen[item.lang, item.kind] += 1
        if not count or seen[item.lang, item.kind] <= count:
            kept.append(item)
    return kept


def _item(row: Any) -> ChatItem:
    if not isinstance(row, Mapping):
        raise ValueError("it is no JSON object")
    unknown = sorted(set(row) - set(_FIELDS))
    if unknown:
        raise ValueError(f"no field '{unknown[0]}'; known: {', '.join(_FIELDS)}")
    texts = {}
    for name in _FIELDS:
        if name == "rules" or (name in ("system", "right", "wrong") and name not in row):
            continue
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise ValueError(f"'{name}' is no text")
        texts[name] = row[name]
    if not isinstance(row.get("rules"), list) or not row["rules"]:
        raise ValueError("'rules' is no list of rules")
    messages = [Message(role="system", content=texts["system"])] if "system" in texts else []
    messages.append(Message(role="user", content=texts["prompt"]))
    item = ChatItem(
        texts["id"], texts["lang"], texts["kind"], tuple(messages), tuple(rule_of(one) for one in row["rules"]),
        texts.get("right"), texts.get("wrong"),
    )  # fmt: skip
    if item.right is not None and (broken := item.broken(item.right)):
        raise InputError(f"the rules of '{item.id}' refuse its own right answer ({', '.join(broken)})")
    if item.wrong is not None and not item.broken(item.wrong):
        raise InputError(f"the rules of '{item.id}' take its own wrong answer for right")
    return item
