"""Which passages a reader reads for a question: the best of its own language, and some of every other one.

Embedders bring texts of the question's language first, however well a page in another one answers. So each language is
ranked by itself, and what answers best is left to the reader. It knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rag.answer.reader.form import cost
from rag.index.embed import Embedder
from rag.index.embedders.remembered import RememberedQuery
from rag.index.generation.facets import UNKNOWN
from rag.index.retrieve import Hit, Searched, Weights, other_sources, search
from slm.joints import EVERYTHING, Filters, Passage
from slm.text.language import detect
from slm.text.visible import one_line


@dataclass(frozen=True)
class Depth:
    """How many passages of the question's language, and of all others together; and about how many tokens in all.

    By default about 1,600 tokens on the development questions, which two cores read in about a second. A line that
    answers is among these for 92 of 100 questions in English and 97 in Japanese.
    """

    same: int = 10
    other: int = 6
    tokens: int = 3600


DEPTH = Depth()


def candidates(
    generation: Searched, embedder: Embedder, question: str, depth: Depth = DEPTH, filters: Filters = EVERYTHING
) -> list[Passage]:
    """The passages to be read, those of the question's language first. Raises what `search` raises."""
    chosen: list[Passage] = []
    left = depth.tokens
    for passage in _ranked(generation, embedder, question, depth, filters):
        left -= cost(passage)
        if chosen and left < 0:
            break
        chosen.append(passage)
    return chosen


def _ranked(
    generation: Searched, embedder: Embedder, question: str, depth: Depth, filters: Filters
) -> Iterator[Passage]:
    known = generation.facets.languages_of(filters)
    once = RememberedQuery(embedder)
    own = detect(question, set(known) - {UNKNOWN}).language if len(known) > 1 else None
    if own not in known:
        wanted = [(filters, depth.same + depth.other)]
    else:
        others = tuple(language for language in known if language != own)
        wanted = [(replace(filters, languages=(own,)), depth.same), (replace(filters, languages=others), depth.other)]
    for chosen, count in wanted:
        # A reader sees where a fact stands: the third chunk of the right page is worth more than the first of others.
        weights = Weights(a_page=count)
        yield from passages_of(generation, search(generation, once, question, count, weights=weights, filters=chosen))


def passages_of(generation: Searched, hits: Sequence[Hit]) -> list[Passage]:
    """What was found, as it is shown and read."""
    chunks = generation.chunks.at(hit.row for hit in hits)
    return [
        Passage(one_line(c.title), one_line(c.heading), c.text, c.source, hit.score, other_sources(generation, hit))
        for hit, c in ((hit, chunks[hit.row]) for hit in hits)
    ]
