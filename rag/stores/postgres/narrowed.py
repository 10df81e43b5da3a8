"""What a query is narrowed down to (space, label, language, date, who asks), decided by the database.

The rules are those of `rag.index.generation.facets`; what they let through is kept with the state it was asked of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rag.index.generation.arrays import Mask
from rag.index.generation.facets import UNKNOWN, Names, bounds, chosen_names, nothing_through, spelled
from rag.stores.postgres.spelling import stored, unstored
from rag.stores.postgres.state import State
from slm.joints import EVERYTHING, Filters

if TYPE_CHECKING:
    from rag.stores.postgres.connection import Connection

_SEEN = (
    "(rules IS NULL OR NOT EXISTS "
    "(SELECT 1 FROM jsonb_array_elements(rules) AS rule WHERE NOT rule ?| %(viewer)s::text[]))"
)
_VALUES = {
    "space": "SELECT DISTINCT space FROM slm.documents WHERE index_id = %(index)s AND space <> ''",
    "label": "SELECT DISTINCT label FROM slm.documents, unnest(labels) AS label "
    "WHERE index_id = %(index)s AND label <> ''",
    "language": "SELECT DISTINCT lang FROM slm.documents WHERE index_id = %(index)s AND lang <> ''",
}
_KINDS = {
    "space": "space = ANY(%(space)s)", "label": "labels && %(label)s::text[]", "language": "lang = ANY(%(language)s)",
}  # fmt: skip


class NarrowedState:
    """Filters over one state, inside one transaction (implements rag.index.retrieve.Narrowing)."""

    def __init__(self, connection: Connection, state: State) -> None:
        self._connection, self._state = connection, state

    @property
    def languages(self) -> list[str]:
        return [language for language in self._state.by_language if language != UNKNOWN]

    @property
    def every_language(self) -> tuple[str, ...]:
        return tuple(self._state.by_language)

    def in_language(self, rows: npt.NDArray[np.int64], language: str | None) -> Mask:
        mask = self._state.by_language.get(language or "")
        chosen: Mask = np.zeros(len(rows), dtype=np.bool_) if mask is None else mask[rows]
        return chosen

    def allowed(self, filters: Filters) -> Mask | None:
        """Which chunks the filters let through; None: all. Raises as `Facets.allowed`."""
        through = self._through(filters)
        allowed: Mask | None = None if through.all() else through[self._state.document_of]
        return allowed

    def languages_of(self, filters: Filters) -> list[str]:
        """The languages of documents with chunks that the filters let through, the one not known last."""
        through = self._through(filters) & (self._state.counts > 0)
        found = {self._state.documents[at].lang for at in np.flatnonzero(through).tolist()}
        return [language for language in (*self.languages, UNKNOWN) if language in found]

    def _through(self, filters: Filters) -> Mask:
        """Which documents, (documents,) bool, in order of their ids."""
        if filters == EVERYTHING:
            return np.ones(len(self._state.ids), dtype=np.bool_)
        kept: Mask | None = self._state.narrowed.get(filters)
        if kept is None:
            kept = self._state.narrowed[filters] = self._asked(filters)
        return kept

    def _asked(self, filters: Filters) -> Mask:
        values: dict[str, Any] = {"index": self._state.index}
        where = ["index_id = %(index)s"]
        if filters.viewer is not None:
            values["viewer"] = sorted({stored(name) for given in filters.viewer for name in spelled(given)})
            where.append(_SEEN)
        asked: dict[str, Sequence[str]] = {
            "space": filters.spaces, "label": filters.labels, "language": filters.languages
        }  # fmt: skip
        for kind, wanted in asked.items():
            if wanted:
                values[kind] = [stored(name) for name in chosen_names(kind, wanted, self._names(kind, where, values))]
                where.append(_KINDS[kind])
        since, until = bounds(filters)
        if since is not None:
            values["since"] = since
            where.append("changed >= %(since)s")
        if until is not None:
            values["until"] = until
            where.append("changed < %(until)s")
        cursor = self._connection.cursor(binary=True)
        rows = cursor.execute(f"SELECT id FROM slm.documents WHERE {' AND '.join(where)}", values).fetchall()
        through: Mask = np.isin(self._state.ids, np.asarray([row[0] for row in rows], dtype=np.int64))
        if not through.any():
            raise nothing_through()
        return through

    def _names(self, kind: str, where: Sequence[str], values: Mapping[str, Any]) -> Names:
        """The names of a kind on documents that whoever asks may see; kept for others who ask so."""
        viewer = tuple(values.get("viewer", ("*",)))
        kept: Names | None = self._state.narrowed.get((kind, viewer))
        if kept is None:
            seen = f" AND {_SEEN}" if "viewer" in values else ""
            rows = self._connection.execute(_VALUES[kind] + seen, values)
            kept = self._state.narrowed[(kind, viewer)] = [unstored(name) for (name,) in rows]
        return kept
