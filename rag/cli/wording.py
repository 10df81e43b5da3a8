"""The option --words of the commands that make an index."""

from __future__ import annotations

import click

from rag.index.lexical.terms import KINDS

WORDS = click.option(
    "--words", type=click.Choice(KINDS),
    help="How a new index finds Japanese words: by pairs of characters, or by Sudachi's dictionary beside them "
         "(extra sudachi) [default: pairs].",
)  # fmt: skip
