"""The marks inside a line of Markdown (bold, code ...), as characters with their looks. It knows nothing of rows.

A character is a grapheme cluster (Unicode Standard Annex 29): a letter with its combining marks, an emoji sequence.
The rules are CommonMark's, but for what Japanese needs: a mark closes behind any character that is no space, so that
`**重要。**次` is bold. Links stay as they are written: terminals open their addresses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import wcwidth

_LOOKS = {"**": "1", "__": "1", "*": "3", "_": "3", "~~": "9", "`": "36"}
_RUN = re.compile(r"\*+|_+|~+|`+")
_MARKS = re.compile(r"[*_~`]+$")
_ESCAPABLE = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
_MOST_PASSES = 20


@dataclass(frozen=True)
class Glyph:
    """A character as the terminal shows it.

    style: SGR parameters ("1;3"), "" for none. width: columns. end: where its source ends. open: the marks that are
    open behind it.
    """

    text: str
    style: str
    width: int
    end: int = 0
    open: tuple[str, ...] = ()


def plain_glyphs(text: str, style: str = "") -> list[Glyph]:
    """Text without marks."""
    found, at = [], 0
    for cluster in wcwidth.iter_graphemes(text):
        at += len(cluster)
        found.append(Glyph(cluster, style, max(0, wcwidth.width(cluster)), at))
    return found


def marked_glyphs(source: str, open: tuple[str, ...] = (), *, style: str = "", final: bool) -> list[Glyph]:
    """The characters of a line, or of its rest behind a place where the marks `open` were open.

    final: the line is whole. A mark that is not closed is then text; before, what is behind it is shown as marked, and
    marks at the end wait for what follows. style: of the whole line.
    """
    if not final:
        source = _MARKS.sub("", source)
    literal: set[int] = set()
    for _ in range(_MOST_PASSES):
        scan = _Scan(source, open, style, literal)
        scan.run()
        if not final or not scan.unclosed:
            break
        literal |= scan.unclosed
    return scan.glyphs


class _Scan:
    """One pass over a line. literal: places of marks that are text. unclosed: of those that found no end."""

    def __init__(self, source: str, open: tuple[str, ...], style: str, literal: set[int]) -> None:
        self.source, self.style, self.literal = source, style, literal
        self.stack: list[tuple[str, int]] = [(mark, -1) for mark in open]
        self.unclosed: set[int] = set()
        self.glyphs: list[Glyph] = []
        self._text: list[str] = []
        self._ends: list[int] = []

    def run(self) -> None:
        source, at = self.source, 0
        while at < len(source):
            char = source[at]
            code = bool(self.stack) and self.stack[-1][0].startswith("`")
            if char == "\\" and not code and source[at + 1 : at + 2] in _ESCAPABLE and at + 1 < len(source):
                self._put(source[at + 1], at + 2)
                at += 2
            elif char in "*_~`" and at not in self.literal and (taken := self._mark(at, code)):
                at += taken
            else:
                self._put(char, at + 1)
                at += 1
        self._flush()
        self.unclosed |= {place for mark in self.stack for place in _places(*mark)}

    def _put(self, text: str, end: int) -> None:
        self._text.append(text)
        self._ends.append(end)

    def _flush(self) -> None:
        """Turn the text so far into glyphs of the marks that are open now."""
        marks = tuple(mark for mark, _ in self.stack)
        looks = [look for mark in marks if (look := _LOOKS.get(mark[:1] if mark[0] == "`" else mark))]
        style = ";".join(dict.fromkeys([*filter(None, [self.style]), *looks]))
        at = -1
        for cluster in wcwidth.iter_graphemes("".join(self._text)):
            at += len(cluster)
            self.glyphs.append(Glyph(cluster, style, max(0, wcwidth.width(cluster)), self._ends[at], marks))
        self._text.clear()
        self._ends.clear()

    def _mark(self, at: int, code: bool) -> int:
        """Open or close a mark; how many characters it has, 0 where it is text."""
        found = _RUN.match(self.source, at)
        run = found[0] if found else ""
        if run[0] == "`" or code:
            return self._code(run, at, code)
        inner = self.stack[-1][0] if self.stack else ""
        for mark in sorted((run[:2], run[:1]), key=lambda mark: mark != inner):  # of ***both*** the inner one first
            if mark in _LOOKS and self._closes(mark, at):
                self._flush()
                while self.stack[-1][0] != mark:
                    self.unclosed |= _places(*self.stack.pop())
                self.stack.pop()
                self._mend(at + len(mark))
                return len(mark)
        for mark in (run[:2], run[:1]):
            if mark in _LOOKS and self._opens(mark, at, len(run)):
                self._flush()
                self.stack.append((mark, at))
                return len(mark)
        return 0

    def _code(self, run: str, at: int, inside: bool) -> int:
        if inside and run != self.stack[-1][0]:
            return 0
        self._flush()
        if inside:
            self.stack.pop()
            self._mend(at + len(run))
        else:
            self.stack.append((run, at))
        return len(run)

    def _mend(self, end: int) -> None:
        """Behind a closing mark the last character's source ends behind it, where other marks are open."""
        if self.glyphs:
            last = self.glyphs[-1]
            self.glyphs[-1] = Glyph(last.text, last.style, last.width, end, tuple(mark for mark, _ in self.stack))

    def _closes(self, mark: str, at: int) -> bool:
        before, behind = self.source[at - 1 : at], self.source[at + len(mark) : at + len(mark) + 1]
        if not any(open == mark for open, _ in self.stack) or (before or "x").isspace():
            return False
        return not (mark[0] == "_" and _is_word(behind))

    def _opens(self, mark: str, at: int, run: int) -> bool:
        before, behind = self.source[at - 1 : at] if at else "", self.source[at + run : at + run + 1]
        if not behind or behind.isspace() or any(open == mark for open, _ in self.stack):
            return False
        return not (_is_word(before) and (mark[0] == "_" or len(mark) == 1))


def _places(mark: str, at: int) -> set[int]:
    return set(range(at, at + len(mark))) if at >= 0 else set()


def _is_word(char: str) -> bool:
    return char.isascii() and char.isalnum()
