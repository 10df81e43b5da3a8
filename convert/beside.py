"""Computes a value in a forked copy of the process while this one goes on. It knows nothing of what it computes.

A source tokenizer of 262,144 tokens takes seconds and 350 MB to load and holds Python's lock meanwhile; in a copy it
takes neither from the conversion, and the memory is gone with it.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Generic, TypeVar

_Value = TypeVar("_Value")


class Beside(Generic[_Value]):
    """A value that can be pickled, being computed by a copy of the process.

    Where processes cannot be forked, or the copy fails, `get` computes the value itself, so that an error is raised
    where it is asked for. The stack ends a copy that is no longer wanted.
    """

    def __init__(self, stack: ExitStack, compute: Callable[[], _Value]) -> None:
        self._compute = compute
        self._receiver: Any = None
        if sys.platform != "linux" or "fork" not in multiprocessing.get_all_start_methods():
            return
        context = multiprocessing.get_context("fork")
        self._receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_send, args=(sender, compute), daemon=True)
        process.start()
        sender.close()
        stack.callback(process.join)
        stack.callback(process.kill)

    def ready(self) -> bool:
        """Whether `get` would not wait."""
        return self._receiver is not None and bool(self._receiver.poll())

    def get(self) -> _Value:
        """The value; waits for it. May be called once."""
        if self._receiver is None:
            return self._compute()
        try:
            value: _Value = self._receiver.recv()
        except EOFError:
            return self._compute()
        return value


def _send(sender: Any, compute: Callable[[], Any]) -> None:
    gc.disable()  # it would write to every object, and so copy all of the parent's memory
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        sender.send(compute())
    except BaseException:
        os._exit(1)  # the parent computes it again and meets the error itself


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Pause the search for cycles while hundreds of thousands of objects without cycles are made."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
