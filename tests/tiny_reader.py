"""A reader without a model, which takes the lines it was told for answers; indexes to ask it about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rag.answer.retriever import IndexRetriever
from rag.document import Document, Section
from rag.index.store import open_generation
from rag.index.update import add_documents
from slm.joints import Reader
from tests.tiny_rag import PairEmbedder

READER = Reader("reader", Path("reader.gguf"), ("yes", "no"), {"": 0.5, "en": 0.5, "ja": 0.5})


class Pointing:
    """A judge: `sure` for a line that holds one of the texts, -`sure` for every other one. Keeps what it was asked.

    The place above the lines gets the highest score of all: it is no line, so nothing may come of it.
    """

    def __init__(self, *texts: str, sure: float = 5.0) -> None:
        self.texts, self.sure, self.prompts = texts, sure, list[list[str]]()

    def __call__(self, prompts: Sequence[Sequence[str]]) -> list[list[float]]:
        self.prompts += [list(pieces) for pieces in prompts]
        return [[100.0, *(self._score(piece) for piece in pieces[2:])] for pieces in prompts]

    def _score(self, piece: str) -> float:
        return self.sure if any(text in piece for text in self.texts) else -self.sure


def document(source: str, text: str, *, title: str = "Page", heading: str = "Heading", lang: str = "en") -> Document:
    return Document(title, source, lang, (Section((heading,), text),))


def retriever_of(path: Path, documents: Sequence[Document]) -> IndexRetriever:
    """An index of these documents under a weak real embedder, opened."""
    add_documents(path, documents, PairEmbedder())
    return IndexRetriever(open_generation(path), PairEmbedder())
