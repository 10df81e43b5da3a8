"""Reads, splits and encodes the data of a run before any model is loaded, so that every fault of it is found first.

The data go through as a stream into a TokenStore, so memory does not grow with them. It knows nothing of training.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slm.chat.prompt import named_template
from slm.errors import InputError
from slm.terminal.console import note, progress
from train.base import load_tokenizer, lookalikes, read_config
from train.config import TrainOptions
from train.data.examples import Example, read_conversations, read_texts
from train.data.masks import Encoded, ExampleEncoder, choose_template, end_of_turn_id
from train.data.split import held_out
from train.data.store import StoreWriter, TokenStore

# The template made of plain text, which every base knows, and EOS.
PLAIN = "alpaca"
_TOO_MANY = 8
# How the turns of a conversation begin once a chat template has written them.
_WRITTEN_TURNS = re.compile(
    r"<\|im_start\|>|<start_of_turn>|\[INST\]|<\|start_header_id\|>|<\|(?:user|assistant|system)\|>|<｜(?:User|Assistant)｜>"
)
_NAMED = 5


@dataclass(frozen=True)
class Prepared:
    """What a run trains on and measures on, and how it was encoded.

    weights: how often each sequence of `train` is seen an epoch, None where all are seen once.
    dropped_by_language: sequences left out because they are too long. examples_by_file: examples read from each file.
    unused_fields: how often fields of the data were there that mean nothing here.
    """

    tokenizer: Any
    template: str | None
    template_name: str | None
    train: TokenStore
    held_out: TokenStore
    weights: npt.NDArray[np.float64] | None
    dropped_by_language: dict[str, int]
    examples_by_file: dict[Path, int]
    unused_fields: dict[str, int]

    @property
    def dropped(self) -> int:
        """How many sequences were left out because they are too long."""
        return sum(self.dropped_by_language.values())


@dataclass
class ReadCounts:
    """What is counted while the data go by.

    Examples by file, fields without a meaning, examples without an answer to learn, those that hold the marks of a chat
    template as letters, sequences, and those too long.
    """

    limit: int
    files: Counter[Path] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)
    silent: list[Example] = field(default_factory=list)
    written: list[tuple[Example, str]] = field(default_factory=list)
    long_by_language: Counter[str] = field(default_factory=Counter)
    sequences: int = 0
    first_long: list[tuple[Example, int]] = field(default_factory=list)
    longest: int = 0

    def examples(self, stream: Iterable[Example]) -> Iterator[Example]:
        """The same examples, counted."""
        for example in stream:
            self.files[example.file] += 1
            self.unused.update([*dict.fromkeys(example.unused)])
            if example.messages and not example.answers:
                self.silent.append(example)
            # A document of its own keeps them as tokens: it may be a conversation that was formatted before.
            texts = [message["content"] for message in example.messages] or [example.text] * (not example.is_document)
            if mark := next(filter(None, map(_WRITTEN_TURNS.search, texts)), None):
                self.written.append((example, mark.group()))
            yield example

    def tell(self) -> None:
        """Note the examples and the fields that nothing is learned from."""
        if self.silent:
            note(f"{len(self.silent)} examples have no turn to learn, the first is {self.silent[0].where}")
        if self.written:
            (first, mark), count = self.written[0], len(self.written)
            note(
                f"{count} of {self.files.total()} examples hold marks that a chat template writes, the first is {mark} "
                f'in {first.where}: there they are letters and no tokens; give the bare turns, as "messages"'
            )
        if self.unused:
            listed = ", ".join(
                f"{name} {count}" for name, count in sorted(self.unused.items(), key=lambda item: (-item[1], item[0]))
            )
            note(f"fields not used, and how many of {self.files.total()} examples have them: {listed}")

    def fits(self, item: Encoded) -> bool:
        """Whether a sequence is within the limit; it is counted either way."""
        self.sequences += 1
        size = len(item.ids)
        if size <= self.limit:
            return True
        self.long_by_language[item.example.lang] += 1
        self.longest = max(self.longest, size)
        if len(self.first_long) < _NAMED:
            self.first_long.append((item.example, size))
        return False


def prepare_conversations(options: TrainOptions) -> Prepared:
    """Read, split and encode the instruction data of a run (plain texts may be among them), without loading the model.

    Raises InputError when a sequence is too long and `drop_long` is not set; it lists the first ones.
    """
    tokenizer, template, name = conversation_template(options)
    return _prepare(options, ExampleEncoder(tokenizer, template), tokenizer, template, name, read_conversations)


def prepare_texts(options: TrainOptions) -> Prepared:
    """Read, split and encode the running text of a run, without loading the model."""
    read_config(options.base)
    tokenizer = load_tokenizer(options.base)
    own = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None
    return _prepare(options, ExampleEncoder(tokenizer), tokenizer, own, None, read_texts)


def conversation_template(options: TrainOptions) -> tuple[Any, str, str | None]:
    """(tokenizer, template text, its name or None) that a base is taught to answer with."""
    read_config(options.base)
    tokenizer = load_tokenizer(options.base)
    template, name = choose_template(tokenizer, options.template)
    token = end_of_turn_id(tokenizer, template)
    if token is not None and end_of_turn_id(tokenizer, template, use_tag=True) != token:
        note(
            "warning: the chat template's {% generation %} leaves out the token that ends an answer, so it is not"
            " learned and answers may not end; another template: --template chatml"
        )
    if token is None:
        note(
            "warning: this tokenizer knows no special token behind the chat template's answers, so a model may not"
            f" end them; the template '{PLAIN}' ends with EOS: --template {PLAIN}"
        )
    # A template that the base's makers wrote was trained with; one of ours may only have found its markers there.
    elif name not in (None, PLAIN) and token != tokenizer.eos_token_id and lookalikes(options.base, token) >= _TOO_MANY:
        marker = f"the end-of-turn token of the chat template '{name}' was never trained in this base"
        if options.template is None:
            template, name = named_template(PLAIN), PLAIN
            note(f"{marker}, so answers could not end with it: using the template '{PLAIN}', which ends with EOS")
        else:
            note(f"warning: {marker}; answers may not end. Without --template, '{PLAIN}' is used")
    return tokenizer, template, name


def _prepare(
    options: TrainOptions, encoder: ExampleEncoder, tokenizer: Any, template: str | None, name: str | None, read: Any
) -> Prepared:
    counts = ReadCounts(length_limit(options))
    data = _encode(options, encoder, counts, read(options.data, lang=options.lang), "encoding")
    if options.eval_data:
        train = data
        held = _encode(options, encoder, counts, read(options.eval_data, lang=options.lang), "encoding held-out data")
    _report_long(counts, options)
    counts.tell()
    if not options.eval_data:
        aside = held_out(data.keys, data.languages, options.eval_fraction)
        train, held = data.subset(~aside), data.subset(aside)
    weights = None
    if any(weight != 1.0 for weight in options.weights):
        weights = train.weights(dict(zip(options.data, options.weights, strict=True)))
    long = dict(sorted(counts.long_by_language.items()))
    return Prepared(tokenizer, template, name, train, held, weights, long, dict(counts.files), dict(counts.unused))


def _encode(
    options: TrainOptions, encoder: ExampleEncoder, counts: ReadCounts, examples: Iterable[Example], label: str
) -> TokenStore:
    writer = StoreWriter(near=options.output)
    with progress(label, unit="sequences") as show:
        for item in encoder.encode(counts.examples(examples), counts.limit):
            if counts.fits(item):
                writer.append(item, item.example.key(options.seed))
                show(len(writer))
    store = writer.store()
    if not len(store) and not counts.sequences:
        raise InputError(
            "no example has a turn to learn", hint='Turns with "weight": 0 or "train": false are not learned.'
        )
    if not len(store):
        raise InputError(f"every example is longer than {told_limit(options)}")
    return store


def _report_long(counts: ReadCounts, options: TrainOptions) -> None:
    count = counts.long_by_language.total()
    if not count:
        return
    listed = "; ".join(f"{example.where}: {size} tokens" for example, size in counts.first_long)
    listed += "; ..." if count > len(counts.first_long) else ""
    if not options.drop_long:
        raise InputError(
            f"{count} of {counts.sequences} examples are longer than {counts.limit} tokens, and none is cut silently",
            found=listed,
            hint=(
                f"Raise --max-length to {counts.longest}, or leave them out with --drop-long."
                if counts.longest <= base_limit(options)
                else f"The base reads {base_limit(options)} tokens at most; leave them out with --drop-long."
            ),
        )
    shares = ", ".join(f"{number} {lang}" for lang, number in sorted(counts.long_by_language.items()))
    note(f"left out: {count} examples of more than {counts.limit} tokens ({shares}): {listed}")


def length_limit(options: TrainOptions) -> int:
    """The longest sequence, in tokens: --max-length, or what the base can read where that is less."""
    return min(options.max_length, base_limit(options))


def told_limit(options: TrainOptions) -> str:
    """What bounds a sequence, as it is said: the option that was given, or the base where that reads less."""
    limit = length_limit(options)
    return f"--max-length {limit}" if limit == options.max_length else f"the {limit} tokens that the base reads"


def base_limit(options: TrainOptions) -> int:
    """The positions that the base has, in tokens; --max-length where its config names none."""
    config = read_config(options.base)
    return int(config.get("max_position_embeddings") or config.get("n_positions") or options.max_length)
