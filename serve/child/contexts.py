"""One llama.cpp context: its sequences, its KV cells, and one decode step over the sequences of one adapter.

Several adapters may live in a context: each sequence belongs to one set of adapters, a step computes those of one
set, and cells are shared within a set only. Runs in the engine's child process, on one thread at a time. It knows
nothing of the protocol, of adapters' names, of other contexts or of who asked.
"""

from __future__ import annotations

import ctypes
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from serve.child import batch, prefix
from serve.child.prefix_store import PrefixStore
from serve.child.sampling import Sampler, Vocabulary
from serve.text import TextStream
from slm.errors import EngineError, SlmError
from slm.joints import SamplingOptions, TokenScore
from slm.llama import library, open_context, set_adapters

Adapters = list[tuple[Any, float]]
_ABORTED = 2  # llama_decode: the abort callback said so


@dataclass(frozen=True)
class Request:
    """What one caller wants: the prompt's token ids under the adapters `key`, and how to choose the answer's.

    The sampler is made with the request, not when there is room for it: a grammar takes its time.
    """

    id: int
    key: str
    prompt: list[int]
    options: SamplingOptions
    sampler: Sampler


@dataclass
class Running:
    """A request inside a slot. `pending` is the token that was chosen and not yet decoded."""

    request: Request
    text: TextStream
    cached: int
    arrived: int
    started: float
    first_token: float = 0.0
    pending: int | None = None
    generated: int = 0


@dataclass
class Slot:
    """One sequence id: the tokens whose KV cells it holds, and the request that runs in it (None: kept as cache)."""

    index: int
    key: str = ""
    tokens: list[int] = field(default_factory=list)
    running: Running | None = None
    reserved: int = 0
    last_used: int = 0


@dataclass(frozen=True)
class Piece:
    """What one request gained in a step, and its end if this was the last: figures with a `reason`, or an error."""

    request: int
    text: str
    score: TokenScore | None = None
    finish: dict[str, Any] | None = None
    error: SlmError | None = None


@dataclass
class Clock:
    """Where the time of steps goes, in seconds: inside llama_decode, and in all."""

    steps: int = 0
    decode_s: float = 0.0
    step_s: float = 0.0


class HotContext:
    """A context for up to `2 * parallel` requests at once, of any adapters."""

    def __init__(
        self, model: Any, vocabulary: Vocabulary, store: PrefixStore, *, cells: int, parallel: int, threads: int
    ) -> None:
        self._lib = library()
        self._vocabulary = vocabulary
        self._store = store
        self.cells = cells
        self.clock = Clock()
        self.prefill_rate = 0.0
        self.expected_s = 0.0
        self._uses = 0
        self._active: str | None = ""  # the adapters llama.cpp has set; None: unknown
        self._threads = threads
        self.slots = [Slot(index) for index in range(2 * parallel)]
        self._can_copy = not (self._lib.llama_model_is_recurrent(model) or self._lib.llama_model_is_hybrid(model))
        with ExitStack() as stack:
            n_batch = batch.LARGEST_CHUNK + batch.REMAINDER + len(self.slots)
            self._context = open_context(
                stack, model, n_ctx=cells, n_batch=n_batch, n_seq_max=len(self.slots), n_threads=threads,
                flash_attention=False,
            )  # fmt: skip
            self._memory = self._lib.llama_get_memory(self._context)
            self._batch = self._lib.llama_batch_init(n_batch, 0, 1)
            stack.callback(self._lib.llama_batch_free, self._batch)
            # llama.cpp asks the callback once for every node of the graph, so it has to be C: strlen of a buffer is
            # zero until somebody writes a character into it.
            self._stop = ctypes.create_string_buffer(2)
            strlen = ctypes.cast(ctypes.CDLL(None).strlen, self._lib.ggml_abort_callback)
            self._lib.llama_set_abort_callback(self._context, strlen, ctypes.cast(self._stop, ctypes.c_void_p))
            self._keep = strlen
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Free the context; running requests must have been ended before."""
        self._stack.close()

    @property
    def busy(self) -> list[Slot]:
        return [slot for slot in self.slots if slot.running]

    @property
    def reading(self) -> int:
        """How many of the requests are still reading their prompts."""
        return sum(slot.running is not None and slot.running.pending is None for slot in self.slots)

    def running(self) -> Counter[str]:
        """How many requests run for each set of adapters."""
        return Counter(slot.key for slot in self.busy)

    def interrupt(self) -> None:
        """End the step under way as soon as its current node is computed; from any thread."""
        self._stop[0] = b"x"

    def uninterrupt(self) -> None:
        """Let the next step run."""
        self._stop[0] = b"\0"

    def shared(self, request: Request) -> int:
        """How many of the prompt's leading tokens this context holds under the same adapters; from any thread."""
        return max(
            (prefix.common_prefix(slot.tokens, request.prompt) for slot in self.slots if slot.key == request.key),
            default=0,
        )

    def awaits(self, request: Request) -> bool:
        """Whether the request is answered sooner if a prompt that is being read here is let go ahead."""
        running = (slot.running for slot in self.slots if slot.running and slot.key == request.key)
        reading = (one.request.prompt for one in running if one.pending is None)
        known = max(self.shared(request), self._store.longest(request.key, request.prompt))
        return self._can_copy and prefix.worth_waiting(request.prompt, known, reading, gain=batch.SMALLEST_CHUNK)

    # --- requests ------------------------------------------------------------------------------------------------

    def admit(self, request: Request) -> bool:
        """Give the request a slot and the longest cached prefix; False when it has to wait for another to end."""
        found = self._restore(request) or self._prepare(request)
        if found is None:
            return False
        slot, keep = found
        self._uses += 1
        slot.last_used = self._uses
        slot.key, slot.tokens = request.key, request.prompt[:keep]
        slot.reserved = len(request.prompt) + request.options.max_tokens
        slot.running = Running(
            request, TextStream(request.options.stop), keep, arrived=self._uses, started=time.perf_counter()
        )
        return True

    def cancel(self, request: int) -> dict[str, Any] | None:
        """End a running request between two steps; its cells stay as cache. None if it does not run here."""
        for slot in self.busy:
            if slot.running and slot.running.request.id == request:
                return self._end(slot, "cancelled")
        return None

    def forget(self, key: str) -> None:
        """Drop the cells of adapters that are about to be freed; none of their requests may be running."""
        for slot in self.slots:
            if slot.key == key:
                self._clear(slot)
        if self._active == key:
            set_adapters(self._context, [])
            self._active = ""

    def keep_all(self) -> None:
        """Put every sequence that is worth it into the store; before the process ends."""
        for slot in self.slots:
            self._retire(slot)

    # --- one step ------------------------------------------------------------------------------------------------

    def step(self, key: str, adapters: Adapters, *, threads: int) -> list[Piece]:
        """Decode one batch of the sequences of `key` and return what each gained; nothing when interrupted.

        Raises EngineError when llama.cpp refuses the batch.
        """
        begun = time.perf_counter()
        shares = self._plan(key)
        count = 0
        outputs: list[tuple[Slot, Running, int]] = []
        fed: list[tuple[Slot, Sequence[int]]] = []
        for slot, running, share in shares:
            at = len(slot.tokens)
            tokens: Sequence[int]
            if running.pending is not None:
                tokens, last = [running.pending], True
            else:
                tokens = running.request.prompt[at : at + share]
                last = at + share == len(running.request.prompt)
            for offset, token in enumerate(tokens):
                self._put(count, token, at + offset, slot.index, last and offset == len(tokens) - 1)
                count += 1
            fed.append((slot, tokens))
            if last:
                outputs.append((slot, running, count - 1))
        self._batch.n_tokens = count
        self._use(key, adapters, threads)
        self.expected_s = count / self.prefill_rate if self.prefill_rate else 1.0
        before = time.perf_counter()
        code = self._lib.llama_decode(self._context, self._batch)
        after = time.perf_counter()
        if code == _ABORTED:
            for slot, _ in fed:
                self._lib.llama_memory_seq_rm(self._memory, slot.index, len(slot.tokens), -1)
            return []
        if code:
            raise EngineError(f"llama.cpp could not decode a batch of {count} tokens (code {code})")
        for slot, tokens in fed:
            slot.tokens.extend(tokens)
        if count - len(outputs) >= batch.SMALLEST_CHUNK // 2:
            rate = count / (after - before)
            self.prefill_rate = (self.prefill_rate + rate) / 2 if self.prefill_rate else rate
        pieces = [self._advance(slot, running, row) for slot, running, row in outputs]
        self.clock.steps += 1
        self.clock.decode_s += after - before
        self.clock.step_s += time.perf_counter() - begun
        return pieces

    def fail(self, key: str) -> list[int]:
        """After a refused batch: drop every running request of `key` and its cells; returns the requests dropped."""
        dropped = []
        for slot in self.slots:
            if slot.running and slot.key == key:
                dropped.append(slot.running.request.id)
                self._end(slot, "error")
                self._clear(slot)
        return dropped

    def _plan(self, key: str) -> list[tuple[Slot, Running, int]]:
        mine = [(slot, slot.running) for slot in self.slots if slot.running and slot.key == key]
        work = [
            batch.Work(s.index, 0 if r.pending is not None else len(r.request.prompt) - len(s.tokens), r.arrived)
            for s, r in mine
        ]
        plan = batch.plan_step(work, chunk=batch.chunk_of(self.prefill_rate))
        return [(slot, running, plan[slot.index]) for slot, running in mine if slot.index in plan]

    def _use(self, key: str, adapters: Adapters, threads: int) -> None:
        if key != self._active:
            self._active = None  # should llama.cpp refuse, nothing is known of the context's state
            set_adapters(self._context, adapters)
            self._active = key
        if threads != self._threads:
            self._lib.llama_set_n_threads(self._context, threads, threads)
            self._threads = threads

    def _put(self, row: int, token: int, position: int, sequence: int, logits: bool) -> None:
        self._batch.token[row] = token
        self._batch.pos[row] = position
        self._batch.n_seq_id[row] = 1
        self._batch.seq_id[row][0] = sequence
        self._batch.logits[row] = logits

    def _advance(self, slot: Slot, running: Running, row: int) -> Piece:
        address = self._lib.llama_get_logits_ith(self._context, row)
        try:
            picked = running.request.sampler.pick(np.ctypeslib.as_array(address, shape=(self._vocabulary.size,)))
        except SlmError as error:
            self._end(slot, "error")
            return Piece(running.request.id, "", error=error)
        if running.pending is None:
            running.first_token = time.perf_counter()
        token, id = picked.token, running.request.id
        running.pending = token
        if token in self._vocabulary.eog:
            return Piece(id, running.text.flush(), None, self._end(slot, "stop"))
        running.generated += 1
        text = running.text.feed(self._vocabulary.piece(token))
        if running.text.stopped:
            return Piece(id, text, picked.score, self._end(slot, "stop"))
        if picked.end or running.generated >= running.request.options.max_tokens:
            text += running.text.flush()
            return Piece(id, text, picked.score, self._end(slot, "stop" if picked.end else "length"))
        return Piece(id, text, picked.score)

    def _end(self, slot: Slot, reason: str) -> dict[str, Any]:
        running = slot.running
        assert running is not None
        now = time.perf_counter()
        first = running.first_token or now
        self._uses += 1
        slot.running, slot.reserved, slot.last_used = None, 0, self._uses
        return {
            "reason": reason,
            "prompt_tokens": len(running.request.prompt),
            "completion_tokens": running.generated,
            "prefill_s": first - running.started,
            "decode_s": now - first,
            "cached_tokens": running.cached,
        }

    # --- cells ---------------------------------------------------------------------------------------------------

    def _place(self, request: Request, *, at_least: int = 0) -> prefix.Placement | None:
        reserve = max(len(request.prompt) + request.options.max_tokens, at_least)
        views = [
            prefix.SlotView(s.index, s.key, s.tokens, s.running is not None, s.reserved, s.last_used)
            for s in self.slots
        ]
        return prefix.place(
            views, request.key, request.prompt, reserve=reserve, cells=self.cells, can_copy=self._can_copy
        )

    def _prepare(self, request: Request) -> tuple[Slot, int] | None:
        """A slot with the cells of the longest beginning that this context holds; None: no room now."""
        placement = self._place(request)
        if placement is None:
            return None
        slot, keep = self.slots[placement.slot], placement.keep
        if placement.source is not None:
            self._retire(slot)
            self._lib.llama_memory_seq_cp(self._memory, placement.source, slot.index, 0, keep)
            source = self.slots[placement.source]
            self._uses += 1
            source.last_used = self._uses  # a shared beginning stays while it is wanted
        elif keep == 0:
            self._retire(slot)
        elif not self._lib.llama_memory_seq_rm(self._memory, slot.index, keep, -1):
            self._clear(slot)  # a recurrent state cannot be cut back to a prefix
            keep = 0
        for index in placement.evict:  # only now: the source may be among them
            self._retire(self.slots[index])
        return slot, keep

    def _restore(self, request: Request) -> tuple[Slot, int] | None:
        """A slot with the cells of the store's best entry, where that holds clearly more than this context does."""
        if self._store.longest(request.key, request.prompt) < self.shared(request) + batch.SMALLEST_CHUNK:
            return None
        entry = self._store.take(request.key, request.prompt)
        placement = self._place(request, at_least=len(entry.tokens)) if entry else None
        if entry is None or placement is None:
            return None
        slot = self.slots[placement.slot]
        for index in placement.evict:
            self._retire(self.slots[index])
        self._retire(slot)
        state = np.frombuffer(entry.state, np.uint8)
        if not self._lib.llama_state_seq_set_data(self._context, _address(state), len(state), slot.index):
            self._clear(slot)
            return None
        keep = min(prefix.common_prefix(entry.tokens, request.prompt), len(request.prompt) - 1)
        if not self._lib.llama_memory_seq_rm(self._memory, slot.index, keep, -1):
            self._clear(slot)
            return None
        return slot, keep

    def _retire(self, slot: Slot) -> None:
        """Empty an idle slot; what is worth keeping goes to the store."""
        if slot.running is None and self._store.wants(slot.key, slot.tokens):
            size = self._lib.llama_state_seq_get_size(self._context, slot.index)
            state = np.empty(size, np.uint8)
            if self._lib.llama_state_seq_get_data(self._context, _address(state), size, slot.index) == size:
                self._store.put(slot.key, slot.tokens, state.data)
        self._clear(slot)

    def _clear(self, slot: Slot) -> None:
        self._lib.llama_memory_seq_rm(self._memory, slot.index, -1, -1)
        slot.key, slot.tokens = "", []


def _address(state: npt.NDArray[np.uint8]) -> Any:
    return state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
