"""Measures retrieval on questions with known right documents. It knows nothing of answers or models.

The documents under `relevant` are alternatives: a page and its translation both answer. So a question counts
as found at k when one of them is among the first k documents, and its nDCG is 1 / log2(1 + rank of the first)
(Jaervelin & Kekaelaeinen 2002, with one relevant document). Questions that are not answerable are left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rag.index.embed import Embedder
from rag.index.names import source_matches
from rag.index.retrieve import Leg, Weights, search
from rag.index.store import Generation
from slm.errors import DamagedFileError, InputError
from slm.terminal.text_file import read_text

_DEPTH, _CHUNKS = 10, 60


@dataclass(frozen=True)
class Question:
    """One line of a questions file. `answer`: words any of which a right answer holds, such as "13,000"; all of them
    where it says `together`. kind: what kind of question it is, in the file's own words."""

    question: str
    lang: str
    relevant: tuple[str, ...]
    answerable: bool
    answer: tuple[str, ...] = ()
    together: bool = False
    kind: str = ""


def read_questions(path: Path | str) -> list[Question]:
    """Read a questions file (JSON Lines). Raises MissingFileError, DamagedFileError with the line's number."""
    questions: list[Question] = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):  # JSON may hold other line separators
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            answerable = bool(row.get("answerable", True))
            names, facts = _texts(row, "relevant"), _texts(row, "answer")
            together, kind = bool(row.get("together")), str(row.get("kind", ""))
            question = Question(str(row["question"]), str(row["lang"]), names, answerable, facts, together, kind)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedFileError(
                f"'{path}', line {number} is no question: {error}",
                hint='A line is {"question": ..., "lang": "en", "relevant": ["page.md"], "answerable": true}.',
            ) from error
        if answerable and not question.relevant:
            raise DamagedFileError(f"'{path}', line {number}: an answerable question names no relevant document")
        questions.append(question)
    if not any(question.answerable for question in questions):
        raise InputError(f"'{path}' holds no answerable question", found=f"{len(questions)} questions")
    return questions


def _texts(row: dict[str, Any], name: str) -> tuple[str, ...]:
    values = row.get(name, [])
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"'{name}' is no list of texts")
    return tuple(values)


def rank_of_first(sources: Sequence[str], relevant: Sequence[str]) -> int | None:
    """The rank, from 1, of the first source that one of `relevant` names; each source counts once."""
    for rank, source in enumerate(dict.fromkeys(sources), start=1):
        if any(source_matches(source, name) for name in relevant):
            return rank
    return None


def figures(ranks: Sequence[int | None]) -> dict[str, Any]:
    """recall_at_1, recall_at_5, ndcg_at_10 and n of the ranks of the first right documents (None: not found)."""
    count = len(ranks)
    found = [rank for rank in ranks if rank is not None]
    return {
        "recall_at_1": sum(rank <= 1 for rank in found) / count,
        "recall_at_5": sum(rank <= 5 for rank in found) / count,
        "ndcg_at_10": sum(1 / math.log2(1 + rank) for rank in found if rank <= _DEPTH) / count,
        "n": count,
    }


def evaluate(
    generation: Generation,
    embedder: Embedder,
    questions: Sequence[Question],
    leg: Leg = "fused",
    weights: Weights | None = None,
    on_question: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Figures by language of the question and overall; `first_in_language` is the share of first documents that
    are in the question's own language. Raises InputError when a right document is not in the index at all."""
    asked = [question for question in questions if question.answerable]
    for question in asked:
        if not any(source_matches(s, name) for name in question.relevant for s in generation.documents):
            raise InputError(
                f"the index holds none of the right documents of '{question.question}'",
                found=", ".join(question.relevant),
                hint="Add the documents first with: slm rag add INDEX PATH...",
            )
    ranks: list[int | None] = []
    same: list[bool] = []
    for number, question in enumerate(asked, start=1):
        hits = search(generation, embedder, question.question, _CHUNKS, leg, weights)
        ranks.append(rank_of_first([generation.chunks[hit.row].source for hit in hits], question.relevant))
        same.append(bool(hits) and generation.chunks[hits[0].row].lang == question.lang)
        on_question(number)

    def part(rows: list[int]) -> dict[str, Any]:
        return {**figures([ranks[i] for i in rows]), "first_in_language": sum(same[i] for i in rows) / len(rows)}

    by_language: dict[str, list[int]] = {}
    for i, question in enumerate(asked):
        by_language.setdefault(question.lang, []).append(i)
    return {
        "leg": leg,
        "by_language": {lang: part(rows) for lang, rows in sorted(by_language.items())},
        "overall": part(list(range(len(asked)))),
        "unanswerable": len(questions) - len(asked),
    }
