"""Who a server answers when a request does not say who asks: nobody in particular, or whom the server was started for.

A server has other readers than the owner of its index. Pages that are restricted to some are therefore left out unless
a request, or an option of the server, names somebody they are for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from slm.errors import InputError, UnknownNameError
from slm.joints import EVERYTHING, Filters, Grounded, Passage, PointedAnswer, Reader, Retriever


@dataclass(frozen=True)
class SeenBy:
    """A retriever that looks at restrictions always (implements slm.joints.Retriever)."""

    retriever: Retriever
    viewer: tuple[str, ...] = ()

    def search(self, query: str, k: int = 5, filters: Filters = EVERYTHING) -> list[Passage]:
        """The passages that whoever asks may see."""
        with _told_of_names():
            return self.retriever.search(query, k, self._narrowed(filters))

    def grounded(self, question: str, k: int = 3, filters: Filters = EVERYTHING) -> Grounded:
        """The prompt, from passages that whoever asks may see."""
        with _told_of_names():
            return self.retriever.grounded(question, k, self._narrowed(filters))

    def pointed(self, question: str, reader: Reader, filters: Filters = EVERYTHING) -> PointedAnswer:
        """The pointed answer, from passages that whoever asks may see."""
        with _told_of_names():
            return self.retriever.pointed(question, reader, self._narrowed(filters))

    def _narrowed(self, filters: Filters) -> Filters:
        return replace(filters, viewer=self.viewer) if filters.viewer is None else filters


@contextmanager
def _told_of_names() -> Iterator[None]:
    """A space, label or language that no page has is a wrong request: what is not found of a request is its model."""
    try:
        yield
    except UnknownNameError as error:
        raise InputError(f"rag: {error.what}", hint=error.hint) from error
