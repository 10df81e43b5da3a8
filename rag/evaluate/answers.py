"""Measures answers over documents: the right page cited, the right fact said, the rest refused. It knows no models.

A fact counts as said when one of a question's `answer` words stands in the answer (all of them where it says
`together`), its citations taken away, and is not a part of a longer number or Latin word. That is a lower bound for a
reader's judgement where an answer may be worded otherwise, and an upper bound where the words stand beside something
wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rag.answer.cite import refuses
from rag.answer.marks import without_marks
from rag.evaluate.retrieval import rank_of_first
from rag.questions import Question
from slm.joints import Message, Reader, Retriever


@dataclass(frozen=True)
class Said:
    """An answer, the sources it was made from and those it cites; whether it says that there is none.

    doubt: the reader's probability of that.
    """

    text: str
    shown: list[str]
    cited: list[str]
    refused: bool
    doubt: float | None = None


AskOne = Callable[[str], Said]


@dataclass(frozen=True)
class Answered:
    """One question with what came of it; `right` is None for a question without `answer` words."""

    question: str
    lang: str
    kind: str
    answer: str
    answerable: bool
    shown: bool
    cited: bool
    right: bool | None
    refused: bool
    doubt: float | None


def by_model(retriever: Retriever, ask: Callable[[list[Message]], str], k: int) -> AskOne:
    """Answers that a model words from the best k passages."""

    def answer(question: str) -> Said:
        grounded = retriever.grounded(question, k)
        text = (grounded.citations.feed(ask(grounded.messages)) + grounded.citations.end()).strip()
        cited = [grounded.passages[one - 1].source for one in grounded.citations.cited]
        return Said(text, [passage.source for passage in grounded.passages], cited, refuses(text))

    return answer


def by_reader(retriever: Retriever, reader: Reader) -> AskOne:
    """Answers that a reader points at."""

    def answer(question: str) -> Said:
        pointed = retriever.pointed(question, reader)
        sources = [passage.source for passage in pointed.passages]
        cited = list(dict.fromkeys(sources[one.passage - 1] for one in pointed.said))
        return Said(pointed.text, sources, cited, not pointed.said, pointed.doubt)

    return answer


def says(answer: str, facts: Sequence[str], *, together: bool = False) -> bool:
    """Whether one of the facts (all: together) stands in the answer, not as a part of a longer number or Latin word."""
    text = without_marks(answer)
    found = [re.search(rf"(?<![0-9A-Za-z]){re.escape(fact)}(?![0-9A-Za-z])", text) is not None for fact in facts]
    return bool(found) and (all(found) if together else any(found))


def answered(answer: AskOne, questions: Sequence[Question], on_question: Callable[[int], None]) -> list[Answered]:
    """All questions with what came of them, in their order."""
    rows = []
    for number, question in enumerate(questions, start=1):
        said = answer(question.question)
        rows.append(
            Answered(
                question.question, question.lang, question.kind, said.text, question.answerable,
                shown=rank_of_first(said.shown, question.relevant) is not None,
                cited=rank_of_first(said.cited, question.relevant) is not None,
                right=says(said.text, question.answer, together=question.together) if question.answer else None,
                refused=said.refused,
                doubt=said.doubt,
            )
        )  # fmt: skip
        on_question(number)
    return rows


def evaluate_answers(
    answer: AskOne, questions: Sequence[Question], on_question: Callable[[int], None] = lambda _: None
) -> dict[str, Any]:
    """Answers all questions. Figures overall, by language and by kind, counts of questions:

    n answerable ones, shown (a right page was among the passages), cited (a right page was cited), right (a fact was
    said) of `keyed` ones with `answer` words, wrong (something else was said), unsaid (refused though answerable);
    refused of `unanswerable` ones. `answers` holds every one of them.
    """
    rows = answered(answer, questions, on_question)
    languages, kinds = sorted({row.lang for row in rows}), sorted({row.kind for row in rows} - {""})
    return {
        "by_language": {lang: answer_figures([row for row in rows if row.lang == lang]) for lang in languages},
        "by_kind": {kind: answer_figures([row for row in rows if row.kind == kind]) for kind in kinds},
        "overall": answer_figures(rows),
        "answers": [asdict(row) for row in rows],
    }


def answer_figures(rows: Sequence[Answered]) -> dict[str, int]:
    """The counts of `evaluate_answers` for some of the questions."""
    asked = [row for row in rows if row.answerable]
    return {
        "n": len(asked),
        "shown": sum(row.shown for row in asked),
        "cited": sum(row.cited for row in asked),
        "keyed": sum(row.right is not None for row in asked),
        "right": sum(bool(row.right) and not row.refused for row in asked),
        "wrong": sum(row.right is False and not row.refused for row in asked),
        "unsaid": sum(row.refused for row in asked),
        "unanswerable": len(rows) - len(asked),
        "refused": sum(row.refused for row in rows if not row.answerable),
    }
