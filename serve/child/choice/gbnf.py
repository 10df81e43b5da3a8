"""Rules of a GBNF grammar that cannot begin: each way into them leads to themselves before any character.

llguidance follows left recursion that has another way in (`list ::= item | list "," item`) and takes one that has none,
which leaves a model without a next token in the middle of its answer. It knows nothing of llguidance.
"""

from __future__ import annotations

import re
from collections import defaultdict

_LITERAL = re.compile(r'"(?:\\.|[^"\\])*"?|\[(?:\\.|[^\]\\])*\]?|#[^\n]*', re.DOTALL)
_RULE = re.compile(r"(?<![\w-])([\w-]+)\s*::=")
_SYMBOL = re.compile(
    r"(?P<open>\()|(?P<close>\))|(?P<bar>\|)|(?P<none>[*?]|\{\s*0?\s*[,}])|(?P<times>\{[\d\s,]*\}?)|(?P<name>[\w-]+|\.)"
)
# A character stands at the beginning; it is the name of no rule.
_CHARACTER = "."


def endless_rules(grammar: str) -> list[str]:
    """The rules that cannot begin, in the grammar's order."""
    bare = _LITERAL.sub(_scrubbed, grammar)
    parts = _RULE.split(bare)
    rules = dict(zip(parts[1::2], map(firsts, parts[2::2]), strict=True))
    used: dict[str, list[str]] = defaultdict(list)
    for name, begins in rules.items():
        for first in begins:
            used[first].append(name)
    can: set[str] = set()
    found = [_CHARACTER, *(name for name in used if name not in rules)]  # an unknown rule is told by who reads it
    while found:
        for name in used.pop(found.pop(), ()):
            if name not in can:
                can.add(name)
                found.append(name)
    return [name for name in rules if name not in can]


def firsts(body: str) -> set[str]:
    """What a rule's ways begin with: names of rules, and `_CHARACTER` for a character or nothing at all."""
    begins: set[str] = set()
    groups = [(True, False)]  # whether the group stands at the rule's beginning; whether its way has begun
    last = False  # whether the symbol or group before this one stands at the beginning
    for symbol in _SYMBOL.finditer(f"{body}|"):
        at_front, begun = groups[-1]
        fresh = at_front and not begun
        if symbol["open"]:
            groups[-1] = (at_front, True)
            groups.append((fresh, False))
        elif symbol["name"]:
            if fresh:
                begins.add(symbol["name"])
            groups[-1] = (at_front, True)
            last = fresh
        elif symbol["none"]:
            if last:  # it may be left out; then something else begins
                begins.add(_CHARACTER)
        elif not symbol["times"]:
            if fresh:  # an empty way
                begins.add(_CHARACTER)
            if symbol["bar"]:
                groups[-1] = (at_front, False)
            elif len(groups) > 1:
                last = groups.pop()[0]
    return begins


def _scrubbed(found: re.Match[str]) -> str:
    """A character for a literal; nothing for an empty one or a comment."""
    return " " if found[0] == '""' or found[0].startswith("#") else f" {_CHARACTER} "
