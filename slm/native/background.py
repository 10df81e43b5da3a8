"""A value computed by another thread while the caller does something else. It knows nothing of what is computed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_V = TypeVar("_V")


def in_background(compute: Callable[[], _V]) -> Callable[[], _V]:
    """Start computing; the returned function waits for the value, or raises what went wrong.

    An interrupted program does not wait for it, as it would for a thread of a pool.
    """
    future: Future[_V] = Future()

    def run() -> None:
        try:
            future.set_result(compute())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result
