"""A reader without a model, which takes the lines it was told for answers; indexes to ask; tokens of letters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rag.answer.reader.form import rows_of
from rag.answer.retriever import IndexRetriever
from rag.document import Document, Section
from rag.index.store import open_generation
from rag.index.update import add_documents
from rag.stores.files import FollowedFiles
from slm.joints import LineScores, Reader
from tests.tiny_rag import PairEmbedder

REFUSE_AT = {"": 0.5, "en": 0.5, "ja": 0.5}
# Ids of `Letters`; those of characters stand above them.
BEGIN, END, FIRST = 0, 2, 4


class Letters:
    """A tokenizer (implements rag.answer.reader.form.TextTokenizer) to which a character is a token."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[BEGIN, *(FIRST + ord(letter) for letter in text), END] for text in texts]


def text_of(ids: Sequence[int]) -> str:
    """What `Letters` made these ids of."""
    return "".join(chr(token - FIRST) for token in ids if token >= FIRST)


class Pointing:
    """A judge: `sure` for a line that holds one of the texts, -`sure` for every other one. Keeps what it was asked.

    A token is a character of what is read, as of any reader that takes the rows of `rag.answer.reader.form`.
    """

    def __init__(self, *texts: str, sure: float = 5.0) -> None:
        self.texts, self.sure, self.asked = texts, sure, list[tuple[str, list[str]]]()

    def __call__(self, question: str, passages: Sequence[Sequence[str]]) -> LineScores:
        rows = rows_of(Letters(), question, passages)
        self.asked += [(question, list(one)) for one in passages]
        scores = [[self._score(line) for line in lines] for _, *lines in passages]
        return LineScores(scores, sum(len(row.ids) for of_passage in rows for row in of_passage))

    def _score(self, line: str) -> float:
        return self.sure if any(text in line for text in self.texts) else -self.sure


def reading(judge: Pointing, refuse_at: Mapping[str, float] = REFUSE_AT) -> Reader:
    """A reader whose model is this judge."""
    return Reader("reader", judge, refuse_at)


def document(source: str, text: str, *, title: str = "Page", heading: str = "Heading", lang: str = "en") -> Document:
    return Document(title, source, lang, (Section((heading,), text),))


def retriever_of(path: Path, documents: Sequence[Document]) -> IndexRetriever:
    """An index of these documents under a weak real embedder, opened."""
    add_documents(path, documents, PairEmbedder())
    return IndexRetriever(FollowedFiles(open_generation(path)), PairEmbedder())
