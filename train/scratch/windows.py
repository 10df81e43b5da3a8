"""Packs passages into windows of token ids without padding. It knows nothing of models.

The documents of a language stand end to end, each with the end-of-text token behind it, and are cut into windows; a
window may hold the end of one document and the beginning of the next, and attention reaches across that border, as is
usual in pre-training: the model learns what the token means. Neighbouring windows share one token, so that every token
is predicted once.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch

from train.data.masks import IGNORE
from train.tokenizer.corpus import CorpusPassage, is_held_out

_TOGETHER = 256  # passages encoded in one call
_MOST_HELD_OUT = 16_384  # tokens a language, about: so much is measured again and again while a run goes on


@dataclass
class Stream:
    """The token ids of one language, end to end, and the UTF-8 bytes of the text they stand for."""

    ids: array[int] = field(default_factory=lambda: array("I"))
    utf8_bytes: int = 0

    def windows(self, context: int) -> int:
        """How many windows of `context` predicted tokens there are; a rest that fills none is left out."""
        return max(0, len(self.ids) - 1) // context

    def window(self, number: int, context: int) -> list[int]:
        """The `context` + 1 ids of a window."""
        return self.ids[number * context : (number + 1) * context + 1].tolist()


@dataclass
class PackedText:
    """What a run trains on and measures on, by language."""

    train: dict[str, Stream]
    held_out: dict[str, Stream]
    passages: int = 0


def pack(tokenizer: Any, passages: Iterable[CorpusPassage], fraction: float, seed: int) -> PackedText:
    """Encode passages, a few at a time; about `fraction` of them are held out (0: none)."""
    packed = PackedText({}, {})
    end = int(tokenizer.eos_token_id)
    for passage, ids in _encoded(tokenizer, passages):
        packed.passages += 1
        held = fraction > 0.0 and is_held_out(passage.text, fraction, seed)
        streams = packed.held_out if held else packed.train
        stream = streams.setdefault(passage.lang, Stream(array("I", [end])))
        if held and len(stream.ids) > _MOST_HELD_OUT:
            continue
        stream.ids.extend(ids)
        stream.utf8_bytes += len(passage.text.encode())
        if passage.ends or held:
            stream.ids.append(end)
    return packed


def _encoded(tokenizer: Any, passages: Iterable[CorpusPassage]) -> Iterator[tuple[CorpusPassage, list[int]]]:
    rest = iter(passages)
    while some := list(islice(rest, _TOGETHER)):
        texts = [passage.text for passage in some]
        ids = tokenizer(texts, add_special_tokens=False, split_special_tokens=True).input_ids
        yield from zip(some, ids, strict=True)


def held_out_windows(stream: Stream, context: int, end: int) -> Iterator[tuple[list[int], list[int]]]:
    """(ids, labels) that predict every token of the text once; end-of-text tokens carry no label, they are no text."""
    for start in range(0, len(stream.ids) - 1, context):
        ids = stream.ids[start : start + context + 1].tolist()
        yield ids[:-1], [IGNORE if token == end else token for token in ids[1:]]


class Batches:
    """The batches of a run by step: the same for the same seed, whichever step is asked for first."""

    def __init__(self, streams: dict[str, Stream], context: int, size: int, seed: int) -> None:
        self._streams, self._context, self._size, self._seed = streams, context, size, seed
        self._places = [(lang, n) for lang, stream in sorted(streams.items()) for n in range(stream.windows(context))]
        self._epoch, self._order = -1, [0]

    @property
    def windows(self) -> int:
        """Windows in one epoch."""
        return len(self._places)

    def batch(self, step: int) -> torch.Tensor:
        """Ids of shape (size, context + 1) of a step from 0; an epoch's order is drawn anew from the seed."""
        rows = [self._window(number) for number in range(step * self._size, (step + 1) * self._size)]
        return torch.tensor(rows, dtype=torch.long)

    def _window(self, number: int) -> list[int]:
        epoch, place = divmod(number, len(self._places))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            self._order = torch.randperm(len(self._places), generator=generator).tolist()
            self._epoch = epoch
        lang, index = self._places[self._order[place]]
        return self._streams[lang].window(index, self._context)
