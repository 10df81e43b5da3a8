"""An answer on a terminal: its text as it comes, and then the passages it was given.

It knows nothing of models, of indexes or of what was asked.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from slm.joints import Finish, Grounded, Passage, PointedAnswer
from slm.text.visible import one_line, without_controls


class AnswerScreen(Protocol):
    """Draws an answer in place of its plain text."""

    def feed(self, text: str) -> None: ...
    def end(self) -> None: ...


@dataclass
class ShownAnswer:
    """The text so far, the figures once it is over (None: it broke off), and after how many seconds text came."""

    text: str = ""
    finish: Finish | None = None
    first_s: float = 0.0

    def show(
        self,
        pieces: Iterable[str | Finish],
        grounded: Grounded | None = None,
        *,
        silent: bool = False,
        screen: AnswerScreen | None = None,
    ) -> ShownAnswer:
        """Write what an engine says to stdout, piece by piece, and end the line. silent: take it only.

        grounded: whose citations are checked on the way. screen: draws it instead. An exception leaves what was said
        until then. On a terminal control characters of an answer do nothing.
        """
        began = time.perf_counter()
        try:
            for piece in pieces:
                if isinstance(piece, Finish):
                    self._take(grounded.citations.end() if grounded else "", silent, screen)
                    self.finish = piece
                    continue
                self.first_s = self.first_s or time.perf_counter() - began
                self._take(grounded.citations.feed(piece) if grounded else piece, silent, screen)
        finally:
            if screen:
                screen.end()
            elif (self.text or self.finish) and not silent:
                sys.stdout.write("\n")
                sys.stdout.flush()
        return self

    def _take(self, text: str, silent: bool, screen: AnswerScreen | None) -> None:
        self.text += text
        if screen:
            screen.feed(text)
        elif not silent:
            sys.stdout.write(without_controls(text) if sys.stdout.isatty() else text)
            sys.stdout.flush()


@dataclass(frozen=True)
class ShownSource:
    """A passage that an answer was given: its number, whether the answer cites it, and its nearest sentence."""

    number: int
    cited: bool
    passage: Passage
    quote: str


def sources_of(grounded: Grounded) -> list[ShownSource]:
    """The passages of an answer that has been shown; takes some tenths of a second."""
    cited = grounded.citations.cited
    pairs = zip(grounded.passages, grounded.quotes(), strict=True)
    return [ShownSource(number, number in cited, passage, quote) for number, (passage, quote) in enumerate(pairs, 1)]


def pointed_sources(pointed: PointedAnswer) -> list[ShownSource]:
    """The passages of a pointed answer with their likeliest lines."""
    said = {quotation.passage for quotation in pointed.said}
    lines: dict[int, str] = {}
    for quotation in pointed.nearest:
        lines.setdefault(quotation.passage, quotation.text)
    return [ShownSource(n, n in said, passage, lines.get(n, "")) for n, passage in enumerate(pointed.passages, 1)]


def show_pointed(pointed: PointedAnswer, write: Callable[[str], None]) -> None:
    """The sources under a pointed answer; under a refusal the nearest lines, as what they are."""
    sources = pointed_sources(pointed)
    if pointed.said:
        show_sources(sources, write)
    elif sources:
        write("\nThe nearest lines, which may not answer:")
        _show(sources, write)


def show_sources(sources: Iterable[ShownSource], write: Callable[[str], None]) -> None:
    """The cited passages under an answer, or all that it was given when it cites none; `write` takes lines."""
    sources = list(sources)
    cited = [source for source in sources if source.cited]
    write("\nSources:" if cited else "\nThe answer cites no passage. It was given these:")
    _show(cited or sources, write)


def _show(sources: Iterable[ShownSource], write: Callable[[str], None]) -> None:
    for source in sources:
        where = f"{one_line(source.passage.place)} ({shown_path(source.passage.source)})"
        write(f"  {source.number}. {where}\n     “{source.quote}”")


def shown_path(source: str) -> str:
    """A document's source for people: visible characters, and relative to the working folder when it lies below it."""
    path = Path(source)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        source = path.relative_to(Path.cwd()).as_posix()
    return one_line(source)
