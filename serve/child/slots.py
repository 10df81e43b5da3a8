"""The sequences of one llama.cpp context: the requests that run in them, and whose KV cells they hold.

A sequence that no request runs in is kept as cache until the next request comes; then it leaves for the store, since
every row of a step is multiplied with all cells in use. It knows nothing of batches, steps, threads or sampling.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from serve.child import schedule
from serve.child.cells import placement
from serve.child.cells.store import PrefixStore
from serve.child.choice.lookup import Lookup
from serve.child.choice.sampling import Sampler
from serve.child.spelling.text import TextStream
from slm.joints import SamplingOptions
from slm.native.llama import library


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
    """A request inside a slot. `pending` is the token that was chosen and not yet decoded, `lookup` where the tokens
    that may follow it are found."""

    request: Request
    text: TextStream
    cached: int
    arrived: int
    started: float
    first_token: float = 0.0
    pending: int | None = None
    generated: int = 0
    lookup: Lookup | None = None


@dataclass
class Slot:
    """One sequence id: the tokens whose KV cells it holds, and the request that runs in it (None: kept as cache)."""

    index: int
    key: str = ""
    tokens: list[int] = field(default_factory=list)
    running: Running | None = None
    reserved: int = 0
    last_used: int = 0


class Slots:
    """The slots of a context and their cells. `cells`: how many the context has, for all together.

    can_drop: whether a sequence can be cut back or copied in part; a recurrent state cannot.
    """

    def __init__(self, context: Any, store: PrefixStore, *, count: int, cells: int, can_drop: bool) -> None:
        self._lib = library()
        self._context, self._store = context, store
        self._memory = self._lib.llama_get_memory(context)
        self._cells, self.can_drop = cells, can_drop
        self.all = [Slot(index) for index in range(count)]
        self._uses = 0
        self._leaving: list[Slot] = []

    @property
    def busy(self) -> list[Slot]:
        return [slot for slot in self.all if slot.running]

    def shared(self, request: Request) -> int:
        """How many of the prompt's leading tokens the slots hold under the same adapters; from any thread."""
        return max(
            (placement.common_prefix(slot.tokens, request.prompt) for slot in self.all if slot.key == request.key),
            default=0,
        )

    def awaits(self, request: Request) -> bool:
        """Whether the request is answered sooner if a prompt that is being read here is let go ahead."""
        running = (slot.running for slot in self.all if slot.running and slot.key == request.key)
        reading = (one.request.prompt for one in running if one.pending is None)
        known = max(self.shared(request), self._store.longest(request.key, request.prompt))
        return self.can_drop and placement.worth_waiting(request.prompt, known, reading, gain=schedule.SMALLEST_CHUNK)

    def take(self, request: Request) -> Slot | None:
        """A slot for the request, holding the longest cached prefix; None when it has to wait for another to end."""
        found = self._restore(request) or self._prepare(request)
        if found is None:
            return None
        slot, keep = found
        self.use(slot)
        slot.key, slot.tokens = request.key, request.prompt[:keep]
        slot.reserved = len(request.prompt) + request.options.max_tokens
        return slot

    def use(self, slot: Slot) -> None:
        """The slot was used just now."""
        self._uses += 1
        slot.last_used = self._uses

    def settle(self) -> None:
        """Empty the idle slots that are in the way of those at work. Before each step; takes a while."""
        for slot in self._leaving:
            self._retire(slot)
        self._leaving.clear()

    def cut(self, slot: Slot) -> None:
        """Drop the cells of whatever was decoded beyond the slot's tokens."""
        self._lib.llama_memory_seq_rm(self._memory, slot.index, len(slot.tokens), -1)

    def clear(self, slot: Slot) -> None:
        """Drop the slot's cells."""
        self._lib.llama_memory_seq_rm(self._memory, slot.index, -1, -1)
        slot.key, slot.tokens = "", []

    def keep_all(self) -> None:
        """Put every sequence that is worth it into the store; before the process ends."""
        for slot in self.all:
            self._retire(slot)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _place(self, request: Request, *, at_least: int = 0) -> placement.Placement | None:
        reserve = max(len(request.prompt) + request.options.max_tokens, at_least)
        views = [
            placement.SlotView(s.index, s.key, s.tokens, s.running is not None, s.reserved, s.last_used)
            for s in self.all
        ]
        return placement.place(
            views, request.key, request.prompt, reserve=reserve, cells=self._cells, can_copy=self.can_drop
        )

    def _prepare(self, request: Request) -> tuple[Slot, int] | None:
        """A slot with the cells of the longest beginning that this context holds; None: no room now."""
        spot = self._place(request)
        if spot is None:
            return None
        slot, keep = self.all[spot.slot], spot.keep
        if spot.source is not None:
            self._retire(slot)
            self._lib.llama_memory_seq_cp(self._memory, spot.source, slot.index, 0, keep)
            self.use(self.all[spot.source])  # a shared beginning stays while it is wanted
        elif keep == 0:
            self._retire(slot)
        elif not self._lib.llama_memory_seq_rm(self._memory, slot.index, keep, -1):
            self.clear(slot)  # a recurrent state cannot be cut back to a prefix
            keep = 0
        self._leaving += [self.all[index] for index in spot.evict]
        return slot, keep

    def _restore(self, request: Request) -> tuple[Slot, int] | None:
        """A slot with the cells of the store's best entry, where that holds clearly more than this context does."""
        if self._store.longest(request.key, request.prompt) < self.shared(request) + schedule.SMALLEST_CHUNK:
            return None
        entry = self._store.take(request.key, request.prompt)
        spot = self._place(request, at_least=len(entry.tokens)) if entry else None
        if entry is None or spot is None:
            return None
        slot = self.all[spot.slot]
        for index in (*spot.evict, slot.index):  # now: their cells may be needed
            self._retire(self.all[index])
        state = np.frombuffer(entry.state, np.uint8)
        if not self._lib.llama_state_seq_set_data(self._context, _address(state), len(state), slot.index):
            self.clear(slot)
            return None
        keep = min(placement.common_prefix(entry.tokens, request.prompt), len(request.prompt) - 1)
        if not self._lib.llama_memory_seq_rm(self._memory, slot.index, keep, -1):
            self.clear(slot)
            return None
        return slot, keep

    def _retire(self, slot: Slot) -> None:
        """Empty an idle slot; what is worth keeping goes to the store."""
        if slot.running is not None:
            return
        if self._store.wants(slot.key, slot.tokens):
            size = self._lib.llama_state_seq_get_size(self._context, slot.index)
            state = np.empty(size, np.uint8)
            if self._lib.llama_state_seq_get_data(self._context, _address(state), size, slot.index) == size:
                self._store.put(slot.key, slot.tokens, state.data)
        self.clear(slot)


def _address(state: npt.NDArray[np.uint8]) -> Any:
    return state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
