"""How long a text is for a model, about, without its tokenizer: for budgets that have to hold in either language."""

from __future__ import annotations

import re

# A Latin letter is about a quarter of a token, a Japanese character two thirds.
LETTER, WIDE = 1 / 4, 2 / 3
_WIDE = re.compile("[\u3000-\U0010ffff]")


def about_tokens(text: str) -> float:
    """About how many tokens a text makes."""
    wide = len(_WIDE.findall(text))
    return (len(text) - wide) * LETTER + wide * WIDE
