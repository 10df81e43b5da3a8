"""Pointed answers as runs of the engine: a retriever finds passages, a reader's adapter judges their lines.

A run can be cancelled at any moment, and computes nothing any more then. It knows nothing of HTTP, nor of how passages
are found or an answer is made of scores.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from serve.engine.events import Sink, Ticket
from serve.engine.router import Route
from serve.engine.served import ServedEngine
from slm.errors import EngineError, SlmError
from slm.joints import Filters, Finish, PieceScores, PointedAnswer, Reader, Retriever
from slm.terminal.console import note

# Questions that are searched for, or wait for their scores, at once. The engine reads for one after the other.
_TOGETHER = 4


class Pointing:
    """A reader over an index. engine: has the reader's adapter under the reader's name."""

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
        self._lock = threading.Lock()
        self._told: queue.SimpleQueue[PieceScores | SlmError | None] = queue.SimpleQueue()
        self._scoring: Ticket | None = None
        self._left = False
        self._read, self._shared, self._seconds = 0, 0, 0.0

    def begin(self, sink: Sink) -> Ticket:
        """Start; `sink` gets the answer's text and a Finish, or an SlmError, on a thread of the pointing's own.

        The Finish counts the tokens that were read; none are generated. Raises nothing.
        """
        work = self._pointing.workers.submit(self._work, sink)

        def cancel() -> None:
            work.cancel()
            self._leave()

        return Ticket(self._pointing.route, cancel)

    def _work(self, sink: Sink) -> None:
        pointing = self._pointing
        try:
            self.answer = pointing.retriever.pointed(self._question, pointing.reader, self._judge, self._filters)
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
        sink(Finish("stop", route.adapter, route.reason, self._read, 0, self._seconds, 0.0, self._shared))

    def _judge(self, prompts: Sequence[Sequence[str]]) -> list[list[float]]:
        """A `slm.joints.Judge`. Raises _Left when the run is cancelled, SlmError as `Engine.scores`."""
        if self._left:
            raise _Left
        reader = self._pointing.reader
        scoring = self._pointing.engine.begin_scores(prompts, reader.contrast, self._told.put, adapter=reader.name)
        with self._lock:
            self._scoring = scoring
            left = self._left
        if left:
            scoring.cancel()
            raise _Left
        found = self._told.get()
        if found is None:
            raise _Left
        if isinstance(found, SlmError):
            raise found
        self._read += found.prompt_tokens
        self._shared += found.cached_tokens
        self._seconds += found.prefill_s
        return found.scores

    def _leave(self) -> None:
        with self._lock:
            self._left = True
            scoring = self._scoring
        if scoring:
            scoring.cancel()
        self._told.put(None)
