"""Learns to see whether a question asks for two things: `make twofold` runs this (docs/reader.md).

The questions of the training organisations of data/reading, answered by two lines together or not -> a logistic model
over hashed pieces -> rag/answer/twofold.npy. What it sees of the development organisations' questions is printed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from scipy.sparse import csr_array  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402

from rag.answer.point import TWOFOLD  # noqa: E402
from rag.answer.twofold import LEARNED, WEIGHTS, asks_for_two, pieces  # noqa: E402
from rag.questions import Question, read_questions  # noqa: E402
from scripts.reader import READING  # noqa: E402

# The inverse of how much large weights cost; development questions are told apart as well by 10 as by 30.
_FREEDOM = 20.0


def questions_of(split: str) -> list[Question]:
    """All questions of a split's organisations."""
    return [one for file in sorted((READING / split).glob("*/questions.jsonl")) for one in read_questions(file)]


def matrix_of(questions: list[Question]) -> Any:
    """(questions, WEIGHTS), sparse: 1 / sqrt(pieces) where a question has a piece."""
    found = [sorted(pieces(one.question)) for one in questions]
    values = np.concatenate([np.full(len(one), len(one) ** -0.5) for one in found])
    ends = np.cumsum([0, *(len(one) for one in found)])
    return csr_array((values, np.concatenate(found), ends), shape=(len(questions), WEIGHTS))


def main() -> None:
    """The recipe from beginning to end."""
    questions = questions_of("train")
    model = LogisticRegression(C=_FREEDOM, max_iter=1000)
    model.fit(matrix_of(questions), [one.together for one in questions])
    np.save(LEARNED, np.append(model.coef_[0], model.intercept_).astype(np.float16))
    print(f"{LEARNED.relative_to(ROOT)}: {len(questions)} questions")
    for lang in ("en", "ja"):
        held = [one for one in questions_of("development") if one.lang == lang]
        for together in (True, False):
            seen = [asks_for_two(one.question) >= TWOFOLD for one in held if one.together is together]
            print(f"{lang}: {sum(seen)} of {len(seen)} that ask for {'two things' if together else 'one'} seen as two")


if __name__ == "__main__":
    main()
