"""Numbers in brackets in a text that arrives in pieces: which of them can be citations at all.

Code and formulas (fences, indented and inline code, $$) are no place for citations, and neither is a bracket that
belongs to a link, a footnote, an interval, a list of data or the number of a step: f(x)[0], [1](url), [0, 10],
"ids": [1, 2], Step [1]. A bracket right after a word (days[1], hosts[1]) may be either. It knows nothing of passages.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

_BLANK = r"[ \t\u3000]{0,4}"
_BRACKET = rf"[\[［【]{_BLANK}[0-9０-９]{{1,3}}(?:{_BLANK}[,、，]{_BLANK}[0-9０-９]{{1,3}}){{0,9}}{_BLANK}[\]］】]"
_ONE = re.compile(_BRACKET)
# A row of more brackets is none of citations; without a bound it would be read again with every piece.
_LONGEST_RUN = 20
_RUN = re.compile(rf" ?(?:{_BRACKET}){{1,{_LONGEST_RUN}}}")
# What may yet become one; longer than the longest it cannot.
_PARTIAL = re.compile(rf" ?(?:{_BRACKET}){{0,{_LONGEST_RUN}}}[\[［【][0-9０-９ \t\u3000,、，]{{0,140}}\Z")
_SPECIAL = re.compile(r"\n|`+| ?[\[［【]| \Z")
_OPENS = re.compile(r"[ \t>]*(`{3,}(?=[^`]*\Z)|~{3,}|\$\$(?=[ \t]*\Z)|\\\[(?=[ \t]*\Z))")
_MAY_OPEN = re.compile(r"[ \t>]*(?:`{0,2}|`{3,}[^`]*|~{0,2}|~{3,}.*|\$|\$\$[ \t]*|\\|\\\[[ \t]*)", re.DOTALL)
_MAY_CLOSE = re.compile(r"[ \t>]*(`*|~*|\$\$|\\\]|\$|\\)[ \t]*")
# A line of indented code follows a blank line outside of lists, in which such a line is a paragraph of the item.
_INDENTED = re.compile(r"(?: {4}|\t)[ \t]*[^\s*+0-9-]")
_MAY_BE_ITEM = re.compile(r"[ \t>]*(?:[-*+•・]|[0-9]{1,9}[.)]?)")
_ITEM = re.compile(r"[ \t>]*(?:[-*+•・]|[0-9]{1,9}[.)])(?:\s|\Z)")
_CALL = re.compile(r"[0-9A-Za-z_]\([^()\n]{0,80}\)\Z")
_OPERATORS = "=∈∉+×÷≤≥≠\\"
_SETS = re.compile(
    r"(?:(?:range|interval|array|list|vector|tuple|pair|範囲|区間|配列|リスト)(?: of| is| are|は|が|:|：)?"
    r"|\b(?:between|returns?|(?-i:IN)|[a-z] in))\s?\Z",
    re.IGNORECASE,
)
_STEPS = re.compile(
    r"(?:\b(?:steps?|page|item|option|figure|table|section|chapter|part|question|line|row|column|level|phase|version)"
    r"|[\]］】] of|\\in)\s?\Z",
    re.IGNORECASE,
)
_KEY = re.compile(r"[\"'][ \t]?:[ \t]?\Z")
_ARGUMENT = re.compile(r"[A-Za-z_]\([^()]{0,80}\Z")
_FORMULA = re.compile(r"(?:\$(?![\d\s])[^$]{0,100}[\\=<>^{}][^$]{0,100}|\\\((?:(?!\\\)).){0,150})\Z")
_EMPHASIS = re.compile(r"(?:\*\*|(?<![0-9A-Za-z_*\\])(?:\*|_{1,3}))(?=[^\s*_]|\Z)[^*_]*\Z")
_WORD = re.compile(r"(?:\A|[\s(（「、。,])[^\W\d_]{2,}\Z")
_NAMES_A_PASSAGE = re.compile(r"(?:資料|文書|出典|引用|参照|番号)\Z")
_LOOK_BACK = 200


@dataclass(frozen=True)
class Mark:
    """Brackets with numbers that stand free: the blank before them, and each one's text and numbers.

    closed: whether a blank, a stop or the end follows, and the end of a word or sentence goes before.
    attached: whether a word stands right before it, so that it may be an index too, and the text has to keep it.
    """

    blank: str
    brackets: tuple[tuple[str, tuple[int, ...]], ...]
    closed: bool
    attached: bool = False

    @property
    def written(self) -> str:
        """As it stands in the text."""
        return self.blank + "".join(text for text, _ in self.brackets)


class Marks:
    """Splits a text, given in pieces, into text that stays as it is and marks. Where it is cut makes no difference."""

    def __init__(self) -> None:
        self._held, self._at = "", 0  # what is not done begins at _at
        self._before, self._fence, self._at_start = "", "", True
        self._indented, self._in_list, self._after_blank = False, False, True

    @property
    def in_code(self) -> bool:
        """Whether the text so far ends inside a fence or a line of code."""
        return bool(self._fence) or self._indented

    def split(self, piece: str, *, final: bool = False) -> Iterator[str | Mark]:
        """What of the text up to here is certain; with `final` all of it."""
        self._held, self._at = self._held[self._at :] + piece, 0
        while self._at < len(self._held):
            taken = self._code_line(final) if self._fence or self._indented or self._at_start else -1
            found: str | Mark | None = None
            if taken < 0:
                taken, found = self._inline(final)
            if taken == 0:
                return
            whole = self._held[self._at : self._at + taken]
            self._at += taken
            self._before = (self._before + whole[-_LOOK_BACK:])[-_LOOK_BACK:]
            self._at_start = whole.endswith("\n")
            yield found or whole

    def _code_line(self, final: bool) -> int:
        """The length of a line that opens a fence or stands in one; 0 when more is needed, -1 when it is neither."""
        newline = self._held.find("\n", self._at)
        line = self._held[self._at : newline if newline >= 0 else len(self._held)]
        whole = newline >= 0 or final
        if self._fence:
            closing = _MAY_CLOSE.fullmatch(line) if self._at_start else None
            if closing and not whole:
                return 0
            if closing and closing[1].startswith(self._fence):
                self._fence = ""
        elif self._indented and not self._at_start:
            self._indented = newline < 0
        else:
            if not whole and (_MAY_OPEN.fullmatch(line) or _MAY_BE_ITEM.fullmatch(line)):
                return 0
            opening = _OPENS.match(line)
            if opening:
                self._fence = "\\]" if opening[1] == "\\[" else opening[1]
            elif not self._begins_code(line):
                return -1
            else:
                self._indented = newline < 0
        return len(line) + (newline >= 0)

    def _begins_code(self, line: str) -> bool:
        """Whether a line that opens no fence is indented code; remembers lists and blank lines."""
        if not line.strip():
            self._after_blank = True
            return False
        code = self._after_blank and not self._in_list and _INDENTED.match(line) is not None
        if not code:
            self._after_blank = False
            self._in_list = _ITEM.match(line) is not None or (self._in_list and line[0] in " \t")
        return code

    def _inline(self, final: bool) -> tuple[int, str | Mark | None]:
        """The length of the text up to the next sign or of that sign, and the mark it is; 0 when more is needed."""
        held, at = self._held, self._at
        special = _SPECIAL.search(held, at)
        if special is None or (final and special[0] == " "):
            return len(held) - at, None
        if special.start() > at:
            return special.start() - at, None
        sign = special[0]
        if sign == "\n":
            return 1, None
        if sign == " ":
            return 0, None
        if sign.startswith("`"):
            return self._code_span(len(sign), final), None
        run = _RUN.match(held, at)
        following = held[run.end() : run.end() + 1] if run else ""
        if not final and (_PARTIAL.match(held, at) or (run and not following)):
            return 0, None
        if run is None:
            return len(sign), None
        return run.end() - at, _mark(self._before, run[0], following)

    def _code_span(self, ticks: int, final: bool) -> int:
        """The length of inline code, or of the ticks that open none on their line; 0 when more is needed."""
        held, start = self._held, self._at + ticks
        if start == len(held) and not final:
            return 0
        newline = held.find("\n", start)
        end = newline if newline >= 0 else len(held)
        closing = re.compile(rf"(?<!`)`{{{ticks}}}(?!`)").search(held, start, end)
        if closing and (closing.end() < len(held) or final):
            return closing.end() - self._at
        return ticks if newline >= 0 or final else 0


def _mark(before: str, run: str, following: str) -> str | Mark:
    blank = run[: len(run) - len(run.lstrip(" "))]
    brackets = tuple((found[0], _numbers(found[0])) for found in _ONE.finditer(run))
    line = before.rpartition("\n")[2]
    last = "" if blank else line[-1:]
    several = any(len(numbers) > 1 for _, numbers in brackets)
    emphasis = _EMPHASIS.search(line) if following in ("*", "_") else None
    emphasised = emphasis is not None and emphasis[0][0] == following
    cut = len(brackets) == _LONGEST_RUN and following in ("[", "［", "【")
    if (
        (_goes_on(following) and not emphasised and not cut)
        or (not line.strip() and (following in (":", "：") or run.lstrip().startswith("【")))
        or _is_data(line, last, following, several)
        or _STEPS.search(line)
        or _FORMULA.search(line)
    ):
        return run
    ends = not following or following.isspace() or not following.isalnum()
    if last and _WORD.search(line) and not _is_wide(last):
        return Mark(blank, brackets, False, attached=True) if ends and not several else run
    if not emphasised and _belongs(line, last, following):
        return run
    if emphasised and last in ("*", "_"):
        return Mark(blank, brackets, False)  # without its number it would be marks of nothing
    starts = not last or last in "。！？.!?)）」』”\"'" or _is_wide(last)
    return Mark(blank, brackets, ends and starts)


def _is_data(line: str, last: str, following: str, several: bool) -> bool:
    """Whether a bracket is a list of values: of a key, in another list, an argument, an interval or a set."""
    if not last and line.rstrip()[-1:] in tuple(_OPERATORS):
        return True
    if _KEY.search(line) or (several and (_SETS.search(line) or (line[:2].isspace() and not line.strip()))):
        return True
    before = line.rstrip()[-1:]
    if before and before in "[{(," and _ARGUMENT.search(line):
        return True
    nested = before == "{" or before == "," or (before == "[" and (several or following == ","))
    return nested and sum((c in "[{") - (c in "]}") for c in line) > 0


def _numbers(bracket: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"[0-9]+", unicodedata.normalize("NFKC", bracket)))


def _goes_on(following: str) -> bool:
    """Whether what follows a bracket makes it a part of something: a link, an index, an assignment."""
    return following.isascii() and (following.isalnum() or following in tuple("([_=$+*/"))


def _belongs(line: str, last: str, following: str) -> bool:
    """Whether a bracket belongs to the word right before it; in Japanese, that has no blanks, inside a clause."""
    if not last:
        return False
    if last in tuple("_\\$@#]}^"):
        return True
    if last == ")":
        return _CALL.search(line) is not None
    if not _is_wide(last):
        return last.isalnum() or last in tuple(_OPERATORS)
    hiragana = "\u3041" <= last <= "\u3096"
    inside = last.isalnum() and not hiragana and following.isalpha() and _is_wide(following)
    return inside and not _NAMES_A_PASSAGE.search(line)


def _is_wide(letter: str) -> bool:
    """Whether a letter is of a script without blanks between words, or with particles (Thai, Hangul, Japanese)."""
    return letter > "\u0e00"


def without_marks(text: str) -> str:
    """A text with its free-standing numbers in brackets taken away."""
    parts = Marks().split(text, final=True)
    return "".join(part if isinstance(part, str) else part.written if part.attached else "" for part in parts)
