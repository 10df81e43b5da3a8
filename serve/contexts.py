"""One llama.cpp context for one adapter content: its sequences, its KV cells, and one decode step over them.

Runs only in the engine's child process. It knows nothing of the protocol, of adapters' names or of who asked.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from serve import batch, prefix
from serve.sampling import Sampler, TextStream, Vocabulary
from slm.errors import EngineError, SlmError
from slm.joints import SamplingOptions, TokenScore
from slm.llama import library, open_context, set_adapters


@dataclass
class Running:
    """A request inside a slot."""

    request: int
    prompt: list[int]
    options: SamplingOptions
    sampler: Sampler
    text: TextStream
    cached: int
    started: float
    first_token: float = 0.0
    pending: int | None = None
    generated: int = 0


@dataclass
class Slot:
    """One sequence id: the tokens whose KV cells it holds, and the request that runs in it (None: kept as cache)."""

    index: int
    tokens: list[int] = field(default_factory=list)
    running: Running | None = None
    reserved: int = 0
    last_used: int = 0


@dataclass(frozen=True)
class Piece:
    """Text that one request gained, and its end if this was the last (`reason` stop or length, with figures)."""

    request: int
    text: str
    finish: dict[str, Any] | None = None
    scores: tuple[TokenScore, ...] = ()
    error: SlmError | None = None


class HotContext:
    """Up to `parallel` requests at once on one (adapter content, scale), or on the bare base."""

    def __init__(
        self,
        model: Any,
        vocabulary: Vocabulary,
        adapter: tuple[Any, float] | None,
        *,
        cells: int,
        parallel: int,
        threads: int,
    ) -> None:
        self._lib = library()
        self._vocabulary = vocabulary
        self.parallel = parallel
        self.cells = cells
        self.last_used = 0
        self._clock = 0
        # Twice as many sequences as requests: finished ones stay as a cache, the cells are shared anyway.
        self.slots = [Slot(index) for index in range(2 * parallel)]
        self._can_copy = not (self._lib.llama_model_is_recurrent(model) or self._lib.llama_model_is_hybrid(model))
        with ExitStack() as stack:
            n_batch = batch.PREFILL_CHUNK + parallel
            self._context = open_context(
                stack, model, n_ctx=cells, n_batch=n_batch, n_seq_max=len(self.slots), n_threads=threads
            )
            set_adapters(self._context, [adapter] if adapter else [])
            self._memory = self._lib.llama_get_memory(self._context)
            self._batch = self._lib.llama_batch_init(n_batch, 0, 1)
            stack.callback(self._lib.llama_batch_free, self._batch)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Free the context; running requests must have been ended before."""
        self._stack.close()

    @property
    def busy(self) -> list[Slot]:
        return [slot for slot in self.slots if slot.running]

    def load(self) -> batch.ContextLoad:
        """What the scheduler needs to know of this context."""
        busy = self.busy
        left = max((slot.reserved - len(slot.tokens) for slot in busy), default=0)
        return batch.ContextLoad(self.last_used, len(busy), left)

    def admit(self, request: int, prompt: list[int], options: SamplingOptions) -> bool:
        """Give the request a slot and the longest cached prefix; False when it has to wait for another to end."""
        if len(self.busy) >= self.parallel:
            return False
        views = [prefix.SlotView(s.index, s.tokens, s.running is not None, s.reserved, s.last_used) for s in self.slots]
        reserve = len(prompt) + options.max_tokens
        placement = prefix.place(views, prompt, reserve=reserve, cells=self.cells, can_copy=self._can_copy)
        if placement is None:
            return False
        sampler = Sampler(options, prompt, self._vocabulary)
        slot = self.slots[placement.slot]
        keep = placement.keep
        if placement.source is not None:
            self._clear(slot)
            self._lib.llama_memory_seq_cp(self._memory, placement.source, slot.index, 0, keep)
            slot.tokens = prompt[:keep]
        elif not self._lib.llama_memory_seq_rm(self._memory, slot.index, keep, -1):
            self._clear(slot)  # a recurrent state cannot be cut back to a prefix
            keep = 0
        slot.tokens = prompt[:keep]
        for index in placement.evict:
            self._clear(self.slots[index])
        slot.running = Running(
            request, prompt, options, sampler, TextStream(options.stop), keep, started=time.perf_counter()
        )
        slot.reserved = reserve
        self._touch(slot)
        return True

    def cancel(self, request: int) -> dict[str, Any] | None:
        """End a running request between two steps; its cells stay as cache. None if it does not run here."""
        for slot in self.busy:
            if slot.running and slot.running.request == request:
                return self._end(slot, "cancelled")
        return None

    def step(self) -> Iterator[Piece]:
        """Decode one batch and yield what each request gained. Raises EngineError when llama.cpp refuses the batch."""
        running = {slot.index: slot.running for slot in self.slots if slot.running}
        work = [
            batch.Work(index, 0 if r.pending is not None else len(r.prompt) - len(self.slots[index].tokens))
            for index, r in running.items()
        ]
        plan = batch.plan_step(work)
        sampled: list[tuple[Slot, Running, int]] = []
        count = 0
        for index, share in plan.items():
            slot, request = self.slots[index], running[index]
            at = len(slot.tokens)
            tokens = [request.pending] if request.pending is not None else request.prompt[at : at + share]
            last = request.pending is not None or at + share == len(request.prompt)
            for offset, token in enumerate(tokens):
                self._put(count, token, at + offset, index, last and offset == len(tokens) - 1)
                count += 1
            slot.tokens.extend(tokens)
            if last:
                sampled.append((slot, request, count - 1))
        self._batch.n_tokens = count
        code = self._lib.llama_decode(self._context, self._batch)
        if code:
            raise EngineError(f"llama.cpp could not decode a batch of {count} tokens (code {code})")
        for slot, request, row in sampled:
            yield self._advance(slot, request, row)

    def fail(self) -> list[int]:
        """After a refused batch: drop every running request and all cells; returns the requests dropped."""
        dropped = [slot.running.request for slot in self.slots if slot.running]
        for slot in self.slots:
            if slot.running:
                self._end(slot, "error")
            self._clear(slot)
        return dropped

    def _put(self, row: int, token: int, position: int, sequence: int, logits: bool) -> None:
        self._batch.token[row] = token
        self._batch.pos[row] = position
        self._batch.n_seq_id[row] = 1
        self._batch.seq_id[row][0] = sequence
        self._batch.logits[row] = logits

    def _advance(self, slot: Slot, request: Running, row: int) -> Piece:
        pointer = self._lib.llama_get_logits_ith(self._context, row)
        try:
            picked = request.sampler.pick(np.ctypeslib.as_array(pointer, shape=(self._vocabulary.size,)))
        except SlmError as error:
            self._end(slot, "error")
            return Piece(request.request, "", error=error)
        token = picked.token
        if request.pending is None:
            request.first_token = time.perf_counter()
        request.pending = token
        if token in self._vocabulary.eog:
            return Piece(request.request, request.text.flush(), self._end(slot, "stop"))
        request.generated += 1
        scores = (picked.score,) if picked.score else ()
        text = request.text.feed(self._vocabulary.piece(token))
        if request.text.stopped:
            return Piece(request.request, text, self._end(slot, "stop"), scores)
        if picked.end or request.generated >= request.options.max_tokens:
            text += request.text.flush()
            return Piece(request.request, text, self._end(slot, "stop" if picked.end else "length"), scores)
        return Piece(request.request, text, scores=scores)

    def _end(self, slot: Slot, reason: str) -> dict[str, Any]:
        request = slot.running
        assert request is not None
        now = time.perf_counter()
        first = request.first_token or now
        slot.running, slot.reserved = None, 0
        self._touch(slot)
        return {
            "reason": reason,
            "prompt_tokens": len(request.prompt),
            "completion_tokens": request.generated,
            "prefill_s": first - request.started,
            "decode_s": now - first,
            "cached_tokens": request.cached,
        }

    def _clear(self, slot: Slot) -> None:
        self._lib.llama_memory_seq_rm(self._memory, slot.index, -1, -1)
        slot.tokens = []

    def _touch(self, slot: Slot) -> None:
        self._clock += 1
        slot.last_used = self._clock
