"""Links and images of Markdown text reduced to their words: [words](target) is words, ![words](target) too.

Brackets are matched as CommonMark matches them, in one pass. It knows nothing of code or HTML.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_DEFINITION = re.compile(
    r"^ {0,3}\[(?!\^)((?:[^\[\]\\\n]|\\.){1,999})\]:[ \t]*\n?[ \t]*(?:<[^<>\n]*>|[^\s<]\S*)"
    r"(?:[ \t]+(?:\"[^\"\n]*\"|'[^'\n]*'|\([^()\n]*\)))?[ \t]*$\n?",
    re.MULTILINE,
)
_BRACKET = re.compile(r"\\.|!\[|\[|\]", re.DOTALL)
_TITLE = re.compile(r"\s*(?:\"[^\"]{0,2000}\"|'[^']{0,2000}'|\([^()]{0,2000}\))?[ \t]*\n?[ \t]*\)")
_SPACED_TARGET = re.compile(r"[^()\n\[\]]{1,300}\)")
_DEEPEST = 5


def definitions(texts: Iterable[str]) -> frozenset[str]:
    """The labels that the texts define a target for."""
    return frozenset(_label(match.group(1)) for text in texts for match in _DEFINITION.finditer(text))


def _label(text: str) -> str:
    return " ".join(text.split()).casefold()


def without_targets(text: str, known: frozenset[str]) -> str:
    """The text with links and images as their words, and the definitions of targets left out."""
    text = _DEFINITION.sub("", text)
    out: list[str] = []
    open_at: list[tuple[int, int, bool]] = []  # place in out, place behind the bracket in text, whether an image
    at = 0
    while match := _BRACKET.search(text, at):
        out.append(text[at : match.start()])
        at = match.end()
        bracket = match.group()
        if bracket in ("[", "!["):
            open_at.append((len(out), at, bracket == "!["))
            out.append(bracket)
        elif bracket == "]" and open_at:
            place, begin, image = open_at.pop()
            end = _target_end(text, begin, match.start(), at, image, known)
            if end:
                out[place] = ""
                at = end
            else:
                out.append("]")
        else:
            out.append(bracket)
    out.append(text[at:])
    return "".join(out)


def _target_end(text: str, begin: int, close: int, at: int, image: bool, known: frozenset[str]) -> int:
    """Behind the target that follows the bracket closed before `at`; 0 when it is no link."""
    if text.startswith("(", at):
        end = _inline_end(text, at + 1)
        if not end and image:
            spaced = _SPACED_TARGET.match(text, at + 1)
            end = spaced.end() if spaced else 0
        return end
    if close - begin > 999:
        return 0
    words = _label(text[begin:close])
    if text.startswith("[", at):
        end = text.find("]", at, at + 1001)
        label = _label(text[at + 1 : end]) if end > 0 else ""
        if end > 0 and (label or words) in known:
            return end + 1
    return at if words in known else 0


def _inline_end(text: str, at: int) -> int:
    """Behind the closing parenthesis of `(target "title")`, given the place behind the opening one; 0 for none."""
    while text[at : at + 1] in (" ", "\t", "\n") and at < len(text):
        at += 1
    if text.startswith("<", at):
        line = text.find("\n", at)
        closing = text.find(">", at, line if line >= 0 else len(text))
        if closing < 0:
            return 0
        at = closing + 1
    else:
        depth = 0
        while at < len(text) and text[at] not in " \t\n":
            if text[at] == "\\":
                at += 1
            elif text[at] == "(":
                depth += 1
            elif text[at] == ")":
                if not depth:
                    break
                depth -= 1
            if depth > _DEEPEST:
                return 0
            at += 1
    title = _TITLE.match(text, at)
    return title.end() if title else 0
