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
from rag.answer.reader.form import question_text, texts_of
from rag.index.embed import Embedder, open_embedder
from rag.index.names import index_path
from rag.index.retrieve import search
from rag.index.store import Generation, current_folder, open_generation
from rag.index.update import check_embedder
from slm.errors import SlmError
from slm.joints import EVERYTHING, Filters, Grounded, Passage, PointedAnswer, Reader
from slm.terminal.console import note


class IndexRetriever:
    """An open index with its embedder (implements slm.joints.Retriever)."""

    def __init__(self, generation: Generation, embedder: Embedder) -> None:
        check_embedder(generation, embedder)
        self.generation, self.embedder = generation, embedder
        self._looked_at = generation.folder

    def _newest(self) -> Generation:
        """The generation that is in use now; the one in memory while a newer one cannot be read, which is noted."""
        path = self.generation.folder.parent
        try:
            folder = current_folder(path)
            if folder is not None and folder != self._looked_at:
                self._looked_at = folder
                newer = open_generation(path, self.generation)
                check_embedder(newer, self.embedder)
                self.generation = newer
        except SlmError as error:
            note(f"the index '{path}' is answered from as it was: {error}")
        return self.generation

    def search(self, query: str, k: int = 5, filters: Filters = EVERYTHING) -> list[Passage]:
        """The best k passages for a query, best first. Raises InputError, as `rag.index.retrieve.search`."""
        generation = self._newest()
        return passages_of(generation, search(generation, self.embedder, query, k, filters=filters))

    def grounded(self, question: str, k: int = DEFAULT_PASSAGES, filters: Filters = EVERYTHING) -> Grounded:
        """The prompt of a question with the best passages; those beyond the budget are left out (`fit_passages`)."""
        passages = fit_passages(self.search(question, k, filters))
        messages = grounded_messages(question, passages)
        return Grounded(messages, passages, Citations(passages), lambda: quotes_of(question, passages, self.embedder))

    def pointed(self, question: str, reader: Reader, filters: Filters = EVERYTHING) -> PointedAnswer:
        """The lines of the best passages that answer a question, or a refusal (`rag.answer.point`)."""
        question_text(question)  # an error before anything is searched
        passages = candidates(self._newest(), self.embedder, question, filters=filters)
        read = [texts_of(passage) for passage in passages]
        found = reader.judge(question, [texts for texts, _ in read])
        judged = [
            Judged(passage, lines, row) for passage, (_, lines), row in zip(passages, read, found.scores, strict=True)
        ]
        return replace(point(question, judged, reader.refuse_at), tokens=found.tokens)


@contextmanager
def open_retriever(index: str) -> Iterator[IndexRetriever]:
    """Open an index by name or path with the embedder it was made with.

    Raises UnknownNameError, DamagedFileError, MismatchError, MissingFileError (embedder not pulled).
    """
    generation = open_generation(index_path(index))
    yield IndexRetriever(generation, open_embedder(str(generation.manifest["embedder"]["name"])))
