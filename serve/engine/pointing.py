"""Pointed answers as runs of a server: a retriever finds passages, a reader judges their lines.

A run can be cancelled at any moment, and computes nothing any more after the passages it is at. It knows nothing of
HTTP, nor of how passages are found or an answer is made of scores.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from serve.engine.events import Sink, Ticket
from serve.engine.router import Route
from serve.engine.served import ServedEngine
from slm.errors import EngineError, SlmError
from slm.joints import Filters, Finish, LineScores, PointedAnswer, Reader, Retriever
from slm.terminal.console import note

# Passages between two looks at whether somebody still waits: as many as the cores read together.
_AT_ONCE = 4
# Questions that are searched for and read for at once.
_TOGETHER = 4


class Pointing:
    """A reader over an index. engine: whose names a request may give."""

    def __init__(self, engine: ServedEngine, retriever: Retriever, reader: Reader) -> None:
        self.engine, self.retriever, self.reader = engine, retriever, reader
        self.route = Route(reader.name, "the reader points at lines of the passages")
        self.workers = ThreadPoolExecutor(_TOGETHER, thread_name_prefix="pointing")


class _Left(Exception):
    """Nobody waits for the answer any more."""


class PointedRun:
    """One question's answer under way. answer: what the reader points at, None until it is known."""

    def __init__(self, pointing: Pointing, question: str, filters: Filters) -> None:
        self.answer: PointedAnswer | None = None
        self._pointing, self._question, self._filters = pointing, question, filters
        self._left = threading.Event()

    def begin(self, sink: Sink) -> Ticket:
        """Start; `sink` gets the answer's text and a Finish, or an SlmError, on a thread of the pointing's own.

        The Finish counts the tokens that were read; none are generated. Raises nothing.
        """
        work = self._pointing.workers.submit(self._work, sink)

        def cancel() -> None:
            work.cancel()
            self._left.set()

        return Ticket(self._pointing.route, cancel)

    def _work(self, sink: Sink) -> None:
        pointing, began = self._pointing, time.perf_counter()
        reader = replace(pointing.reader, judge=self._judge)
        try:
            self.answer = pointing.retriever.pointed(self._question, reader, self._filters)
        except _Left:
            return
        except SlmError as error:
            sink(error)
            return
        except Exception as error:  # whoever waits has to be told, whatever it was
            note(f"a question could not be answered from the documents: {error!r}")
            sink(EngineError("the server failed at this question"))
            return
        route = pointing.route
        sink(self.answer.text)
        seconds = time.perf_counter() - began
        sink(Finish("stop", route.adapter, route.reason, self.answer.tokens, 0, seconds, 0.0))

    def _judge(self, question: str, passages: Sequence[Sequence[str]]) -> LineScores:
        """A `slm.joints.Judge`. Raises _Left when the run is cancelled."""
        scores: list[list[float]] = []
        tokens = 0
        for start in range(0, len(passages), _AT_ONCE):
            if self._left.is_set():
                raise _Left
            found = self._pointing.reader.judge(question, passages[start : start + _AT_ONCE])
            scores += found.scores
            tokens += found.tokens
        return LineScores(scores, tokens)
