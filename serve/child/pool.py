"""Where a computation on several cores runs: on a thread of its own that ends as soon as it is not needed.

GNU OpenMP keeps a pool of workers for every thread that has ever computed on several cores, and counts them all: once
they are more than the processor has, every worker goes to sleep at every barrier (libgomp, config/linux/wait.h,
`gomp_throttled_spin_count_var`), of which a token has about a thousand. A second pool, though idle, made a step of
SmolLM2-135M on two cores take 42 instead of 10 ms. A pool ends with its thread. It knows nothing of what is computed.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Team:
    """Runs one function at a time; to be used by one thread. A computation on one core needs no workers."""

    def __init__(self) -> None:
        self._leader: ThreadPoolExecutor | None = None

    def run(self, function: Callable[[], T], *, cores: int) -> T:
        """The function's result or error. It computes on `cores` cores."""
        if cores == 1:
            self.rest()
            return function()
        if self._leader is None:
            self._leader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="team")
        return self._leader.submit(function).result()

    def rest(self) -> None:
        """Let the thread and its workers go; the next `run` on several cores begins anew."""
        if self._leader is not None:
            self._leader.shutdown(wait=False)
            self._leader = None


@contextmanager
def vital() -> Iterator[None]:
    """What is raised in here ends the process: a thread that is gone would leave its orders without an answer."""
    try:
        yield
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(70)
