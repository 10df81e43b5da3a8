"""`{% generation %}` of chat templates: what the model has to write itself stands between it and `{% endgeneration %}`.

transformers knows the tag since 4.43 and changes no text by it; Jinja alone refuses a template that has it. It knows
nothing of tokens or of training.
"""

from __future__ import annotations

import re
import secrets
from itertools import pairwise

from jinja2 import Environment, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

# Other in each process, so that no text of a user's holds one.
_NONCE = secrets.token_hex(8)
_BEGIN, _END = f"\ue000{_NONCE}\ue001", f"\ue000{_NONCE}\ue002"
_MARK = re.compile(f"\ue000{_NONCE}[\ue001\ue002]")


def has_tag(template: str) -> bool:
    """Whether a template says itself what the model has to write: in a statement, not in a comment or a raw block."""
    try:
        tokens = [(kind, text) for _, kind, text in Environment().lex(template) if kind != "whitespace"]
    except TemplateSyntaxError:  # which is told where it is rendered
        return False
    return any(one[0] == "block_begin" and two == ("name", "generation") for one, two in pairwise(tokens))


class GenerationTag(Extension):
    """The tag changes nothing: what stands in it is rendered as if it stood alone."""

    tags = {"generation"}  # noqa: RUF012  (Jinja declares it so)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """The statements inside the tag."""
        next(parser.stream)
        return self.around(parser.parse_statements(("name:endgeneration",), drop_needle=True))

    def around(self, body: list[nodes.Node]) -> list[nodes.Node]:
        """What the tag becomes."""
        return body


class MarkedGenerationTag(GenerationTag):
    """The tag as it is, with a mark before and behind it in the text; `taken_out` finds them."""

    def around(self, body: list[nodes.Node]) -> list[nodes.Node]:
        """The statements between two marks."""
        return [*_text(_BEGIN), *body, *_text(_END)]


def _text(data: str) -> list[nodes.Node]:
    return [nodes.Output([nodes.TemplateData(data)])]


def taken_out(marked: str) -> tuple[str, list[tuple[int, int]]]:
    """A text without the marks, and the (start, end) of what stood between them, in characters."""
    text, spans, begun = "", [], []
    place = 0
    for mark in _MARK.finditer(marked):
        text += marked[place : mark.start()]
        place = mark.end()
        if mark[0] == _BEGIN:
            begun.append(len(text))
        elif begun:
            spans.append((begun.pop(), len(text)))
    return text + marked[place:], sorted(spans)
