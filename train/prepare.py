"""Reads, splits and encodes the data of a run before any model is loaded, so that every fault of it is found first.

It knows nothing of training.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm.console import note
from slm.prompt import named_template
from train.checkpoint import load_tokenizer, lookalikes, read_config
from train.config import TrainOptions
from train.data import Example, read_conversations, read_texts, split_held_out
from train.masks import Encoded, Encoder, choose_template, end_of_turn_id, fit_length

# The template made of plain text, which every base knows, and EOS.
PLAIN = "alpaca"
_TOO_MANY = 8


@dataclass(frozen=True)
class Prepared:
    """What a run trains on and measures on, and how it was encoded."""

    tokenizer: Any
    template: str | None
    template_name: str | None
    train: list[Encoded]
    held_out: list[Encoded]
    dropped: int
    examples: list[Example]


def prepare_conversations(options: TrainOptions) -> Prepared:
    """Read, split and encode the conversations of a run, without loading the model."""
    read_config(options.base)
    tokenizer = load_tokenizer(options.base)
    template, name = choose_template(tokenizer, options.template)
    # A template that the base's makers wrote was trained with; one of ours may only have found its markers there.
    if name not in (None, PLAIN) and not _can_end(options.base, tokenizer, template):
        marker = f"the end-of-turn token of the chat template '{name}' was never trained in this base"
        if options.template is None:
            template, name = named_template(PLAIN), PLAIN
            note(f"{marker}, so answers could not end with it: using the template '{PLAIN}', which ends with EOS")
        else:
            note(f"warning: {marker}; answers may not end. Without --template, '{PLAIN}' is used")
    encoder = Encoder(tokenizer, template)
    examples = read_conversations(options.data, lang=options.lang)
    if options.eval_data:
        train, held = examples, read_conversations(options.eval_data, lang=options.lang)
    else:
        train, held = split_held_out(examples, options.eval_fraction, options.seed)
    limit = _length_limit(options)
    sides, dropped = [], 0
    for side in (train, held):
        encoded = [item for example in side for item in encoder.conversation(example)]
        kept, long = fit_length(encoded, limit, drop_long=options.drop_long)
        sides.append(kept)
        dropped += len(long)
    if dropped:
        note(f"left out: {dropped} examples of more than {limit} tokens (--drop-long)")
    return Prepared(tokenizer, template, name, sides[0], sides[1], dropped, train)


def _can_end(base: Path, tokenizer: Any, template: str) -> bool:
    """Whether the token that ends an answer under `template` can be told from others by the base's output."""
    token = end_of_turn_id(tokenizer, template)
    return token in (None, tokenizer.eos_token_id) or lookalikes(base, token) < _TOO_MANY


def prepare_texts(options: TrainOptions) -> Prepared:
    """Read, split and encode the running text of a run, without loading the model."""
    read_config(options.base)
    tokenizer = load_tokenizer(options.base)
    encoder = Encoder(tokenizer)
    limit = _length_limit(options)
    train = encoder.texts(read_texts(options.data, lang=options.lang), limit)
    examples = [item.example for item in train]
    if options.eval_data:
        held = encoder.texts(read_texts(options.eval_data, lang=options.lang), limit)
    else:
        chosen = {(e.file, e.line) for e in split_held_out(examples, options.eval_fraction, options.seed)[1]}
        held = [item for item in train if (item.example.file, item.example.line) in chosen]
        train = [item for item in train if (item.example.file, item.example.line) not in chosen]
    own = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None
    return Prepared(tokenizer, own, None, train, held, 0, [item.example for item in train])


def _length_limit(options: TrainOptions) -> int:
    config = read_config(options.base)
    positions = int(config.get("max_position_embeddings") or config.get("n_positions") or options.max_length)
    return min(options.max_length, positions)
