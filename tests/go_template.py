"""Runs the part of Go's template language that the Modelfiles use, as text/template defines it.

Reference: https://pkg.go.dev/text/template. Fields of the current element, the root's fields, variables, string
literals, `eq`, `if`/`else if`/`else`, `range` and trimming. Anything else is an error, so that a test cannot pass on
what Go would refuse.
"""

from __future__ import annotations

import re
from typing import Any

_ACTION = re.compile(r"\{\{(- )?\s*(.*?)\s*( -)?\}\}", re.DOTALL)


def execute(template: str, root: dict[str, Any]) -> str:
    """The template's output for a root object such as {"System": ..., "Messages": [...]}."""
    nodes, rest = _parse(_tokens(template), 0)
    assert rest is None, f"unexpected {rest}"
    out: list[str] = []
    _run(nodes, root, {}, out)
    return "".join(out)


def _tokens(template: str) -> list[tuple[str, str]]:
    tokens, at, trim = [], 0, False
    for match in _ACTION.finditer(template):
        text = template[at : match.start()]
        text = text.lstrip() if trim else text
        tokens.append(("text", text.rstrip() if match[1] else text))
        tokens.append(("action", match[2]))
        at, trim = match.end(), bool(match[3])
    text = template[at:]
    assert "{{" not in text, "an action is not closed"
    return [*tokens, ("text", text.lstrip() if trim else text)]


def _parse(tokens: list[tuple[str, str]], depth: int) -> tuple[list[Any], str | None]:
    """Nodes up to the `else` or `end` that closes this block, and that word."""
    nodes: list[Any] = []
    while tokens:
        kind, value = tokens.pop(0)
        if kind == "text":
            nodes.append(("text", value))
        elif value == "end" or value.startswith("else"):
            assert depth, f"'{value}' outside a block"
            return nodes, value
        elif value.startswith(("if ", "range ")):
            word, _, condition = value.partition(" ")
            nodes.append(_block(word, condition, tokens, depth + 1))
        else:
            nodes.append(("action", value))
    assert not depth, "a block is not closed"
    return nodes, None


def _block(word: str, condition: str, tokens: list[tuple[str, str]], depth: int) -> Any:
    body, closing = _parse(tokens, depth)
    otherwise: list[Any] = []
    if closing is not None and closing.startswith("else if "):
        otherwise = [_block("if", closing.removeprefix("else if "), tokens, depth)]
    elif closing == "else":
        otherwise, last = _parse(tokens, depth)
        assert last == "end"
    return (word, condition, body, otherwise)


def _run(nodes: list[Any], dot: Any, variables: dict[str, Any], out: list[str]) -> None:
    for node in nodes:
        if node[0] == "text":
            out.append(node[1])
        elif node[0] == "action":
            assigned = re.fullmatch(r"(\$\w+) (:?=) (.+)", node[1])
            if assigned is None:
                out.append(str(_value(node[1], dot, variables)))
                continue
            assert (assigned[2] == ":=") != (assigned[1] in variables), f"{node[1]} declares or assigns wrongly"
            variables[assigned[1]] = _value(assigned[3], dot, variables)
        elif node[0] == "if":
            _run(node[2] if _value(node[1], dot, variables) else node[3], dot, variables, out)
        else:
            for element in _value(node[1], dot, variables):
                _run(node[2], element, variables, out)


def _value(expression: str, dot: Any, variables: dict[str, Any]) -> Any:
    if expression.startswith("eq "):
        left, right = re.fullmatch(r'eq (\S+) (".*"|\S+)', expression).groups()  # type: ignore[union-attr]
        return _value(left, dot, variables) == _value(right, dot, variables)
    if expression.startswith('"') and expression.endswith('"') and '"' not in expression[1:-1]:
        return expression[1:-1]
    if expression.startswith("$"):
        return variables[expression]
    assert re.fullmatch(r"\.\w+", expression), f"'{expression}' is not known here"
    return dot[expression[1:]]


def modelfile_commands(text: str) -> list[tuple[str, str]]:
    """(command, argument) of a Modelfile, as Ollama's parser/parser.go reads them: comments, quotes, triple quotes."""
    commands, at = [], 0
    form = re.compile(r'([A-Z]+)[ \t]+("""(.*?)"""|"([^"\n]*)"|[^\n]*(?: "([^"\n]*)")?)[ \t]*(?:\n|$)', re.DOTALL)
    while at < len(text):
        if text[at] == "#":
            at = text.find("\n", at) + 1 or len(text)
        elif text[at].isspace():
            at += 1
        else:
            match = form.match(text, at)
            assert match, f"no command at {text[at : at + 40]!r}"
            value = match[3] if match[3] is not None else match[4] if match[4] is not None else match[2]
            commands.append((match[1], value))
            at = match.end()
    return commands
