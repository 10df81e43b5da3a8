"""When a reader should refuse: the probability of "no line answers" from which on, fitted on questions with answers.

It knows nothing of models: the rows it is given were answered without ever refusing.
"""

from __future__ import annotations

from collections.abc import Sequence

from rag.evaluate.answers import Answered

# What an answer that is wrong, or said where there is none, costs beside a right one that is not given.
PRICE = 0.5
# The share of the questions with an answer that may be answered wrong.
MOST_WRONG = 0.08


def fitted(rows: Sequence[Answered], price: float = PRICE, most_wrong: float = 1.0) -> dict[str, float]:
    """The threshold of each language, and "" of all together for every other language."""
    languages = sorted({row.lang for row in rows})
    return {"": threshold(rows, price, most_wrong)} | {
        lang: threshold([row for row in rows if row.lang == lang], price, most_wrong) for lang in languages
    }


def threshold(rows: Sequence[Answered], price: float, most_wrong: float = 1.0) -> float:
    """The threshold with the best sum of right answers less `price` times those that should not have been given.

    Of the questions with an answer at most the share `most_wrong` is answered wrong below it. It lies halfway between
    the two questions it parts. 1 where saying everything is best (nothing is refused). Questions that the documents
    answer, but of which nobody says how, are left out.
    """
    judged = [row for row in rows if row.right is not None or not row.answerable]
    ranked = sorted((row.doubt or 0.0, 1.0 if row.right else -price, row.right is False) for row in judged)
    allowed = most_wrong * sum(row.right is not None for row in judged)
    best, total, limit, wrong = 0.0, 0.0, 0.0, 0
    for number, (doubt, worth, is_wrong) in enumerate(ranked):
        total, wrong = total + worth, wrong + is_wrong
        if wrong > allowed:
            break
        following = ranked[number + 1][0] if number + 1 < len(ranked) else 2.0 - doubt
        if total > best and following > doubt:
            best, limit = total, (doubt + following) / 2
    return limit
