"""What the terms of an index are made by: character pairs alone, or words of a dictionary beside them.

The choice is made once, with the index, and kept in it: texts and questions have to be taken apart alike. It knows
nothing of scores, nor of any dictionary but its name.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rag.index.lexical.pairs import terms_of
from slm.errors import MismatchError, MissingExtraError, UnknownNameError, UnsupportedError
from slm.terminal.console import note

Terms = Callable[[str], Sequence[str]]
"""The index terms of a text, in order, repeated ones too."""
_PAIRS, _SUDACHI = "pairs", "sudachi"
KINDS = (_PAIRS, _SUDACHI)
# A release of either may part a word otherwise.
_PACKAGES = {_SUDACHI: ("sudachidict_core", "sudachipy")}


@dataclass(frozen=True)
class Wording:
    """How an index makes its terms. kind: one of KINDS; made_by: names and versions of the packages that shape them."""

    kind: str = _PAIRS
    made_by: str = ""

    def as_dict(self) -> dict[str, str]:
        """As an index keeps it."""
        return {"kind": self.kind, "made_by": self.made_by}

    def __str__(self) -> str:
        return f"{self.kind} [{self.made_by}]" if self.made_by else self.kind

    def terms(self, index: str) -> Terms:
        """What makes the terms of the index of that name.

        Other versions than it was made with are noted, and used: what they part otherwise is found by its pairs still.
        Raises MissingExtraError.
        """
        if self.kind == _PAIRS:
            return terms_of
        here = installed(self.kind, needed_by=f"the index '{index}', made with --words {self.kind},")
        if here != self:
            _note_other(index, self.made_by, here.made_by)
        return _opened(self.kind)


PAIRS = Wording()


def kept_wording(told: Mapping[str, Any] | None) -> Wording:
    """The wording that an index tells of; one made before it was kept has pairs alone.

    Raises UnsupportedError for one that this program does not know, and KeyError and TypeError for damage.
    """
    if told is None:
        return PAIRS
    wording = Wording(str(told["kind"]), str(told["made_by"]))
    if wording.kind not in KINDS:
        raise UnsupportedError(
            "the index was made by a newer version of this program",
            found=f"words by '{wording.kind}', known: {', '.join(KINDS)}", hint="Update this program on this machine.",
        )  # fmt: skip
    return wording


def installed(kind: str | None, *, needed_by: str = "") -> Wording:
    """The wording of a kind as this machine has it, by default pairs. Raises UnknownNameError and MissingExtraError."""
    kind = kind or _PAIRS
    if kind not in KINDS:
        raise UnknownNameError("kind of words", kind, KINDS)
    versions = []
    for package in _PACKAGES.get(kind, ()):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError as error:
            raise MissingExtraError(package, kind, needed_by=needed_by or f"--words {kind}") from error
    return Wording(kind, ", ".join(versions))


def wording_of_change(kept: Wording | None, asked: str | None, index: str, anew: Callable[[str], str]) -> Wording:
    """The wording by which documents come into an index.

    kept: that of the index that is there, asked: the kind that is asked for; pairs where there is neither. anew: the
    command that makes the index anew with a kind. Raises MismatchError where it is another one, or of other versions:
    half of an index would be parted one way and half the other. Raises what `installed` raises.
    """
    if kept is None:
        return installed(asked)
    if asked not in (None, kept.kind):
        raise MismatchError(
            f"the index '{index}' was made with --words {kept.kind}, not {asked}",
            hint=f"Make it anew with: {anew(asked)}",
        )
    here = installed(kept.kind, needed_by=f"the index '{index}', made with --words {kept.kind},")
    if here != kept:
        raise MismatchError(
            f"the index '{index}' was made with other versions of the packages that find its words",
            found=f"{kept.made_by}, not {here.made_by}",
            hint=f"Install those it was made with, or make it anew with: {anew(kept.kind)}",
        )
    return kept


@lru_cache
def _opened(kind: str) -> Terms:
    from rag.index.lexical.sudachi import SudachiTerms

    return {_SUDACHI: SudachiTerms}[kind]()


@lru_cache
def _note_other(index: str, made_by: str, here: str) -> None:
    note(f"the words of the index '{index}' were found by {made_by}; here is {here}, which may part a few otherwise")
