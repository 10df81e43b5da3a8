"""What a query can be narrowed down to: space, label, language, date, and who asks; as arrays over all documents.

Nothing here walks the chunks: a filter is decided for the documents, and an array says which document a chunk is of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from rag.index.generation.arrays import Mask, Numbers
from slm.errors import InputError, UnknownNameError
from slm.joints import EVERYTHING, Filters
from slm.text.dates import FORM, instant

Names = Sequence[str]
_NONE: Numbers = np.empty(0, dtype=np.int64)
_LISTED = 20
UNKNOWN = "und"
"""The language of documents that do not say theirs."""


class Facets:
    """Documents in the order of their chunks. `document_of`: (chunks,) int32, the number of each chunk's document."""

    def __init__(self, documents: Sequence[Mapping[str, Any]], document_of: npt.NDArray[np.int32]) -> None:
        metas = [entry.get("meta", {}) for entry in documents]
        self.document_of, self._size = document_of, len(documents)
        self._has_chunks = np.bincount(document_of, minlength=self._size) > 0
        self._languages = _numbered([(str(entry["lang"]),) for entry in documents])
        self._spaces = _numbered([(str(meta.get("space", "")),) for meta in metas])
        self._labels = _numbered([tuple(map(str, meta.get("labels", ()))) for meta in metas])
        dates = [instant(str(meta.get("modified") or meta.get("created") or "")) for meta in metas]
        self._dates = np.asarray([np.nan if date is None else date.timestamp() for date in dates], dtype=np.float64)
        rules = [tuple(frozenset(map(str, rule)) for rule in meta.get("restrictions", ())) for meta in metas]
        self._rules: dict[tuple[frozenset[str], ...], list[int]] = {}
        for number, rule in enumerate(rules):
            if rule:
                self._rules.setdefault(rule, []).append(number)

    @property
    def languages(self) -> list[str]:
        """The languages of the documents, without the one that is not known."""
        return sorted(self._languages.keys() - {UNKNOWN})

    @cached_property
    def every_language(self) -> tuple[str, ...]:
        """The languages of the documents, in order; "und" among them where one is not known."""
        return tuple(sorted(self._languages))

    @cached_property
    def language_of(self) -> npt.NDArray[np.int16]:
        """The number of each chunk's language in `every_language`, (chunks,) int16."""
        of_document = np.zeros(self._size, dtype=np.int16)
        for number, language in enumerate(self.every_language):
            of_document[self._languages[language]] = number
        return of_document[self.document_of]

    def in_language(self, rows: npt.NDArray[np.int64], language: str | None) -> Mask:
        """Which of these chunks are of a document in that language."""
        there = np.zeros(self._size, dtype=np.bool_)
        if language in self._languages:
            there[self._languages[language]] = True
        chosen: Mask = there[self.document_of[rows]]
        return chosen

    def allowed(self, filters: Filters) -> Mask | None:
        """Which chunks the filters let through, (chunks,) bool; None: all of them.

        Raises UnknownNameError for a space, label or language that no document has that may be seen, and InputError
        for a date that is none, or when nothing is let through.
        """
        through = self._through(filters)
        allowed: Mask | None = None if through.all() else through[self.document_of]
        return allowed

    def languages_of(self, filters: Filters) -> list[str]:
        """The languages of the documents with chunks that the filters let through, the one not known last.

        Raises as `allowed`.
        """
        through = self._through(filters) & self._has_chunks
        return [name for name in (*self.languages, UNKNOWN) if through[self._languages.get(name, _NONE)].any()]

    def _through(self, filters: Filters) -> Mask:
        """Which documents the filters let through, (documents,) bool."""
        if filters == EVERYTHING:
            return np.ones(self._size, dtype=np.bool_)
        through = self._seen_by(filters.viewer)
        kinds = (
            ("space", filters.spaces, self._spaces), ("label", filters.labels, self._labels),
            ("language", filters.languages, self._languages),
        )  # fmt: skip
        visible = through.copy()
        for kind, wanted, numbers in kinds:
            if wanted:
                through &= _any_of(kind, wanted, numbers, visible)
        if filters.since or filters.until:
            through &= self._between(filters.since, filters.until)
        if not through.any():
            raise nothing_through()
        return through

    def _seen_by(self, viewer: tuple[str, ...] | None) -> Mask:
        """Which documents somebody with these names may see; None: whoever asks may see all."""
        seen = np.ones(self._size, dtype=np.bool_)
        if viewer is not None:
            names = {one for name in viewer for one in spelled(name)}
            for rules, numbers in self._rules.items():
                seen[numbers] = not any(rule.isdisjoint(names) for rule in rules)
        return seen

    def _between(self, since: str, until: str) -> Mask:
        """Documents changed in that time; one whose source does not say when is not among them."""
        first, end = bounds(Filters(since=since, until=until))
        within = ~np.isnan(self._dates)
        if first is not None:
            within &= self._dates >= first.timestamp()
        if end is not None:
            within &= self._dates < end.timestamp()
        return within


def _numbered(values: Iterable[tuple[str, ...]]) -> dict[str, Numbers]:
    """The numbers of the documents that have a value, by value; without the empty one."""
    numbers: dict[str, list[int]] = {}
    for number, row in enumerate(values):
        for value in dict.fromkeys(row):
            if value:
                numbers.setdefault(value, []).append(number)
    return {value: np.asarray(held, dtype=np.int64) for value, held in numbers.items()}


def _any_of(kind: str, wanted: Sequence[str], numbers: Mapping[str, Numbers], visible: Mask) -> Mask:
    chosen = np.zeros(len(visible), dtype=np.bool_)
    for value in chosen_names(kind, wanted, [value for value, held in numbers.items() if visible[held].any()]):
        chosen[numbers[value]] = True
    return chosen


def chosen_names(kind: str, wanted: Names, known: Names) -> list[str]:
    """Those of the known names that are wanted, in whatever case. Raises UnknownNameError for one that is not there."""
    chosen = []
    for name in wanted:
        meant = [value for value in known if value.casefold() == name.casefold()]
        if not meant:
            listed = sorted(known)
            raise UnknownNameError(kind, name, listed[:_LISTED] + ["..."] * (len(listed) > _LISTED))
        chosen += meant
    return chosen


def nothing_through() -> InputError:
    """What is said where filters leave no document."""
    return InputError(
        "the index holds nothing that these filters let through",
        hint="Leave some out; --since and --until find only documents that say when they were changed. "
        "See what there is with: slm rag status INDEX --json",
    )


def bounds(filters: Filters) -> tuple[datetime | None, datetime | None]:
    """From when on, and until before when a document was changed. Raises InputError for a date that is none."""
    first = _bound("since", filters.since) if filters.since else None
    end = _bound("until", filters.until) if filters.until else None
    # A day is meant whole, from its beginning to its end.
    if end is not None and len(filters.until.strip()) == 10:
        end += timedelta(days=1)
    return first, end


def spelled(name: str) -> tuple[str, ...]:
    """What a name stands for in a page's restrictions: user:NAME, group:NAME, or both when it does not say."""
    return (name,) if name.startswith(("user:", "group:")) else (f"user:{name}", f"group:{name}")


def _bound(option: str, text: str) -> datetime:
    found = instant(text)
    if found is None:
        raise InputError(f"{option}: '{text}' is no date", hint=f"{FORM}.")
    return found
