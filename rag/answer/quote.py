"""The lines of passages that lie nearest to a question. It knows nothing of prompts, models or indexes.

A reader checks an answer soonest by the one line of its source that it should rest on.
"""

from __future__ import annotations

from collections.abc import Sequence

from rag.answer.reader.lines import lines_of
from rag.index.embed import Embedder
from rag.index.variants import comparable
from slm.joints import Passage


def quotes_of(question: str, passages: Sequence[Passage], embedder: Embedder) -> list[str]:
    """For each passage its line nearest to the question; "" for a passage without one.

    Nearness is the cosine of the embedder's vectors; a line is embedded under its title and heading.
    """
    parts = [[line.text for line in lines_of(passage.text)] for passage in passages]
    texts = [comparable(f"{p.place}\n{line}") for p, own in zip(passages, parts, strict=True) for line in own]
    scores = iter((embedder.passages(texts) @ embedder.queries([comparable(question)])[0]).tolist() if texts else [])
    ranked = [[(next(scores), line) for line in own] for own in parts]
    return [max(own, key=lambda pair: pair[0])[1] if own else "" for own in ranked]
