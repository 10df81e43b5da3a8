"""A first questions file for documents of one's own: their titles and headings as questions, their pages as answers.

Headings are searched with their texts, so that these questions are easy ones. What they show is which pages get in each
other's way; how people ask is put in by hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

from rag.index.chunk import Chunk
from rag.index.same.once import plain

# A heading of more pages than these says nothing of any of them: Overview, 概要, Contact.
MANY = 3
# Of shorter ones the title is a part: "Length" asks nothing, "Paid leave Length" does.
_WORDS, _CJK_CHARACTERS = 3, 6
_CJK = re.compile(r"[\u3041-\u30ff\u3400-\u9fff]")
_NUMBERING = re.compile(r"^(?:[0-9]+(?:[.-][0-9]+)*[.)]?|[A-Z][.)]|[ivxIVX]+[.)])[ \t]+(?=\S)")


@dataclass(frozen=True)
class AskedHeading:
    """A question that is a title or a heading, and the documents that have it with text under it."""

    question: str
    lang: str
    relevant: tuple[str, ...]

    def as_row(self) -> dict[str, Any]:
        """A line of a questions file, as `rag.questions.read_questions` takes it."""
        return {"question": self.question, "lang": self.lang, "relevant": list(self.relevant), "answerable": True}


def questions_of(chunks: Iterable[Chunk], most: int) -> list[AskedHeading]:
    """At most so many questions, in turns from every document and spread over each of them.

    A title or heading counts with text of its own below it, once; what more than `MANY` documents have is left out.
    """
    found: dict[str, dict[str, str]] = {}  # source -> question -> language
    where: dict[str, set[str]] = {}  # question as it is compared -> sources
    for chunk in chunks:
        own = chunk.headings[-1] if chunk.headings else chunk.title
        question = _question(chunk.title, chunk.headings)
        if not question or plain(chunk.text) in ("", plain(own)):
            continue
        where.setdefault(plain(question), set()).add(chunk.source)
        found.setdefault(chunk.source, {}).setdefault(question, chunk.lang)
    rare = {
        source: [question for question in questions if len(where[plain(question)]) <= MANY]
        for source, questions in found.items()
    }
    chosen: dict[str, AskedHeading] = {}
    rounds = zip_longest(*(_spread(questions) for questions in rare.values()))
    for source, question in chain.from_iterable(zip(rare, row, strict=True) for row in rounds):
        if question is not None and plain(question) not in chosen and len(chosen) < most:
            lang = found[source][question]
            chosen[plain(question)] = AskedHeading(question, lang, tuple(sorted(where[plain(question)])))
    return list(chosen.values())


def _question(title: str, headings: Sequence[str]) -> str:
    """The words of the last heading, after the title's where they are few; the title's where there is no heading."""
    title, own = unnumbered(title), unnumbered(headings[-1]) if headings else ""
    if not own or plain(own) == plain(title):
        return title
    return own if _says_enough(own) else f"{title} {own}".strip()


def unnumbered(heading: str) -> str:
    """The words of a heading, without its number and without marks of code and emphasis."""
    text = " ".join(re.sub(r"[*_`]+", "", heading).split())
    return _NUMBERING.sub("", text)


def _says_enough(heading: str) -> bool:
    cjk = len(_CJK.findall(heading))
    return cjk >= _CJK_CHARACTERS if cjk else len(heading.split()) >= _WORDS


def _spread(questions: Sequence[str]) -> list[str]:
    """All of them in such an order that the first few are from the whole document: first, middle, quarters, ..."""
    order: dict[int, None] = {}
    parts = 1
    while len(order) < len(questions):
        for part in range(parts):
            order.setdefault(part * len(questions) // parts)
        parts *= 2
    return [questions[number] for number in order]
