"""Keeps the engine's child process alive: orders and their answers, its death, its restart, and who is to blame.

What is said is in `serve.child.messages`; what a fresh child has to be told comes from `prepare`. It knows nothing of
adapters' names, of prompts or of HTTP. Thread-safe.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from serve.child.messages import (
    Answer,
    Begun,
    Cancel,
    Failed,
    Finished,
    Generate,
    Order,
    R,
)
from serve.child.spelling.lines import order_line, read_answer
from serve.engine.process import ChildProcess
from slm.errors import EngineDiedError, EngineError, SlmError
from slm.terminal.console import note

State = Literal["starting", "ready", "down", "closed"]

_RESTARTS = 3  # a child that cannot even be started so often in a row stays down
_PATIENCE_S = 120.0
_DEADLY = 2
_GRUDGE_S = 600.0
_UNHEARD = 0  # the id of orders whose answer nobody waits for


class Blame:
    """Which requests were being computed when a child died. Twice, without an answer in between: refused for a while.

    `clock` gives seconds. Not thread-safe.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._deaths: dict[str, list[float]] = {}

    def died(self, fingerprints: Collection[str]) -> None:
        """These were under way when a child ended."""
        for fingerprint in fingerprints:
            self._deaths.setdefault(fingerprint, []).append(self._clock())

    def succeeded(self, fingerprint: str) -> None:
        """An answer was finished: this request is harmless."""
        self._deaths.pop(fingerprint, None)

    def refuses(self, fingerprint: str) -> bool:
        """Whether this request has killed too often to be tried again now."""
        young = self._clock() - _GRUDGE_S
        self._deaths = {name: kept for name, at in self._deaths.items() if (kept := [t for t in at if t > young])}
        return len(self._deaths.get(fingerprint, ())) >= _DEADLY


class Call(Protocol):
    """Gives an order and waits for its answer. Raises what the child answers, or EngineDiedError."""

    def __call__(self, order: Order[R]) -> R: ...


@dataclass
class _Pending:
    """Where the child's answers to one order go; `fingerprint` names a request, `begun` when it is computed."""

    take: Callable[[Answer], None]
    fingerprint: str = ""
    begun: bool = False


class Supervisor:
    """One child process at a time. `start` it, `close` it.

    prepare(call) is run for every new child before it may be used; an SlmError from it means that the child is of no
    use.
    """

    def __init__(self, prepare: Callable[[Call], None]) -> None:
        self._prepare = prepare
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._pending: dict[int, _Pending] = {}
        self._ids = itertools.count(1)
        self._child: ChildProcess | None = None
        self._ahead: ChildProcess | None = None
        self._ended: ChildProcess | None = None
        self._state: State = "starting"
        self._why_down = ""
        self._blame = Blame()
        self.restarts = 0

    @property
    def state(self) -> State:
        return self._state

    @property
    def pid(self) -> int | None:
        """Process id of the child."""
        return self._child.pid if self._child else None

    def spawn(self) -> None:
        """Start the first child's process ahead of `start`: it loads its libraries while files are still being read."""
        with self._lock:
            self._child = self._ahead = self._new_child()

    def start(self) -> None:
        """Start the first child. Raises what `prepare` raises, or EngineDiedError."""
        self._begin()

    def close(self) -> None:
        """End the child; orders under way are answered with an EngineError."""
        with self._lock:
            was_asked = self._ahead is None
            self._state = "closed"
            child, pending = self._child, list(self._pending.values())
            self._pending.clear()
            self._changed.notify_all()
        for item in pending:
            item.take(Failed(EngineError("the engine was closed")))
        if child:
            child.close(patience_s=3.0 if was_asked else 0.0)

    def compute(self, order: Callable[[], Generate], take: Callable[[Answer], None], fingerprint: str) -> int:
        """Send the order that `order` makes at this very moment; `take` gets every answer, on the reader's thread.

        Waits while the child is being restarted. Raises EngineError when it is down, or refuses this request.
        """
        with self._lock:
            self._wait_ready()
            if self._blame.refuses(fingerprint):
                raise EngineError(
                    "this request ended the inference process twice; it is not tried again for ten minutes",
                    hint="Change the request, and report it with the model and the adapter.",
                )
            return self._send(order(), _Pending(take, fingerprint))

    def begin(self, order: Order[Any], take: Callable[[Answer], None]) -> int:
        """Send an order; `take` gets its answer, on the reader's thread. Waits and raises as `compute`."""
        with self._lock:
            self._wait_ready()
            return self._send(order, _Pending(take))

    def cancel(self, id: int) -> None:
        """Forget an order; what computes for it is ended."""
        with self._lock:
            if self._pending.pop(id, None) and self._child:
                self._child.send(order_line(_UNHEARD, Cancel(id)))

    def tell(self, order: Order[Any]) -> None:
        """Send an order whose answer does not matter."""
        with self._lock:
            if self._child:
                self._child.send(order_line(_UNHEARD, order))

    def call(self, order: Order[R]) -> R:
        """Send an order and wait for its answer. Raises what the child answers, or EngineDiedError."""
        with self._lock:
            self._wait_ready()
        return self._ask(order)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _wait_ready(self) -> None:
        """With the lock held: wait while the child is being restarted."""
        self._changed.wait_for(lambda: self._state != "starting", timeout=_PATIENCE_S)
        if self._state != "ready":
            raise EngineError(f"the engine is {self._state}", found=self._why_down)

    def _send(self, order: Order[Any], pending: _Pending) -> int:
        """With the lock held: register and write an order, so that a dying child cannot lose it unnoticed."""
        if self._child is None:
            raise EngineError("the engine was not started")
        if self._child is self._ended:
            raise EngineDiedError("the inference process ended unexpectedly", found=self._child.epitaph())
        id = next(self._ids)
        self._pending[id] = pending
        self._child.send(order_line(id, order))
        return id

    def _ask(self, order: Order[R]) -> R:
        answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        with self._lock:
            if self._state == "closed":
                raise EngineError("the engine was closed")
            self._send(order, _Pending(answers.put))
        answer = answers.get()
        if isinstance(answer, Failed):
            raise answer.error
        if not isinstance(answer, order.reply):
            raise EngineError(f"{type(order).__name__} was answered by {type(answer).__name__}")
        return answer

    def _new_child(self) -> ChildProcess:
        """With the lock held: one that ends at once waits with that until it is known as the child."""
        return ChildProcess("serve.child.worker", self._on_line, self._on_exit)

    def _begin(self) -> None:
        """Start a child and prepare it; the state is 'ready' afterwards."""
        with self._lock:
            child, self._ahead = self._ahead or self._new_child(), None
            closed = self._state == "closed"
            self._child = child
        if closed:
            child.close()
            return
        try:
            self._prepare(self._ask)
        except SlmError:
            child.close()
            raise
        with self._lock:
            if self._state == "starting":
                self._state = "ready"
            self._changed.notify_all()

    def _on_line(self, child: ChildProcess, line: bytes) -> None:
        id, answer = read_answer(line)
        with self._lock:
            get = self._pending.pop if answer.last else self._pending.get
            pending = get(id, None) if child is self._child else None
            if pending and isinstance(answer, Begun):
                pending.begun = True
            if pending and isinstance(answer, Finished):
                self._blame.succeeded(pending.fingerprint)
        if pending is not None:
            pending.take(answer)

    def _on_exit(self, child: ChildProcess) -> None:
        with self._lock:
            if child is not self._child or self._state == "closed":
                return
            was_ready = self._state == "ready"
            self._state, self._ended = "starting", child
            lost = list(self._pending.values())
            self._pending.clear()
            self._blame.died({item.fingerprint for item in lost if item.begun})
        if was_ready:
            threading.Thread(target=self._restart, args=(child,), daemon=True).start()
        epitaph = child.epitaph()
        child.close()
        for item in lost:
            hint = "It is being restarted; ask again." if was_ready else ""
            item.take(Failed(EngineDiedError("the inference process ended unexpectedly", found=epitaph, hint=hint)))

    def _restart(self, dead: ChildProcess) -> None:
        self.restarts += 1
        epitaph = dead.epitaph()
        note(f"the engine ended ({epitaph}); starting it again")
        for _ in range(_RESTARTS):
            with contextlib.suppress(SlmError):
                self._begin()
                return
        with self._lock:
            if self._state == "starting":
                self._state, self._why_down = "down", epitaph
            self._changed.notify_all()
