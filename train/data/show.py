"""Shows which tokens of instruction data are learned, on the first examples. It knows nothing of training."""

from __future__ import annotations

from itertools import groupby, islice
from typing import Any

from train.config import TrainOptions
from train.data.examples import read_conversations
from train.data.masks import Encoded, ExampleEncoder
from train.data.prepare import ReadCounts, conversation_template, length_limit, told_limit


def show_masks(options: TrainOptions, count: int) -> list[str]:
    """The first `count` sequences in rich's markup: learned tokens between ⟦ ⟧ and green, the others dim.

    Notes what the examples that were read have beside it: fields that mean nothing here, none to learn.
    """
    tokenizer, template, name = conversation_template(options)
    limit = length_limit(options)
    counts = ReadCounts(limit)
    examples = counts.examples(read_conversations(options.data, lang=options.lang))
    stream = ExampleEncoder(tokenizer, template).encode(examples, limit)
    shown = []
    for item in islice(stream, count):
        head = f"{item.example.where} ({item.example.lang}): {item.supervised} of {len(item.ids)} tokens are learned"
        if item.example.messages:
            head += f", template: {name or 'of the base'}"
        if len(item.ids) > limit:
            head += f"; longer than {told_limit(options)}"
        shown.append(f"[bold]{head}[/]\n{_marked(tokenizer, item)}")
    counts.tell()
    return shown


def _marked(tokenizer: Any, item: Encoded) -> str:
    from rich.markup import escape

    pieces, before = [], ""
    done: list[int] = []
    # Nothing stands before the first token, so it is never predicted.
    marks = zip(item.ids, [False, *(label >= 0 for label in item.labels[1:])], strict=True)
    for learned, pairs in groupby(marks, key=lambda pair: pair[1]):
        done += [token for token, _ in pairs]
        text = tokenizer.decode(done)  # a piece decoded alone may lose the space before it
        piece, before = escape(text[len(before) :]), text
        pieces.append(f"[bold green]⟦{piece}⟧[/]" if learned else f"[dim]{piece}[/]")
    return "".join(pieces)
