"""The threads that compute: one for each context, the cores divided among those that have work.

It joins the policy (`serve.child.schedule`) to the contexts (`serve.child.contexts`). It knows adapters by the hash of
their content, and nothing of names, paths, languages, the protocol or HTTP.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from serve.child import schedule
from serve.child.adapters import Handles, OpenAdapters, contents_of
from serve.child.cells.store import PrefixStore
from serve.child.contexts import Gain, LaneContext
from serve.child.messages import Answer, Begun, Failed, Stats
from serve.child.pool import Team, vital
from serve.child.slots import Request
from slm.errors import EngineError, SlmError

# A step that will last longer than this is interrupted when one of its requests is cancelled.
_SHORT_STEP_S = 0.05
# An adapter's share of the cores is kept for its next requests for so long after one waited or ended.
_SHARE_S = 0.1


class AnswerSink(Protocol):
    """Where answers go; called on any thread."""

    def add(self, request: int, answer: Answer) -> None: ...

    def flush(self) -> None: ...


@dataclass
class _Lane:
    """One context with its thread. `running` is its load as of its last step, `reading` how many of them read their
    prompts; `full`: it refused a request since."""

    index: int
    rotation: schedule.Rotation = field(default_factory=schedule.Rotation)
    team: Team = field(default_factory=Team)
    context: LaneContext | None = None
    running: Counter[str] = field(default_factory=Counter)
    cancelled: list[int] = field(default_factory=list)
    full: bool = False
    stepping: bool = False
    reading: int = 0


class Lanes:
    """Requests in, pieces out. Every method may be called from any thread.

    open_context(threads) makes a context; called when a lane gets its first request. store: where all contexts keep
    what leaves them. lanes: how many contexts there may be.
    """

    def __init__(
        self,
        open_context: Callable[[int], LaneContext],
        sink: AnswerSink,
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
        self._adapters = OpenAdapters()
        self._lanes = [_Lane(index) for index in range(lanes)]
        self._lanes[0].context = open_context(cores)
        for lane in self._lanes:
            threading.Thread(target=self._run, args=(lane,), daemon=True, name=f"lane-{lane.index}").start()

    # --- requests -------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Queue a request. Raises EngineError when an adapter of its key is not loaded."""
        with self._changed:
            self._adapters.of(request.key)
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
            self._adapters.load(content, open_adapter)

    def unload(self, content: str) -> None:
        """Forget an adapter as soon as no request uses it any more."""
        with self._changed:
            self._adapters.retire(content)
        self.sweep()

    def sweep(self) -> None:
        """Free retired adapters that no request uses."""
        with self._changed:
            if not self._unused():
                return
        with self._alone():
            for content in self._unused():
                for context in self._contexts:
                    for key in {slot.key for slot in context.slots.all}:
                        if content in dict(contents_of(key)):
                            context.forget(key)
                self._adapters.free(content)

    def _unused(self) -> list[str]:
        running = {key for lane in self._lanes for key in lane.running}
        return self._adapters.unused({request.key for request in self._waiting} | running)

    @property
    def _contexts(self) -> list[LaneContext]:
        return [lane.context for lane in self._lanes if lane.context]

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

    def stats(self) -> Stats:
        """What is going on at this moment."""
        with self._changed:
            contexts = self._contexts
            clocks = [context.clock for context in contexts]
            return Stats(
                parallel=self._parallel,
                running=sum(lane.running.total() for lane in self._lanes),
                waiting=len(self._waiting),
                contexts=len(contexts),
                adapters=self._adapters.contents,
                steps=sum(clock.steps for clock in clocks),
                decode_s=sum(clock.decode_s for clock in clocks),
                step_s=sum(clock.step_s for clock in clocks),
                drafted=sum(clock.drafted for clock in clocks),
                accepted=sum(clock.accepted for clock in clocks),
                rows=tuple(row for context in contexts for row in context.rows()),
            )

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
        with vital():
            self._serve(lane)

    def _serve(self, lane: _Lane) -> None:
        while True:
            with self._changed:
                while (turn := self._next(lane)) is None:
                    self._sink.flush()
                    self._changed.wait(_SHARE_S if self._waiting else None)
                key, cores, adapters, context, calm = turn
                lane.stepping = True
                context.uninterrupt()
            error: EngineError | None = None
            gains: list[Gain] = []
            try:
                gains = lane.team.run(partial(context.step, key, adapters, threads=cores, calm=calm), cores=cores)
            except EngineError as problem:
                error = problem
            for gain in gains:
                for answer in gain.answers():
                    self._sink.add(gain.request, answer)
            with self._changed:
                if error is not None:
                    for request in context.fail(key):
                        self._sink.add(request, Failed(error))
                lane.stepping = False
                self._cores.release(lane.index)
                if error is not None or any(gain.end for gain in gains):
                    self._ended(lane, context)
                self._changed.notify_all()
            self._sink.flush()

    def _next(self, lane: _Lane) -> tuple[str, int, Handles, LaneContext, bool] | None:
        """The lane's next step: adapters' key, cores, adapters, context, and whether nobody waits for a next token;
        None: it has to wait."""
        for id in lane.cancelled:
            if lane.context and (finish := lane.context.cancel(id)):
                self._sink.add(id, finish)
                self._ended(lane, lane.context)
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
        calm = not self._waiting and all(one.reading >= one.running.total() for one in self._lanes)
        return key, cores, self._adapters.of(key), context, calm

    def _admit(self, lane: _Lane) -> None:
        """Take the waiting requests that belong here, oldest first; one that must wait holds back its adapter's.

        Those that belong to other lanes are passed over, counted as if they ran there already: of a burst each lane
        takes its share at once, not one for every step of the others.
        """
        held: set[str] = set()
        counted = [Counter(one.running) for one in self._lanes]
        still: list[Request] = []
        now = time.monotonic()
        self._wanted = {key: when for key, when in self._wanted.items() if when > now - _SHARE_S}
        self._wanted.update((request.key, now) for request in self._waiting)
        for request in self._waiting:
            home = None if request.key in held else self._home_of(request, counted)
            begun = home == lane.index and self._take(lane, request)
            if not begun:
                still.append(request)
            if home is not None and (begun or home != lane.index):
                counted[home][request.key] += 1
            else:
                held.add(request.key)
        if len(still) < len(self._waiting):
            self._waiting = still
            self._changed.notify_all()

    def _home_of(self, request: Request, running: Sequence[Counter[str]]) -> int | None:
        """The lane that a request belongs to when these run in each; None: it has to wait."""
        loads = [
            schedule.LaneLoad(
                mine,
                room=not one.full,
                opened=one.context is not None,
                shared=one.context.slots.shared(request) if one.context else 0,
            )
            for one, mine in zip(self._lanes, running, strict=True)
        ]
        return schedule.home_of(
            request.key, loads, parallel=self._parallel, cores=self._cores.total, wanted=self._wanted.keys()
        )

    def _take(self, lane: _Lane, request: Request) -> bool:
        """Whether this lane has begun, or refused, a request that belongs here."""
        if lane.context and lane.context.slots.awaits(request):
            return False
        try:
            if lane.context is None:
                lane.context = self._open_context(self._cores.total)
            if lane.context.admit(request):
                lane.running[request.key] += 1
                self._sink.add(request.id, Begun())
                return True
        except SlmError as error:
            self._sink.add(request.id, Failed(error))
            return True
        lane.full = True
        self._changed.notify_all()  # another lane may have room
        return False

    def _ended(self, lane: _Lane, context: LaneContext) -> None:
        """A request of this lane is over: others may find room, adapters may have become unused."""
        self._wanted.update(dict.fromkeys(lane.running, time.monotonic()))
        lane.running = context.running()
        lane.full = False
        if self._unused():
            threading.Thread(target=self.sweep, daemon=True).start()
