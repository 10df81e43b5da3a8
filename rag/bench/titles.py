"""Titles as questions to the sections that stand under them, with the titles left out of the index.

It measures retrieval on any manual, without questions that somebody wrote: each section is a document of its text
alone. Sections of two languages belong together when their files differ in the language's code alone (`a.en.html` and
`a.ja.html`, `en/a.md` and `ja/a.md`) and have equally many of them. It knows nothing of how figures are shown.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rag.document import Document, Section
from rag.evaluate.headings import unnumbered
from rag.index.embed import Embedder
from rag.index.embedders.remembered import RememberedQuery
from rag.index.retrieve import LEGS, other_sources, search
from rag.index.store import Generation, open_generation
from rag.index.update import add_documents
from rag.index.variants import comparable
from slm.errors import InputError

_DEPTH = 5


@dataclass(frozen=True)
class Titled:
    """A section: the file that it is of, without its language; its number there; its heading's words; its text."""

    file: str
    number: int
    lang: str
    title: str
    text: str

    @property
    def source(self) -> str:
        return f"{self.file}#{self.number}"


def titled_sections(documents: Sequence[Document]) -> list[Titled]:
    """The sections of documents that have a heading of their own and a text; those of a file are numbered from 0.

    A file's language is the one that its name says, whatever most of its text is in: manuals are translated in part.
    """
    found = []
    known = {document.lang for document in documents}
    for document in documents:
        lang = _language_in(document.source, known) or document.lang
        file = _without_language(document.source, lang)
        sections = [section for section in document.sections if section.headings and section.text.strip()]
        for number, section in enumerate(sections):
            found.append(Titled(file, number, lang, unnumbered(section.headings[-1]), section.text))
    return found


def _language_in(source: str, known: Collection[str]) -> str | None:
    """The last of the known languages' codes that a name has between its marks."""
    return next((part for part in reversed(re.split("[./_-]", source)[:-1]) if part in known), None)


def _without_language(source: str, lang: str) -> str:
    return re.sub(rf"(?<=[./_-]){re.escape(lang)}(?=[./_-])", "*", source)


def measure_titles(documents: Sequence[Document], embedder: Embedder) -> dict[str, Any]:
    """Recall of the section among the first, of each leg: {"en": {sections, questions, legs: {leg: {recall_at_1,
    recall_at_5}}}, ...} by language of question and text, and "ja -> en" where they differ.

    A title that several sections have asks for any of them. Raises InputError where there are no sections.
    """
    sections = titled_sections(documents)
    if not sections:
        raise InputError("the documents have no sections with a heading and a text")
    by_language: dict[str, list[Titled]] = {}
    for section in sections:
        by_language.setdefault(section.lang, []).append(section)
    known = RememberedQuery(embedder)
    result = {}
    with tempfile.TemporaryDirectory(prefix="slm-titles-") as scratch:
        for lang, texts in sorted(by_language.items()):
            index = Path(scratch) / lang
            add_documents(index, [Document("", s.source, lang, (Section((), s.text),)) for s in texts], embedder)
            generation = open_generation(index)
            for asked, titles in sorted(by_language.items()):
                questions = _questions(titles, texts)
                if questions:
                    name = lang if asked == lang else f"{asked} -> {lang}"
                    legs = _recall(generation, known, questions)
                    result[name] = {"sections": len(texts), "questions": len(questions), "legs": legs}
    return result


def _questions(titles: Sequence[Titled], texts: Sequence[Titled]) -> dict[str, set[str]]:
    """The sources that each title asks for, among those texts."""
    counts = [_counts(titles), _counts(texts)]
    parallel = {file for file, count in counts[0].items() if counts[1].get(file) == count}
    there = {section.source for section in texts if section.file in parallel}
    asked: dict[str, set[str]] = {}
    for section in titles:
        if section.source in there:
            asked.setdefault(section.title, set()).add(section.source)
    return asked


def _counts(sections: Sequence[Titled]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for section in sections:
        counts[section.file] = counts.get(section.file, 0) + 1
    return counts


def _recall(generation: Generation, embedder: Embedder, questions: dict[str, set[str]]) -> dict[str, dict[str, float]]:
    places: dict[str, list[int]] = {leg: [] for leg in LEGS}
    for title, right in questions.items():
        if not comparable(title).strip():
            continue
        for leg in LEGS:
            hits = search(generation, embedder, title, _DEPTH, leg)
            found = [{generation.chunks.source(hit.row), *other_sources(generation, hit)} for hit in hits]
            places[leg].append(next((n for n, sources in enumerate(found) if sources & right), _DEPTH))
    return {
        leg: {f"recall_at_{k}": round(sum(place < k for place in found) / len(found), 3) for k in (1, _DEPTH)}
        for leg, found in places.items()
    }  # fmt: skip
