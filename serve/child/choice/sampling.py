"""The next token: penalties, filters, a seeded choice.

The filters mean what llama.cpp's of the same name mean (src/llama-sampler.cpp), on numpy arrays, without ever
sorting a whole vocabulary. It knows nothing of batches, contexts' contents or the protocol.
"""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from serve.child.choice.grammar import Constraint, Tokenizer, tokenizer_of
from serve.child.spelling.tokens import markers_of, special_kinds
from slm.chat.segments import Markers
from slm.errors import EngineError, InputError
from slm.joints import SamplingOptions, TokenScore
from slm.native.llama import library, model_meta, token_reader, vocab_size

Logits = npt.NDArray[np.float32]
TokenArray = npt.NDArray[np.intp]
Probabilities = npt.NDArray[np.float32]

# Below this a temperature leaves only the best token and those that tie with it; smaller ones would overflow.
_COLDEST = 1e-6
_NO_MARKERS = Markers()
# Elements to a block in `largest`: few blocks to rank, and few elements in the blocks that are looked into.
_BLOCK = 64


class Vocabulary:
    """The tokens of one model: how many, the bytes of each (looked up once), and which of them end an answer."""

    def __init__(
        self, size: int, eog: frozenset[int], read: Callable[[int, bool], bytes], markers: Markers = _NO_MARKERS
    ) -> None:
        """read(token, special) gives a token's bytes; control tokens have some only when special is True."""
        self.size = size
        self.eog = eog
        self.markers = markers
        self._read = lru_cache(maxsize=1 << 16)(read)

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes a token adds to the text. special: a control token by its name instead of nothing."""
        return self._read(token, special)

    @cached_property
    def grammar_tokenizer(self) -> Tokenizer:
        """llguidance's view of these tokens. Those that add nothing to the text are no part of any form."""
        pieces = [self._read.__wrapped__(token, False) for token in range(self.size)]
        special = [token for token, piece in enumerate(pieces) if not piece]
        for token in special:
            pieces[token] = self._read.__wrapped__(token, True)
        return tokenizer_of(pieces, special, sorted(self.eog))


def vocabulary_of(model: Any, ends: Collection[int] = ()) -> Vocabulary:
    """The vocabulary of an open model, which has to outlive it. ends: tokens that end an answer beside llama.cpp's."""
    lib, size = library(), vocab_size(model)
    vocab = lib.llama_model_get_vocab(model)
    kinds = special_kinds(model)
    # llama.cpp makes control tokens of all that end an answer, except of those that the file names.
    named = {model_meta(model, f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")} - {None}
    looked = {*kinds, *(int(token) for token in named if token and int(token) < size)}
    eog = frozenset(token for token in looked if lib.llama_vocab_is_eog(vocab, token)) | set(ends)
    return Vocabulary(size, eog, token_reader(model), markers_of(model, kinds))


@dataclass(frozen=True)
class Picked:
    """A chosen token, its score when scores were asked for, and whether nothing but the end can follow it."""

    token: int
    score: TokenScore | None = None
    end: bool = False


class Sampler:
    """The choice of one request's tokens, one after another. Not thread-safe; another thread may take it over."""

    def __init__(self, options: SamplingOptions, prompt: Sequence[int], vocabulary: Vocabulary) -> None:
        """Raises InputError when an option names no token of the vocabulary, or the grammar cannot be followed."""
        self._options = options
        self._vocabulary = vocabulary
        self._random = random.Random(options.seed)
        self._recent = deque(prompt, maxlen=options.repeat_last_n if options.repeat_last_n >= 0 else None)
        self._made: Counter[int] = Counter()
        self._bias = dict(options.logit_bias)
        for name, tokens in (("logit_bias", self._bias), ("stop_token_ids", options.stop_tokens)):
            for token in tokens:
                if not 0 <= token < vocabulary.size:
                    raise InputError(f"{name}: {token} is no token id; the vocabulary has {vocabulary.size:,}")
        self._picked = 0
        self._eog = np.array(sorted(vocabulary.eog), np.intp)
        self._ends = np.array(sorted(vocabulary.eog.union(options.stop_tokens)), np.intp)
        self._counts = options.presence_penalty != 0.0 or options.frequency_penalty != 0.0
        self._form = (
            Constraint(vocabulary.grammar_tokenizer, options.grammar, options.grammar_field)
            if options.grammar
            else None
        )
        self._changes = self._counts or options.repeat_penalty != 1.0 or bool(self._bias) or self._form is not None
        self._changes = self._changes or options.ignore_eos or options.min_tokens > 0
        self._changed: Logits | None = None

    def pick(self, logits: Logits) -> Picked:
        """Choose from logits, (vocabulary,) float32, which are only read.

        Raises EngineError if they are no numbers, InputError if the grammar cannot be followed any further.
        """
        adjusted = self._adjust(logits)
        if self._options.temperature <= 0:
            token = int(adjusted.argmax())
            if not math.isfinite(adjusted[token]):
                raise _not_numbers()
        else:
            tokens, probabilities = self._filtered(adjusted)
            token = int(tokens[_draw(probabilities, self._random.random())])
        self._recent.append(token)
        self._picked += 1
        if self._counts:
            self._made[token] += 1
        end = self._form is not None and token not in self._vocabulary.eog and self._form.accept(token)
        count = self._options.logprobs
        return Picked(token, None if count is None else score(logits, token, count, self._vocabulary), end)

    def distribution(self, logits: Logits) -> tuple[TokenArray, Probabilities]:
        """Token ids that may come next and their probabilities, which sum to 1; chooses none."""
        adjusted = self._adjust(logits)
        if self._options.temperature <= 0:
            return adjusted.argmax().reshape(1), np.ones(1, np.float32)
        return self._filtered(adjusted)

    def _adjust(self, logits: Logits) -> Logits:
        """The logits after penalties, biases and the grammar, in this sampler's own memory when there are any."""
        if not self._changes:
            return logits
        if self._changed is None:
            self._changed = np.empty(self._vocabulary.size, np.float32)
        np.copyto(self._changed, logits)
        options, changed = self._options, self._changed
        if options.repeat_penalty != 1.0 and self._recent:
            seen = np.array(list(set(self._recent)))
            old = changed[seen]
            changed[seen] = np.where(old <= 0, old * options.repeat_penalty, old / options.repeat_penalty)
        if self._counts and self._made:  # platform.openai.com/docs, "Frequency and presence penalties"
            made = np.fromiter(self._made.keys(), np.intp, len(self._made))
            counts = np.fromiter(self._made.values(), np.float32, len(self._made))
            changed[made] -= counts * options.frequency_penalty + options.presence_penalty
        if self._bias:
            changed[list(self._bias)] += np.array(list(self._bias.values()), np.float32)
        if self._picked < options.min_tokens:
            changed[self._ends] = -np.inf
        elif options.ignore_eos:
            changed[self._eog] = -np.inf
        if self._form is not None:
            self._form.forbid(changed)
        return changed

    def _filtered(self, logits: Logits) -> tuple[TokenArray, Probabilities]:
        """top-k, top-p, min-p, temperature, in this order. Raises EngineError if the logits are no numbers."""
        options = self._options
        ranked = largest(logits, options.top_k) if options.top_k > 0 else None
        values = logits if ranked is None else logits[ranked]
        best = float(values.max())  # numpy puts what is no number above all others
        if not math.isfinite(best):
            raise _not_numbers()
        floor = best + math.log(options.min_p) if options.min_p > 0.0 else float(np.finfo(np.float32).min)
        if options.top_p < 1.0:
            kept = _nucleus(values, best, options.top_p, ranked=ranked is not None)
            kept = kept[values[kept] >= floor]
        else:
            kept = np.flatnonzero(values >= floor)
        weights = np.exp((values[kept] - best) / max(options.temperature, _COLDEST))
        return kept if ranked is None else ranked[kept], weights / float(weights.sum())


def largest(logits: Logits, count: int) -> TokenArray:
    """Token ids of the `count` largest logits, the largest first.

    They lie in the `count` blocks with the largest maxima: each other block's best is beaten by that many bests.
    A block is a column of the vocabulary laid out as a matrix, so that all maxima are found in one pass over it.
    """
    size = len(logits)
    columns = size // _BLOCK
    if count * 4 >= columns:  # blocks would not leave much out
        found = np.arange(size) if count >= size else logits.argpartition(size - count)[size - count :]
    else:
        grid = logits[: columns * _BLOCK].reshape(_BLOCK, columns)
        best = grid.max(axis=0).argpartition(columns - count)[columns - count :]
        inside = (np.arange(_BLOCK)[:, None] * columns + best).ravel()
        inside = np.concatenate((inside, np.arange(columns * _BLOCK, size)))
        values = logits[inside]
        found = inside[values.argpartition(len(values) - count)[len(values) - count :]]
    return found[np.lexsort((found, -logits[found]))]


def _nucleus(values: Logits, best: float, share: float, *, ranked: bool) -> TokenArray:
    """Indices of the fewest likeliest of `values` that hold `share` of their probability, the likeliest first.

    The one that reaches the share counts. ranked: the values are the largest first already; otherwise only as many
    are ranked as it takes.
    """
    weights = np.exp(values - best)
    wanted = share * float(weights.sum(dtype=np.float64))
    count = len(values) if ranked else 256
    while True:
        likeliest = np.arange(count) if ranked else largest(values, count)
        held = weights[likeliest].cumsum(dtype=np.float64)
        if held[-1] >= wanted or count >= len(values):
            return likeliest[: int(held.searchsorted(wanted)) + 1]
        count *= 16


def _draw(probabilities: Probabilities, share: float) -> int:
    """The index at which the running sum passes `share` (0 to 1) of the whole; found by blocks, then inside one."""
    starts = np.arange(0, len(probabilities), 512)
    blocks = np.add.reduceat(probabilities, starts).cumsum(dtype=np.float64)
    wanted = share * float(blocks[-1])
    block = min(int(blocks.searchsorted(wanted, side="right")), len(blocks) - 1)
    inside = probabilities[starts[block] : starts[block] + 512].cumsum(dtype=np.float64)
    rest = wanted - (float(blocks[block - 1]) if block else 0.0)
    # Rounding may leave the rest just above the last sum; what has no probability is never drawn.
    return int(starts[block]) + int(inside.searchsorted(min(rest, inside[-1] * (1 - 1e-9)), side="right"))


def score(logits: Logits, token: int, count: int, vocabulary: Vocabulary) -> TokenScore:
    """Log-probability of a token before any penalty, filter or temperature, and of the `count` likeliest."""
    best = logits.max()
    log_total = float(best) + math.log(float(np.exp(logits - best).sum(dtype=np.float64)))

    def of(token: int) -> tuple[int, bytes, float]:
        return token, vocabulary.piece(token, special=True), float(logits[token]) - log_total

    top = tuple(of(int(other)) for other in largest(logits, count)) if count > 0 else ()
    return TokenScore(*of(token), top)


def _not_numbers() -> EngineError:
    return EngineError(
        "the model gave no usable numbers for the next token",
        hint="Its file may be damaged; look with: slm inspect FILE",
    )
