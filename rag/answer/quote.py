"""The sentences of passages that lie nearest to a question. It knows nothing of prompts, models or indexes.

A reader checks an answer soonest by the one sentence of its source that it should rest on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rag.document import is_table_rule
from rag.index.embed import Embedder
from rag.index.variants import comparable
from slm.joints import Passage
from slm.text.visible import one_line, visible

_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")
_ITEM = re.compile(r"^\s*(?:[-*+]|\d+[.)])\s+")


def sentences_of(text: str) -> list[str]:
    """Sentences and list items, in order; a table's row comes as "column: cell, ...", so that it says what it means."""
    sentences: list[str] = []
    lines = text.split("\n")
    columns: list[str] = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if "|" in line and is_table_rule(following):
            columns = _cells(line)
        elif columns and "|" in line:
            if not is_table_rule(line):
                sentences.append(_row(columns, _cells(line)))
        else:
            columns = []
            sentences += _split(line)
    return sentences


def _split(line: str) -> list[str]:
    """The sentences of a line; a list item's number stays with its first one."""
    marker = _ITEM.match(line)
    start = marker.end() if marker else 0
    parts = [part.strip() for part in _SENTENCE.split(line[start:]) if part.strip()]
    return [line[:start].lstrip() + parts[0], *parts[1:]] if parts else []


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]


def _row(columns: list[str], cells: list[str]) -> str:
    named = [f"{column}: {cell}" if column else cell for column, cell in zip(columns, cells, strict=False) if cell]
    return ", ".join([*named, *(cell for cell in cells[len(columns) :] if cell)])


def quotes_of(question: str, passages: Sequence[Passage], embedder: Embedder) -> list[str]:
    """For each passage its sentence nearest to the question, in one line; "" for a passage without a sentence.

    Nearness is the cosine of the embedder's vectors; a sentence is embedded under its title and heading.
    """
    parts = [sentences_of(visible(passage.text)) for passage in passages]
    texts = [comparable(f"{p.place}\n{s}") for p, own in zip(passages, parts, strict=True) for s in own]
    scores = iter((embedder.passages(texts) @ embedder.queries([comparable(question)])[0]).tolist() if texts else [])
    ranked = [[(next(scores), sentence) for sentence in own] for own in parts]
    return [one_line(max(own, key=lambda pair: pair[0])[1]) if own else "" for own in ranked]
