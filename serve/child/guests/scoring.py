"""Scores of the pieces of prompts: one reading, two logits at the end of each piece, and nothing generated.

The steps are as long as a lane's, and cores are borrowed for each, so that those who are answering wait no longer than
for another request's prompt. Which tokens are in which step is in `serve.child.guests.reading`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from serve.child import schedule
from serve.child.adapters import Handles, key_of
from serve.child.guests.guest import Guest
from serve.child.guests.reading import MOST_PROMPTS, PieceTokens, Span, shared_beginning, steps
from serve.child.lanes import Sink
from serve.child.messages import Begun, Score, Scores
from serve.child.pool import Team
from serve.child.spelling.tokens import prompt_tokens
from slm.chat.segments import Segment
from slm.errors import ContextOverflowError, EngineError, InputError
from slm.native.llama import (
    ContextParams,
    decode_rows,
    fast_attention,
    forget,
    library,
    open_context,
    set_adapters,
    tokenize,
)  # fmt: skip

# A context has at least so many cells, and always a power of two: one that fits is not opened anew for a few more.
_LEAST_CELLS = 1024


@dataclass(frozen=True)
class _Judged:
    """An order with the adapters that it is computed with."""

    order: Score
    adapters: Handles


class Scorer(Guest[_Judged]):
    """Answers orders into `sink`. `submit` and `cancel` may be called from any thread.

    borrow: gives a number of cores to compute on. hold: gives the adapters of a key and keeps them open meanwhile.
    context: the longest prompt, in tokens.
    """

    def __init__(
        self,
        model: Any,
        sink: Sink,
        borrow: Callable[[], AbstractContextManager[int]],
        hold: Callable[[str], AbstractContextManager[Handles]],
        *,
        context: int,
    ) -> None:
        self._model, self._borrow, self._hold, self._longest = model, borrow, hold, context
        self._team = Team()
        self._rate = 0.0  # tokens per second
        # The context that is kept, its cells, and its owner.
        self._context: Any = None
        self._cells = 0
        self._own = ExitStack()
        super().__init__("scores", sink)

    def submit(self, id: int, order: Score) -> None:
        """Queue an order. Raises EngineError when an adapter of it is not loaded."""
        with ExitStack() as held:
            adapters = held.enter_context(self._hold(key_of(order.lora)))
            self._enqueue(id, _Judged(order, adapters), held.pop_all())

    def _answered(self, kept: ExitStack, id: int, judged: _Judged) -> Scores:
        self._sink.add(id, Begun())
        self._sink.flush()
        begun = time.perf_counter()
        pair = contrast_tokens(self._model, judged.order.contrast)
        prompts = [self._tokens(number, prompt) for number, prompt in enumerate(judged.order.prompts)]
        asked = [number for number, prompt in enumerate(prompts) if prompt.ends]
        scores: list[tuple[float, ...]] = [()] * len(prompts)
        texts = [prompts[number] for number in asked]
        total = sum(len(text.tokens) for text in texts)
        shared = shared_beginning(texts) if texts else 0
        if texts:
            for number, found in zip(asked, self._read(kept, judged.adapters, texts, shared, pair), strict=True):
                scores[number] = tuple(found)
        return Scores(tuple(scores), total, shared * max(0, len(texts) - 1), time.perf_counter() - begun)

    def _tokens(self, number: int, prompt: Sequence[str]) -> PieceTokens:
        """Raises InputError or ContextOverflowError that name the prompt."""
        found = piece_tokens(self._model, number, prompt)
        if len(found.tokens) > self._longest:
            raise ContextOverflowError(
                f"prompts[{number}] has {len(found.tokens):,} tokens; the context holds {self._longest:,}",
                hint="Shorten its pieces, or start with a larger --context.",
            )
        return found

    def _read(
        self, kept: ExitStack, adapters: Handles, texts: Sequence[PieceTokens], shared: int, pair: tuple[int, int]
    ) -> list[list[float]]:
        """The scores of each text. Raises EngineError, also at the first decoding after the order was cancelled."""
        scores: list[list[float]] = [[] for _ in texts]
        with ExitStack() as stack:
            with self._borrow():  # while adapters are loaded, nobody may look at the model's set of them
                context = self._opened(kept, max(len(text.tokens) for text in texts))
                forget(context)
                stack.callback(set_adapters, context, [])  # they may be freed when the order is over
                set_adapters(context, adapters)
            done = 0
            while done < shared:
                stop = min(shared, done + self._chunk())
                self._decode(context, [(token, at, 0, False) for at, token in _part(texts[0], done, stop)])
                done = stop
            for spans in steps(texts, shared, cells=self._cells, chunk=self._chunk):
                self._step(context, texts, shared, spans, pair, scores)
        return scores

    def _chunk(self) -> int:
        return schedule.chunk_of(self._rate)

    def _step(
        self, context: Any, texts: Sequence[PieceTokens], shared: int, spans: Sequence[Span], pair: tuple[int, int],
        scores: list[list[float]],
    ) -> None:  # fmt: skip
        """Decode the spans and add the scores of the pieces that end in them."""
        memory = library().llama_get_memory(context)
        rows: list[tuple[int, int, int, bool]] = []
        ended: list[tuple[int, int]] = []  # row, text
        for span in spans:
            text, sequence = texts[span.prompt], 1 + span.prompt % MOST_PROMPTS
            if shared and span.start == shared:
                library().llama_memory_seq_cp(memory, 0, sequence, -1, -1)
            ends = set(text.ends)
            for at, token in _part(text, span.start, span.stop):
                if at in ends:
                    ended.append((len(rows), span.prompt))
                rows.append((token, at, sequence, at in ends))
        self._decode(context, rows)
        for row, number in ended:
            logits = library().llama_get_logits_ith(context, row)
            score = float(logits[pair[0]]) - float(logits[pair[1]])
            if not math.isfinite(score):
                raise EngineError(
                    "the model gave no usable numbers for a piece",
                    hint="Its file may be damaged; look with: slm inspect FILE",
                )
            scores[number].append(score)
        for span in spans:
            if span.stop == len(texts[span.prompt].tokens):
                library().llama_memory_seq_rm(memory, 1 + span.prompt % MOST_PROMPTS, -1, -1)

    def _decode(self, context: Any, rows: Sequence[tuple[int, int, int, bool]]) -> None:
        with self._borrow() as cores:
            library().llama_set_n_threads(context, cores, cores)
            begun = time.perf_counter()
            try:
                self._team.run(partial(decode_rows, context, rows), cores=cores)
            finally:
                self._team.rest()
            if len(rows) >= schedule.SMALLEST_CHUNK // 2:
                rate = len(rows) / (time.perf_counter() - begun)
                self._rate = (self._rate + rate) / 2 if self._rate else rate

    def _opened(self, kept: ExitStack, tokens: int) -> Any:
        """The kept context, or a new one when it has not cells enough. With cores borrowed."""
        if self._cells < tokens:
            self._own.close()
            self._own = kept.enter_context(ExitStack())
            cells = max(_LEAST_CELLS, 1 << (tokens - 1).bit_length())
            wanted = ContextParams(cells, schedule.LARGEST_CHUNK, 1 + MOST_PROMPTS, flash_attention=fast_attention())
            context = open_context(self._own, self._model, wanted)
            self._stoppable(context)
            self._own.callback(setattr, self, "_cells", 0)
            self._context, self._cells = context, cells
        return self._context


def _part(text: PieceTokens, start: int, stop: int) -> enumerate[int]:
    return enumerate(text.tokens[start:stop], start)


def piece_tokens(model: Any, number: int, pieces: Sequence[str]) -> PieceTokens:
    """BOS where the vocabulary adds one, and the tokens of each piece on its own; a control token's name is text.

    number: of the prompt, in errors. Raises InputError for a piece without tokens, or no piece at all.
    """
    if not pieces:
        raise InputError(f"prompts[{number}] has no pieces", hint="Give a head, and then the pieces to judge.")
    tokens = prompt_tokens(model, [Segment("", False)], True)
    stops = []
    for place, piece in enumerate(pieces):
        found = tokenize(model, piece, add_special=False, parse_special=False)
        if not found:
            raise InputError(f"prompts[{number}][{place}] has no tokens", found=repr(piece))
        tokens += found
        stops.append(len(tokens))
    return PieceTokens(tokens, stops[0], [stop - 1 for stop in stops[1:]])


def contrast_tokens(model: Any, contrast: tuple[str, str]) -> tuple[int, int]:
    """The token ids of the two texts. Raises InputError for one that is not exactly one token, or for two alike."""
    found = [tokenize(model, text, add_special=False, parse_special=False) for text in contrast]
    for text, tokens in zip(contrast, found, strict=True):
        if len(tokens) != 1:
            raise InputError(
                f"the contrast {text!r} has to be one token of this model's vocabulary", found=f"{len(tokens)} tokens"
            )
    (first,), (second,) = found
    if first == second:
        raise InputError("the two texts of a contrast have to be different tokens", found=f"{contrast[0]!r} twice")
    return first, second
