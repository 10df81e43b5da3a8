"""The threads that compute: one for each context, the cores divided among those that have work.

It joins the policy (`serve.child.schedule`) to the contexts (`serve.child.contexts`). It knows adapters by the hash of
their content, and nothing of names, paths, languages, the protocol or HTTP.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from serve.child import schedule
from serve.child.cells.store import PrefixStore
from serve.child.contexts import Adapters, HotContext, Piece
from serve.child.pool import Team
from serve.child.slots import Request
from slm.errors import EngineError, SlmError

# A step that will last longer than this is interrupted when one of its requests is cancelled.
_SHORT_STEP_S = 0.05
# An adapter's share of the cores is kept for its next requests for so long after one waited or ended.
_SHARE_S = 0.1


class Sink(Protocol):
    """Where answers go; called on any thread."""

    def begun(self, request: int) -> None: ...

    def piece(self, piece: Piece) -> None: ...

    def error(self, request: int, error: SlmError) -> None: ...

    def flush(self) -> None: ...


@dataclass
class _Adapter:
    handle: Any
    stack: ExitStack
    retired: bool = False


@dataclass
class _Lane:
    """One context with its thread. `running` is its load as of its last step, `reading` how many of them read their
    prompts; `full`: it refused a request since."""

    index: int
    rotation: schedule.Rotation = field(default_factory=schedule.Rotation)
    team: Team = field(default_factory=Team)
    context: HotContext | None = None
    running: Counter[str] = field(default_factory=Counter)
    cancelled: list[int] = field(default_factory=list)
    full: bool = False
    stepping: bool = False
    reading: int = 0


def key_of(adapters: Sequence[tuple[str, float]]) -> str:
    """The identity of a set of (content hash, scale): the same set gives the same key, whatever the order."""
    return "+".join(sorted(f"{content}@{scale:g}" for content, scale in adapters))


def contents_of(key: str) -> list[tuple[str, float]]:
    """The (content hash, scale) pairs of a key."""
    return [(part.rpartition("@")[0], float(part.rpartition("@")[2])) for part in key.split("+") if part]


class Lanes:
    """Requests in, pieces out. Every method may be called from any thread.

    open_context(threads) makes a context; called when a lane gets its first request. store: where all contexts keep
    what leaves them. lanes: how many contexts there may be.
    """

    def __init__(
        self,
        open_context: Callable[[int], HotContext],
        sink: Sink,
        store: PrefixStore,
        *,
        lanes: int,
        cores: int,
        parallel: int,
    ) -> None:
        self._open_context, self._sink, self._store, self._parallel = open_context, sink, store, parallel
        self._cores = schedule.Cores(cores)
        self._changed = threading.Condition()
        self._exclusive = 0
        self._guests = 0
        self._waiting: list[Request] = []
        self._wanted: dict[str, float] = {}  # when a request of each set of adapters last waited or ended
        self._adapters: dict[str, _Adapter] = {}
        self._lanes = [_Lane(index) for index in range(lanes)]
        self._lanes[0].context = open_context(cores)
        for lane in self._lanes:
            threading.Thread(target=self._run, args=(lane,), daemon=True, name=f"lane-{lane.index}").start()

    # --- requests -------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Queue a request. Raises EngineError when an adapter of its key is not loaded."""
        with self._changed:
            for content, _ in contents_of(request.key):
                if content not in self._adapters:
                    raise EngineError("the adapter of this request is not loaded")
            self._waiting.append(request)
            self._changed.notify_all()

    def cancel(self, id: int) -> None:
        """End a request wherever it is; a long step that computes it is interrupted."""
        with self._changed:
            self._waiting = [request for request in self._waiting if request.id != id]
            for lane in self._lanes:
                context = lane.context
                if context is None or not any(s.running and s.running.request.id == id for s in context.slots.busy):
                    continue
                lane.cancelled.append(id)
                if lane.stepping and context.expected_s > _SHORT_STEP_S:
                    context.interrupt()
            self._changed.notify_all()

    # --- adapters -------------------------------------------------------------------------------------------------

    def load(self, content: str, open_adapter: Callable[[ExitStack], Any]) -> None:
        """Load an adapter under the hash of its content, unless it is there; no context computes meanwhile."""
        with self._alone():
            if known := self._adapters.get(content):
                known.retired = False
                return
            with ExitStack() as stack:
                handle = open_adapter(stack)
                self._adapters[content] = _Adapter(handle, stack.pop_all())

    def unload(self, content: str) -> None:
        """Forget an adapter as soon as no request uses it any more."""
        with self._changed:
            if content in self._adapters:
                self._adapters[content].retired = True
        self.sweep()

    def sweep(self) -> None:
        """Free retired adapters that no request uses."""
        with self._changed:
            if not self._unused():
                return
        with self._alone():
            for content in self._unused():
                for lane in self._lanes:
                    for key in {slot.key for slot in lane.context.slots.all} if lane.context else ():
                        if lane.context and content in dict(contents_of(key)):
                            lane.context.forget(key)
                self._adapters.pop(content).stack.close()

    def _unused(self) -> list[str]:
        keys = {request.key for request in self._waiting} | {key for lane in self._lanes for key in lane.running}
        used = {content for key in keys for content, _ in contents_of(key)}
        return [content for content, adapter in self._adapters.items() if adapter.retired and content not in used]

    # --- others who compute ---------------------------------------------------------------------------------------

    @contextmanager
    def borrowed_cores(self) -> Iterator[int]:
        """Cores for something else than a lane's step (an embedding), as one contender among the lanes."""
        with self._changed:
            self._guests += 1
            guest = -self._guests
            self._cores.want(guest)
            while not (cores := 0 if self._exclusive else self._cores.grant(guest)):
                self._changed.wait()
        try:
            yield cores
        finally:
            with self._changed:
                self._cores.release(guest)
                self._changed.notify_all()

    def stats(self) -> dict[str, Any]:
        """Running and waiting requests, contexts, adapters (by content), steps, where their time
        went (seconds), drafted tokens and how many of them were right."""
        with self._changed:
            contexts = [lane.context for lane in self._lanes if lane.context]
            return {
                "parallel": self._parallel,
                "running": sum(sum(lane.running.values()) for lane in self._lanes),
                "waiting": len(self._waiting),
                "contexts": len(contexts),
                "adapters": sorted(self._adapters),
                "steps": sum(context.clock.steps for context in contexts),
                "decode_s": sum(context.clock.decode_s for context in contexts),
                "step_s": sum(context.clock.step_s for context in contexts),
                "drafted": sum(context.clock.drafted for context in contexts),
                "accepted": sum(context.clock.accepted for context in contexts),
                "slots": [
                    {
                        "context": lane.index,
                        "sequence": slot.index,
                        "lora": contents_of(slot.key),
                        "cells": len(slot.tokens),
                        "request": slot.running.request.id if slot.running else None,
                        "prompt_tokens": len(slot.running.request.prompt) if slot.running else 0,
                        "cached_tokens": slot.running.cached if slot.running else 0,
                        "generated": slot.running.generated if slot.running else 0,
                        "max_tokens": slot.running.request.options.max_tokens if slot.running else 0,
                    }
                    for lane in self._lanes
                    if lane.context
                    for slot in lane.context.slots.all
                ],
            }

    def finish(self) -> None:
        """Stop all lanes after their step and keep what is worth keeping; nothing can be asked afterwards."""
        with self._changed:
            self._exclusive += 1
            self._changed.wait_for(lambda: not self._cores.busy, timeout=1.0)
            for lane in self._lanes:
                if lane.context and not lane.stepping:
                    lane.context.slots.keep_all()
            self._store.flush()

    # --- the lanes' threads ---------------------------------------------------------------------------------------

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """With the lock held and no step under way: llama.cpp's set of adapters is not locked against decoding."""
        with self._changed:
            self._exclusive += 1
            try:
                self._changed.wait_for(lambda: not self._cores.busy)
                yield
            finally:
                self._exclusive -= 1
                self._changed.notify_all()

    def _run(self, lane: _Lane) -> None:
        try:
            self._serve(lane)
        except BaseException:  # a lane that is gone would leave its requests without an answer: the process ends
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(70)

    def _serve(self, lane: _Lane) -> None:
        while True:
            with self._changed:
                while (turn := self._next(lane)) is None:
                    self._sink.flush()
                    self._changed.wait(_SHARE_S if self._waiting else None)
                key, cores, adapters, context = turn
                lane.stepping = True
                context.uninterrupt()
            error: EngineError | None = None
            pieces: list[Piece] = []
            try:
                pieces = lane.team.run(partial(context.step, key, adapters, threads=cores), cores=cores)
            except EngineError as problem:
                error = problem
            for piece in pieces:
                self._sink.piece(piece)
            with self._changed:
                if error is not None:
                    for request in context.fail(key):
                        self._sink.error(request, error)
                lane.stepping = False
                self._cores.release(lane.index)
                if error is not None or any(piece.finish or piece.error for piece in pieces):
                    self._ended(lane)
                self._changed.notify_all()
            self._sink.flush()

    def _next(self, lane: _Lane) -> tuple[str, int, Adapters, HotContext] | None:
        """The lane's next step: adapters' key, cores, adapters and context; None: it has to wait."""
        for id in lane.cancelled:
            if lane.context and (finish := lane.context.cancel(id)):
                self._sink.piece(Piece(id, "", finish=finish))
                self._ended(lane)
                self._changed.notify_all()  # who waits for this place may belong to another lane
        lane.cancelled.clear()
        if self._exclusive:
            return None
        self._admit(lane)
        context = lane.context
        if context is None or not lane.running:
            if self._cores.drop(lane.index):
                self._changed.notify_all()
            lane.team.rest()
            return None
        lane.reading = context.reading
        others = sum(one.reading for one in self._lanes if one is not lane and one.running)
        self._cores.want(lane.index, whole=schedule.reads_alone(lane.running.total(), lane.reading, others))
        cores = self._cores.grant(lane.index)
        if not cores:
            lane.team.rest()
            return None
        key = lane.rotation.next(lane.running.keys())
        assert key is not None
        adapters = [(self._adapters[content].handle, scale) for content, scale in contents_of(key)]
        return key, cores, adapters, context

    def _admit(self, lane: _Lane) -> None:
        """Take the waiting requests that belong here, oldest first; one that must wait holds back its adapter's."""
        held: set[str] = set()
        still: list[Request] = []
        now = time.monotonic()
        self._wanted = {key: when for key, when in self._wanted.items() if when > now - _SHARE_S}
        self._wanted.update((request.key, now) for request in self._waiting)
        for request in self._waiting:
            if request.key in held or not self._take(lane, request):
                held.add(request.key)
                still.append(request)
        if len(still) < len(self._waiting):
            self._waiting = still
            self._changed.notify_all()

    def _take(self, lane: _Lane, request: Request) -> bool:
        loads = [
            schedule.LaneLoad(
                one.running,
                room=not one.full,
                opened=one.context is not None,
                shared=one.context.slots.shared(request) if one.context else 0,
            )
            for one in self._lanes
        ]
        home = schedule.home_of(
            request.key, loads, parallel=self._parallel, cores=self._cores.total, wanted=self._wanted.keys()
        )
        if home != lane.index or (lane.context and lane.context.slots.awaits(request)):
            return False
        try:
            if lane.context is None:
                lane.context = self._open_context(self._cores.total)
            if lane.context.admit(request):
                lane.running[request.key] += 1
                self._sink.begun(request.id)
                return True
        except SlmError as error:
            self._sink.error(request.id, error)
            return True
        lane.full = True
        self._changed.notify_all()  # another lane may have room
        return False

    def _ended(self, lane: _Lane) -> None:
        """A request of this lane is over: others may find room, adapters may have become unused."""
        assert lane.context is not None
        self._wanted.update(dict.fromkeys(lane.running, time.monotonic()))
        lane.running = lane.context.running()
        lane.full = False
        if self._unused():
            threading.Thread(target=self.sweep, daemon=True).start()
