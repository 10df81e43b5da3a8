"""Examples for a reader: rows of token ids, where the lines in them are, and which of these answer. It knows no model.

A line of the data is {"form", "lang", "rows": [{"ids", "question", "lines": [[start, end], ...]}, ...], "right": [[row,
line], ...], "ignored": ..., "every": bool}: what the rows mean is known to whoever made them, and `form` is their
number for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm.errors import DamagedFileError, InputError, MismatchError
from train.data.examples import Example
from train.data.lines import json_objects


@dataclass(frozen=True)
class ReaderRow:
    """What is read at once: ids[:question] are the question's, ids[start:end] a line's for each of `lines`."""

    ids: tuple[int, ...]
    question: int
    lines: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class ReaderExample:
    """A question with its passages.

    right, ignored: of all lines in order, which answer, and which are neither right nor wrong. every: all right ones
    have to be found, else one is enough.
    """

    rows: tuple[ReaderRow, ...]
    right: tuple[bool, ...]
    ignored: tuple[bool, ...]
    every: bool
    example: Example

    supervised: int = 1

    @property
    def tokens(self) -> int:
        return sum(len(row.ids) for row in self.rows)


def read_examples(
    paths: Sequence[Path], words: int, positions: int
) -> tuple[list[ReaderExample], int, dict[Path, int]]:
    """(the examples, the form of their rows, how many each file has).

    words, positions: how many the base has. Raises DamagedFileError naming the line, MismatchError for files of
    different forms or of another base's tokens.
    """
    examples: list[ReaderExample] = []
    forms: dict[int, Path] = {}
    counts: dict[Path, int] = {}
    for path in paths:
        for line, row in json_objects(path):
            where = f"'{path}', line {line}"
            try:
                forms.setdefault(int(row["form"]), path)
                example = _example(row, Example(path, line, str(row["lang"])))
            except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
                raise DamagedFileError(f"{where} is no example for a reader", found=repr(error)) from error
            if max(max(one.ids) for one in example.rows) >= words or max(map(_length, example.rows)) > positions:
                raise MismatchError(f"{where} was made for another base: its tokens are not this one's")
            examples.append(example)
            counts[path] = counts.get(path, 0) + 1
    if not examples:
        raise InputError("the data hold no example", found=", ".join(map(str, paths)))
    if len(forms) > 1:
        names = ", ".join(f"{form} ('{path}')" for form, path in forms.items())
        raise MismatchError("the examples were made for readers of different forms", found=names)
    return examples, next(iter(forms)), counts


def _length(row: ReaderRow) -> int:
    return len(row.ids)


def _example(row: dict[str, Any], example: Example) -> ReaderExample:
    rows = tuple(_row(one) for one in row["rows"])
    marks = {name: {(int(r), int(n)) for r, n in row[name]} for name in ("right", "ignored")}
    known = [(number, line) for number, one in enumerate(rows) for line in range(len(one.lines))]
    if not marks["right"] | marks["ignored"] <= set(known):
        raise ValueError("a line that is marked is not there")
    if marks["right"] & marks["ignored"]:
        raise ValueError("a line is marked as right and as ignored")
    if not known:
        raise ValueError("its rows have no lines")
    right, ignored = (tuple(place in marks[name] for place in known) for name in ("right", "ignored"))
    return ReaderExample(rows, right, ignored, bool(row["every"]), example)


def _row(row: dict[str, Any]) -> ReaderRow:
    ids, question = tuple(map(int, row["ids"])), int(row["question"])
    lines = tuple((int(start), int(end)) for start, end in row["lines"])
    if min(ids) < 0 or not 0 < question <= len(ids) or not all(0 <= a < b <= len(ids) for a, b in lines):
        raise ValueError("a stretch lies outside its row")
    return ReaderRow(ids, question, lines)
