"""An open index that is asked: passages, a prompt made of them, or the lines a reader points at.

It knows nothing of engines: what runs a reader's model is handed in.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from rag.answer.candidates import candidates, passages_of
from rag.answer.cite import Citations
from rag.answer.point import Judged, point
from rag.answer.prompt import DEFAULT_PASSAGES, fit_passages, grounded_messages
from rag.answer.quote import quotes_of
from rag.answer.rank import ranked
from rag.answer.reader.form import question_text, texts_of
from rag.index.change.planned import check_identity
from rag.index.embed import Embedder, open_embedder
from rag.index.retrieve import search
from rag.stores.interface import OpenIndex
from rag.stores.named import open_store
from slm.joints import EVERYTHING, Filters, Grounded, Passage, PointedAnswer, Reader


class IndexRetriever:
    """An open index of any store with its embedder (implements slm.joints.Retriever)."""

    def __init__(self, opened: OpenIndex, embedder: Embedder) -> None:
        check_identity(opened.made_with, embedder.identity.as_dict())
        self.opened, self.embedder = opened, embedder

    def search(self, query: str, k: int = 5, filters: Filters = EVERYTHING) -> list[Passage]:
        """The best k passages for a query, best first. Raises InputError, as `rag.index.retrieve.search`."""
        with self.opened.now() as index:
            return passages_of(index, search(index, self.embedder, query, k, filters=filters))

    def ranked(self, question: str, reader: Reader, k: int = 5, filters: Filters = EVERYTHING) -> list[Passage]:
        """The passages that a reader thinks likeliest to hold an answer, best first (`rag.answer.rank`)."""
        return ranked(question, self._to_read(question, filters), reader.judge, k)

    def grounded(self, question: str, k: int = DEFAULT_PASSAGES, filters: Filters = EVERYTHING) -> Grounded:
        """The prompt of a question with the best passages; those beyond the budget are left out (`fit_passages`)."""
        passages = fit_passages(self.search(question, k, filters))
        messages = grounded_messages(question, passages)
        return Grounded(messages, passages, Citations(passages), lambda: quotes_of(question, passages, self.embedder))

    def pointed(self, question: str, reader: Reader, filters: Filters = EVERYTHING) -> PointedAnswer:
        """The lines of the best passages that answer a question, or a refusal (`rag.answer.point`)."""
        passages = self._to_read(question, filters)
        read = [texts_of(passage) for passage in passages]
        found = reader.judge(question, [texts for texts, _ in read])
        judged = [
            Judged(passage, lines, row) for passage, (_, lines), row in zip(passages, read, found.scores, strict=True)
        ]
        return replace(point(question, judged, reader.refuse_at), tokens=found.tokens)

    def _to_read(self, question: str, filters: Filters) -> list[Passage]:
        """The passages that a reader reads for a question. Raises InputError for what is none, before any search."""
        question_text(question)
        with self.opened.now() as index:
            return candidates(index, self.embedder, question, filters=filters)


@contextmanager
def open_retriever(index: str) -> Iterator[IndexRetriever]:
    """Open an index by name, path or address with the embedder it was made with.

    Raises UnknownNameError, DamagedFileError, MismatchError, MissingFileError (embedder not pulled), and what a
    database that cannot be used raises.
    """
    with open_store(index).opening() as opened:
        yield IndexRetriever(opened, open_embedder(str(opened.made_with["name"])))
