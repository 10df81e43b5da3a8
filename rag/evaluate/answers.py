"""Measures answers over documents: the right page cited, the right fact said. It knows nothing of models.

A fact counts as said when one of a question's `answer` words stands in the answer, its citations taken away, and
is not a part of a longer number or Latin word. That is a lower bound for a reader's judgement where an answer may be
worded otherwise, and an upper bound where the words stand beside something wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rag.answer.cite import refuses
from rag.answer.marks import without_marks
from rag.evaluate.retrieval import Question, rank_of_first
from slm.joints import Message, Retriever


@dataclass(frozen=True)
class Answered:
    """One question with what came of it; `right` is None for a question without `answer` words."""

    question: str
    lang: str
    answer: str
    answerable: bool
    shown: bool
    cited: bool
    right: bool | None
    refused: bool


def says(answer: str, facts: Sequence[str]) -> bool:
    """Whether one of the facts stands in the answer, not as a part of a longer number or Latin word."""
    text = without_marks(answer)
    return any(re.search(rf"(?<![0-9A-Za-z]){re.escape(fact)}(?![0-9A-Za-z])", text) for fact in facts)


def evaluate_answers(
    retriever: Retriever,
    ask: Callable[[list[Message]], str],
    questions: Sequence[Question],
    k: int,
    on_question: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Answers all questions from the best k passages. Figures by language, counts of questions:

    n answerable ones, shown (a right page was among the passages), cited (a right page was cited), right (a fact was
    said) of `keyed` ones with `answer` words; refused of `unanswerable` ones. `answers` holds every one of them.
    """
    answers: list[Answered] = []
    for number, question in enumerate(questions, start=1):
        grounded = retriever.grounded(question.question, k)
        text = (grounded.citations.feed(ask(grounded.messages)) + grounded.citations.end()).strip()
        cited = [grounded.passages[one - 1].source for one in grounded.citations.cited]
        answers.append(
            Answered(
                question.question, question.lang, text, question.answerable,
                shown=rank_of_first([p.source for p in grounded.passages], question.relevant) is not None,
                cited=rank_of_first(cited, question.relevant) is not None,
                right=says(text, question.answer) if question.answer else None,
                refused=refuses(text),
            )
        )  # fmt: skip
        on_question(number)

    def part(rows: Sequence[Answered]) -> dict[str, int]:
        asked = [row for row in rows if row.answerable]
        return {
            "n": len(asked),
            "shown": sum(row.shown for row in asked),
            "cited": sum(row.cited for row in asked),
            "keyed": sum(row.right is not None for row in asked),
            "right": sum(bool(row.right) for row in asked),
            "unanswerable": len(rows) - len(asked),
            "refused": sum(row.refused for row in rows if not row.answerable),
        }

    languages = sorted({row.lang for row in answers})
    return {
        "by_language": {lang: part([row for row in answers if row.lang == lang]) for lang in languages},
        "overall": part(answers),
        "answers": [asdict(row) for row in answers],
    }
