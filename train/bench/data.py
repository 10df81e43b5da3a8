"""The data that every contender gets: a file of conversations repeated and shuffled, encoded once.

It knows nothing of who trains on it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from slm.errors import InputError
from train.config import TrainOptions
from train.data.examples import Example, read_conversations
from train.data.masks import Encoded
from train.data.prepare import prepare_conversations

_T = TypeVar("_T")


@dataclass(frozen=True)
class BenchData:
    """Where the conversations and their token ids were written, and what is in them (training side)."""

    train_file: Path
    held_out_file: Path
    ids_file: Path
    examples: int
    tokens: int
    supervised: int
    longest: int
    held_out_examples: int

    def as_json(self) -> dict[str, Any]:
        """The figures, without the paths."""
        return {
            "examples": self.examples,
            "tokens": self.tokens,
            "tokens_mean": round(self.tokens / self.examples, 1),
            "tokens_longest": self.longest,
            "supervised_tokens": self.supervised,
            "supervised_share": round(self.supervised / self.tokens, 4),
            "held_out_examples": self.held_out_examples,
        }


def repeated(items: Sequence[_T], count: int, seed: int) -> list[_T]:
    """`count` of the items, shuffled by `seed`; each comes as often as any other, or once more."""
    many = [items[n % len(items)] for n in range(count)]
    random.Random(seed).shuffle(many)
    return many


def write_data(
    base: Path, file: Path, folder: Path, *, count: int, used: int | None, longest: int, seed: int
) -> BenchData:
    """Encode `file` for `base`, hold out a tenth, repeat the rest to `count` examples and keep the first `used`.

    Examples of more than `longest` tokens are left out. Writes conversations (train.jsonl, held-out.jsonl) for whoever
    encodes them itself and token ids (ids.json) for the others. Raises InputError when a conversation makes several
    sequences, because examples could not be counted then.
    """
    prepared = prepare_conversations(
        TrainOptions(base, (file,), folder / "unused", max_length=longest, drop_long=True, seed=seed)
    )
    lines = {item.example.line for item in prepared.train}
    if len(lines) != len(prepared.train):
        raise InputError(
            f"the chat template of '{base}' makes {len(prepared.train)} sequences of {len(lines)} conversations",
            hint="The benchmark needs one sequence each: choose other data with --data.",
        )
    train = repeated(prepared.train, count, seed)[:used]
    messages = {example.line: example.messages for example in read_conversations((file,))}
    paths = folder / "train.jsonl", folder / "held-out.jsonl"
    for path, items in zip(paths, (train, prepared.held_out), strict=True):
        records = [{"lang": item.example.lang, "messages": messages[item.example.line]} for item in items]
        text = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
        path.write_text(text + "\n", encoding="utf-8")
    ids = folder / "ids.json"
    sides = {"train": train, "held_out": prepared.held_out}
    record = {name: [[i.ids, i.labels, i.example.lang] for i in items] for name, items in sides.items()}
    ids.write_text(json.dumps(record | {"pad_id": prepared.tokenizer.pad_token_id}), encoding="utf-8")
    return BenchData(
        *paths,
        ids,
        examples=len(train),
        tokens=sum(len(item.ids) for item in train),
        supervised=sum(item.supervised for item in train),
        longest=max(len(item.ids) for item in train),
        held_out_examples=len(prepared.held_out),
    )


def read_ids(file: Path) -> tuple[list[Encoded], list[Encoded], int]:
    """(training sequences, held-out sequences, padding id) of an ids.json."""
    record = json.loads(file.read_text(encoding="utf-8"))

    def side(name: str) -> list[Encoded]:
        rows = enumerate(record[name], start=1)
        return [Encoded(tuple(ids), tuple(labels), Example(file, n, lang)) for n, (ids, labels, lang) in rows]

    return side("train"), side("held_out"), record["pad_id"]
