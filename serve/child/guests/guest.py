"""Orders one after another on a thread of their own, with contexts that are kept while orders come.

It knows nothing of what is computed, and of the lanes only that answers go where theirs go.
"""

from __future__ import annotations

import ctypes
import queue
import threading
from abc import ABC, abstractmethod
from contextlib import ExitStack, suppress
from typing import Any, Generic, TypeVar

from serve.child.lanes import Sink
from serve.child.messages import Answer, Failed
from serve.child.pool import vital
from slm.errors import SlmError
from slm.native.llama import library

O = TypeVar("O")  # noqa: E741

# Contexts are closed after so long without an order: their buffers are as large as a lane's.
_KEPT_S = 5.0


class Guest(ABC, Generic[O]):
    """Answers orders into `sink`. `submit` and `cancel` may be called from any thread. name: of the thread."""

    def __init__(self, name: str, sink: Sink) -> None:
        self._sink = sink
        self._orders: queue.SimpleQueue[tuple[int, O, ExitStack]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._wanted: set[int] = set()
        self._current = 0
        # As in `serve.child.contexts`: strlen of a text that is empty until somebody writes a character into it.
        self._stop = ctypes.create_string_buffer(2)
        self._strlen = ctypes.cast(ctypes.CDLL(None).strlen, library().ggml_abort_callback)
        threading.Thread(target=self._run, daemon=True, name=name).start()

    def _enqueue(self, id: int, order: O, held: ExitStack) -> None:
        """Queue an order. held: closed when it is over, whether or not it was computed."""
        with self._lock:
            self._wanted.add(id)
        self._orders.put((id, order, held))

    def cancel(self, id: int) -> None:
        """Drop an order that waits or end the one that is computed; it is not answered."""
        with self._lock:
            self._wanted.discard(id)
            if id == self._current:
                self._stop[0] = b"x"

    @abstractmethod
    def _answered(self, kept: ExitStack, id: int, order: O) -> Answer:
        """Compute the answer. kept: closed when no order has come for a while. Raises SlmError."""

    def _stoppable(self, context: Any) -> None:
        """Let a cancellation end a decoding of this context in its middle."""
        library().llama_set_abort_callback(context, self._strlen, ctypes.cast(self._stop, ctypes.c_void_p))

    def _run(self) -> None:
        with vital():
            while True:
                with ExitStack() as kept:
                    self._obey(kept, *self._orders.get())
                    with suppress(queue.Empty):
                        while True:
                            self._obey(kept, *self._orders.get(timeout=_KEPT_S))

    def _obey(self, kept: ExitStack, id: int, order: O, held: ExitStack) -> None:
        with held:
            with self._lock:
                if id not in self._wanted:
                    return
                self._current, self._stop[0] = id, b"\0"
            try:
                answer = self._answered(kept, id, order)
            except SlmError as error:
                answer = Failed(error)
        with self._lock:
            self._current = 0
            wanted = id in self._wanted
            self._wanted.discard(id)
        if wanted:
            self._sink.add(id, answer)
            self._sink.flush()
