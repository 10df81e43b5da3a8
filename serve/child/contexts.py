"""One llama.cpp context, so many KV cells for all its requests, and its decode step over the sequences of one adapter.

Several adapters may live in a context: each sequence belongs to one set of adapters, a step computes those of one
set, and cells are shared within a set only. Runs in the engine's child process, on one thread at a time. It knows
nothing of how answers are written, of adapters' names, of other contexts or of who asked.
"""

from __future__ import annotations

import ctypes
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve.child import schedule
from serve.child.adapters import Handles, contents_of
from serve.child.cells.store import PrefixStore
from serve.child.choice.lookup import Lookup
from serve.child.choice.sampling import Vocabulary
from serve.child.messages import Answer, Failed, Finished, Piece, RunningRow
from serve.child.slots import Request, Running, Slot, Slots
from serve.child.spelling.text import TextStream
from slm.errors import EngineError, SlmError
from slm.joints import TokenScore
from slm.native.llama import ContextParams, fast_attention, library, open_context, set_adapters

_ABORTED = 2  # llama_decode: the abort callback said so


@dataclass(frozen=True)
class Gain:
    """What one request gained by a token, and its end if this was the last: the figures, or an error."""

    request: int
    text: str
    score: TokenScore | None = None
    end: Finished | Failed | None = None

    def answers(self) -> Iterator[Answer]:
        """What there is to tell of it."""
        if self.text or self.score:
            yield Piece(self.text, self.score)
        if self.end:
            yield self.end


@dataclass
class Clock:
    """Where the time of steps goes, in seconds: inside llama_decode, and in all. Drafted tokens, and those right."""

    steps: int = 0
    decode_s: float = 0.0
    step_s: float = 0.0
    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True)
class _Feed:
    """What one sequence decodes in a step: tokens, and the batch's row of the first."""

    slot: Slot
    running: Running
    tokens: Sequence[int]
    row: int

    @property
    def reads(self) -> bool:
        """Whether the tokens are the prompt's. Until the step is over."""
        return self.running.pending is None


class LaneContext:
    """A context of `cells` KV cells for up to `2 * parallel` requests at once, of any adapters.

    draft: how many tokens of what may follow an answer are tried in one step at most.
    """

    def __init__(
        self, model: Any, vocabulary: Vocabulary, store: PrefixStore, *, cells: int, parallel: int, threads: int,
        draft: int,
    ) -> None:  # fmt: skip
        self._lib = library()
        self._vocabulary = vocabulary
        self._draft = draft
        self.clock = Clock()
        self.prefill_rate = 0.0
        self.expected_s = 0.0
        self._active: str | None = ""  # the adapters llama.cpp has set; None: unknown
        self._threads = threads
        can_drop = not (self._lib.llama_model_is_recurrent(model) or self._lib.llama_model_is_hybrid(model))
        count = 2 * parallel
        with ExitStack() as stack:
            n_batch = schedule.LARGEST_CHUNK + schedule.REMAINDER + count + schedule.MOST_DRAFTED
            params = ContextParams(cells, n_batch, n_seq_max=count, n_threads=threads, flash_attention=fast_attention())
            self._context = open_context(stack, model, params)
            self.slots = Slots(self._context, store, count=count, cells=cells, can_drop=can_drop)
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
    def reading(self) -> int:
        """How many of the requests are still reading their prompts."""
        return sum(slot.running is not None and slot.running.pending is None for slot in self.slots.all)

    def running(self) -> Counter[str]:
        """How many requests run for each set of adapters."""
        return Counter(slot.key for slot in self.slots.busy)

    def rows(self) -> list[RunningRow]:
        """The requests that run, with what of them is done; from any thread."""
        pairs = ((slot, slot.running) for slot in self.slots.all)
        return [
            RunningRow(
                running.request.id, tuple(contents_of(slot.key)), cells=len(slot.tokens),
                prompt_tokens=len(running.request.prompt), cached_tokens=running.cached, generated=running.generated,
                max_tokens=running.request.options.max_tokens,
            )
            for slot, running in pairs if running
        ]  # fmt: skip

    def interrupt(self) -> None:
        """End the step under way as soon as its current node is computed; from any thread."""
        self._stop[0] = b"x"

    def uninterrupt(self) -> None:
        """Let the next step run."""
        self._stop[0] = b"\0"

    # --- requests ------------------------------------------------------------------------------------------------

    def admit(self, request: Request) -> bool:
        """Give the request a slot and the longest cached prefix; False when it has to wait for another to end."""
        slot = self.slots.take(request)
        if slot is None:
            return False
        text, cached = TextStream(request.options.stop), len(slot.tokens)
        slot.running = Running(request, text, cached, arrived=slot.last_used, started=time.perf_counter())
        return True

    def cancel(self, request: int) -> Finished | None:
        """End a running request between two steps; its cells stay as cache. None if it does not run here."""
        for slot in self.slots.busy:
            if slot.running and slot.running.request.id == request:
                return self._end(slot, slot.running, "cancelled")
        return None

    def forget(self, key: str) -> None:
        """Drop the cells of adapters that are about to be freed; none of their requests may be running."""
        for slot in self.slots.all:
            if slot.key == key:
                self.slots.clear(slot)
        if self._active == key:
            set_adapters(self._context, [])
            self._active = ""

    # --- one step ------------------------------------------------------------------------------------------------

    def step(self, key: str, adapters: Handles, *, threads: int, calm: bool = False) -> list[Gain]:
        """Decode one batch of the sequences of `key` and return what each gained; nothing when interrupted.

        calm: nobody waits for a next token, so the step may read more of the prompts. Raises EngineError when
        llama.cpp refuses the batch.
        """
        self.slots.settle()
        begun = time.perf_counter()
        feeds = self._plan(key, schedule.CALM_STEP_S if calm else schedule.STEP_S)
        count = self._fill(feeds)
        self._use(key, adapters, threads)
        self.expected_s = count / self.prefill_rate if self.prefill_rate else 1.0
        before = time.perf_counter()
        code = self._lib.llama_decode(self._context, self._batch)
        after = time.perf_counter()
        if code == _ABORTED:
            for feed in feeds:
                self.slots.cut(feed.slot)
            return []
        if code:
            raise EngineError(f"llama.cpp could not decode a batch of {count} tokens (code {code})")
        if sum(len(feed.tokens) for feed in feeds if feed.reads) >= schedule.SMALLEST_CHUNK // 2:
            rate = count / (after - before)
            self.prefill_rate = (self.prefill_rate + rate) / 2 if self.prefill_rate else rate
        gains = [gain for feed in feeds for gain in self._gained(feed)]
        self.clock.steps += 1
        self.clock.decode_s += after - before
        self.clock.step_s += time.perf_counter() - begun
        return gains

    def fail(self, key: str) -> list[int]:
        """After a refused batch: drop every running request of `key` and its cells; returns the requests dropped."""
        dropped = []
        for slot in self.slots.busy:
            if slot.running and slot.key == key:
                dropped.append(slot.running.request.id)
                self._end(slot, slot.running, "error")
                self.slots.clear(slot)
        return dropped

    def _plan(self, key: str, seconds: float) -> list[_Feed]:
        """What each sequence of a step of about so many seconds decodes: some of its prompt, or the token chosen last
        and a draft."""
        mine = {slot.index: (slot, slot.running) for slot in self.slots.busy if slot.running and slot.key == key}
        plan = schedule.plan_step(
            [self._work(*one) for one in mine.values()], chunk=schedule.chunk_of(self.prefill_rate, seconds)
        )
        feeds, row = [], 0
        for index, (slot, running) in mine.items():
            if index not in plan:
                continue
            at, tokens = len(slot.tokens), running.request.prompt
            if running.pending is None:
                tokens = tokens[at : at + plan[index]]
            else:
                tokens = [running.pending, *(running.lookup.draft(plan[index] - 1) if running.lookup else ())]
            feeds.append(_Feed(slot, running, tokens, row))
            row += len(tokens)
        return feeds

    def _work(self, slot: Slot, running: Running) -> schedule.Work:
        if running.pending is None:
            return schedule.Work(slot.index, len(running.request.prompt) - len(slot.tokens), running.arrived)
        most = min(self._draft, running.request.options.max_tokens - running.generated - 1)
        chances = running.lookup.chances(most) if running.lookup else ()
        return schedule.Work(slot.index, 0, running.arrived, chances)

    def _fill(self, feeds: Sequence[_Feed]) -> int:
        """Write the batch; returns its number of tokens."""
        row = 0
        for feed in feeds:
            at, end = len(feed.slot.tokens), len(feed.running.request.prompt)
            for position, token in enumerate(feed.tokens, at):
                self._put(row, token, position, feed.slot.index, not feed.reads or position == end - 1)
                row += 1
        self._batch.n_tokens = row
        return row

    def _use(self, key: str, adapters: Handles, threads: int) -> None:
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

    def _gained(self, feed: _Feed) -> Iterator[Gain]:
        """The gains of one sequence after its tokens were decoded: one, and one for every drafted token that was
        right. The others' cells are dropped."""
        slot, running = feed.slot, feed.running
        base = len(slot.tokens)
        slot.tokens.extend(feed.tokens)
        if feed.reads:
            if len(slot.tokens) == len(running.request.prompt):
                yield self._advance(slot, running, feed.row + len(feed.tokens) - 1)
            return
        known = 0
        for known, drafted in enumerate([*feed.tokens[1:], None], 1):
            gain = self._advance(slot, running, feed.row + known - 1)
            yield gain
            if gain.end or running.pending != drafted:
                break
        self.clock.drafted += len(feed.tokens) - 1
        self.clock.accepted += known - 1
        if known < len(feed.tokens):
            del slot.tokens[base + known :]
            self.slots.cut(slot)

    def _advance(self, slot: Slot, running: Running, row: int) -> Gain:
        address = self._lib.llama_get_logits_ith(self._context, row)
        try:
            picked = running.request.sampler.pick(np.ctypeslib.as_array(address, shape=(self._vocabulary.size,)))
        except SlmError as error:
            self._end(slot, running, "error")
            return Gain(running.request.id, "", end=Failed(error))
        if running.pending is None:
            running.first_token = time.perf_counter()
        token, id = picked.token, running.request.id
        running.pending = token
        if self._draft and self.slots.can_drop:
            running.lookup = running.lookup or Lookup(running.request.prompt)
            running.lookup.append(token)
        if token in self._vocabulary.eog or token in running.request.options.stop_tokens:
            return Gain(id, running.text.flush(), None, self._end(slot, running, "stop"))
        running.generated += 1
        may_stop = running.generated > running.request.options.min_tokens
        text = running.text.feed(self._vocabulary.piece(token), may_stop=may_stop)
        if running.text.stopped:
            return Gain(id, text, picked.score, self._end(slot, running, "stop"))
        if picked.end or running.generated >= running.request.options.max_tokens:
            text += running.text.flush()
            return Gain(id, text, picked.score, self._end(slot, running, "stop" if picked.end else "length"))
        return Gain(id, text, picked.score)

    def _end(self, slot: Slot, running: Running, reason: str) -> Finished:
        now = time.perf_counter()
        first = running.first_token or now
        self.slots.use(slot)
        slot.running, slot.reserved = None, 0
        return Finished(
            reason,
            prompt_tokens=len(running.request.prompt),
            completion_tokens=running.generated,
            prefill_s=first - running.started,
            decode_s=now - first,
            cached_tokens=running.cached,
        )
