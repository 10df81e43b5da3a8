"""Measures retrieval on questions with known right documents. It knows nothing of answers or models.

The documents under `relevant` are alternatives: a page and its translation both answer. So a question counts
as found at k when one of them is among the first k documents, and its nDCG is 1 / log2(1 + rank of the first)
(Jaervelin & Kekaelaeinen 2002, with one relevant document). Questions that are not answerable are left out. A text
that stands in several documents is one result, and all of them are found with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rag.index.chunk import context_line
from rag.index.embed import Embedder
from rag.index.embedders.remembered import RememberedQuery
from rag.index.names import source_matches
from rag.index.retrieve import Hit, Leg, Searched, Weights, other_sources, search
from rag.questions import Question
from slm.errors import InputError
from slm.joints import Passage
from slm.text.language import detect

_DEPTH, _CHUNKS = 10, 60
MISSED = 5
"""A question is missed when no right document is among so many."""
_INSTEAD = 3


def rank_of_first(sources: Sequence[str], relevant: Sequence[str]) -> int | None:
    """The rank, from 1, of the first source that one of `relevant` names; each source counts once."""
    return _rank([(source,) for source in sources], relevant)


def _rank(results: Sequence[tuple[str, ...]], relevant: Sequence[str]) -> int | None:
    """The rank of the first result that is, or also stands in, a document of `relevant`; one of a document before it
    counts no more."""
    rank = 0
    before: set[str] = set()
    for sources in results:
        if sources[0] not in before:
            rank += 1
            before.add(sources[0])
        if any(source_matches(source, name) for source in sources for name in relevant):
            return rank
    return None


def figures(ranks: Sequence[int | None]) -> dict[str, Any]:
    """recall_at_1, 3, 5 and 10, recall_by_k (k from 1 to 10), ndcg_at_10 and n of the ranks of the first right
    documents (None: not found)."""
    count = len(ranks)
    found = [rank for rank in ranks if rank is not None]
    by_k = [sum(rank <= k for rank in found) / count for k in range(1, _DEPTH + 1)]
    return {
        **{f"recall_at_{k}": by_k[k - 1] for k in (1, 3, 5, 10)},
        "recall_by_k": by_k,
        "ndcg_at_10": sum(1 / math.log2(1 + rank) for rank in found if rank <= _DEPTH) / count,
        "n": count,
    }


@dataclass(frozen=True)
class _Ranked:
    """A question with the rank of its right document in one leg, and what stood first."""

    question: Question
    rank: int | None
    same_language: bool
    instead: tuple[dict[str, Any], ...]


def evaluate(
    generation: Searched,
    embedder: Embedder,
    questions: Sequence[Question],
    leg: Leg = "fused",
    weights: Weights | None = None,
    on_question: Callable[[int], None] = lambda _: None,
    *,
    beside: Sequence[Leg] = (),
) -> dict[str, Any]:
    """Figures of a leg by language of the question and overall; `first_in_language` is the share of first documents
    that are in the question's own language. `legs` has them of that leg and of those beside it, `misses` the leg's
    questions without a right document among the first five, each with the first results.

    Raises InputError when a right document is not in the index at all.
    """
    asked = [question for question in questions if question.answerable]
    for question in asked:
        if not any(source_matches(s, name) for name in question.relevant for s in generation.documents):
            raise InputError(
                f"the index holds none of the right documents of '{question.question}'",
                found=", ".join(question.relevant),
                hint="Add the documents first with: slm rag add INDEX PATH...",
            )
    ranked: dict[Leg, list[_Ranked]] = {one: [] for one in dict.fromkeys((leg, *beside))}
    once = RememberedQuery(embedder)
    for number, question in enumerate(asked, start=1):
        for one, rows in ranked.items():
            hits = search(generation, once, question.question, _CHUNKS, one, weights)
            rows.append(_judged(generation, question, hits))
        on_question(number)
    legs = {one: _by_language(rows) for one, rows in ranked.items()}
    misses = [row for row in ranked[leg] if row.rank is None or row.rank > MISSED]
    return {
        "leg": leg,
        **legs[leg],
        "unanswerable": len(questions) - len(asked),
        "legs": legs,
        "misses": [
            {
                "question": row.question.question, "lang": row.question.lang,
                "relevant": list(row.question.relevant), "rank": row.rank, "instead": list(row.instead),
            }
            for row in misses
        ],
    }  # fmt: skip


def evaluate_reading(
    read: Callable[[str], Sequence[Passage]],
    questions: Sequence[Question],
    on_question: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Figures as a leg's, of the passages that a reader puts first for a question."""
    rows = []
    for number, question in enumerate((one for one in questions if one.answerable), start=1):
        passages = read(question.question)
        results = [(passage.source, *passage.also) for passage in passages]
        same = bool(passages) and detect(passages[0].text).language == question.lang
        rows.append(_Ranked(question, _rank(results, question.relevant), same, ()))
        on_question(number)
    return _by_language(rows)


def _judged(generation: Searched, question: Question, hits: Sequence[Hit]) -> _Ranked:
    held = generation.chunks.at(hit.row for hit in hits)
    chunks = [held[hit.row] for hit in hits]
    results = [(c.source, *other_sources(generation, hit)) for c, hit in zip(chunks, hits, strict=True)]
    first = {c.source: c for c in reversed(chunks)}
    instead = tuple(
        {"source": source, "place": context_line(first[source].title, first[source].headings)}
        for source in list(dict.fromkeys(c.source for c in chunks))[:_INSTEAD]
    )
    same = bool(chunks) and chunks[0].lang == question.lang
    return _Ranked(question, _rank(results, question.relevant), same, instead)


def _by_language(rows: Sequence[_Ranked]) -> dict[str, Any]:
    def part(some: Sequence[_Ranked]) -> dict[str, Any]:
        return {**figures([r.rank for r in some]), "first_in_language": sum(r.same_language for r in some) / len(some)}

    languages = sorted({row.question.lang for row in rows})
    return {
        "by_language": {lang: part([row for row in rows if row.question.lang == lang]) for lang in languages},
        "overall": part(rows),
    }
