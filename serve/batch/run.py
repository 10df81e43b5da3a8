"""A batch is answered: so many requests are under way that nobody who computes ever waits for the next one.

Who answers is handed in (`BatchAnswering`): the server's application in this process, or one that is elsewhere. It
knows nothing of the engine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from serve.batch.entries import BatchEntry
from serve.batch.journal import BatchJournal

# A request that was lost with the engine's process is asked so often again, one such request at a time: which of them
# ends it is then found out without taking the others along.
_AGAIN = 3
_FULL_S = 1.0
# As the server words a field that it does not do.
_STREAMED = {
    "message": "stream: the answers of a batch are whole. Leave it out",
    "type": "invalid_request_error", "param": "stream", "code": "invalid_value",
}  # fmt: skip


def requests_ahead(parallel: int, hot: int, adapters: int) -> int:
    """How many requests an engine of so many adapters should have at once: the next one is there when an answer ends.

    parallel: those of one adapter that it computes together; hot: contexts at most.
    """
    return 2 * parallel * min(hot, adapters + 1)


class BatchAnswering(Protocol):
    """Who answers a request."""

    async def ask(self, url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """HTTP status and JSON body of the answer. Raises EngineError where nobody answers any more."""
        ...


@dataclass
class BatchFigures:
    """What a run of a batch came to. kept: answers of an earlier run; failed: lines whose answer is an error.

    seconds: from the first request to the last answer; tokens are those of this run.
    """

    lines: int = 0
    answered: int = 0
    failed: int = 0
    kept: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens per second."""
        return self.completion_tokens / self.seconds if self.seconds else 0.0

    def add(self, status: int, body: dict[str, Any]) -> None:
        """Count an answer."""
        ok = status == 200
        self.answered += ok
        self.failed += not ok
        usage = body.get("usage") or {}
        self.prompt_tokens += usage.get("prompt_tokens", usage.get("input_tokens", 0))
        self.completion_tokens += usage.get("completion_tokens", usage.get("output_tokens", 0))

    def as_json(self) -> dict[str, Any]:
        """The figures by name, units in the names."""
        return {
            "lines": self.lines, "answered": self.answered, "failed": self.failed, "kept": self.kept,
            "prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens,
            "seconds": round(self.seconds, 3), "completion_tokens_per_s": round(self.tokens_per_s, 2),
        }  # fmt: skip


def figures_of(entries: Sequence[BatchEntry], journal: BatchJournal) -> BatchFigures:
    """The figures before the first request: what was answered before, and what is an error already."""
    there = [entry for entry in entries if entry.fault is None and entry.key in journal]
    failed = sum(journal.failed(entry.key) for entry in there)
    faults = sum(entry.fault is not None for entry in entries)
    return BatchFigures(lines=len(entries), failed=faults + failed, kept=len(there) - failed)


async def answer_all(
    entries: Sequence[BatchEntry], source: Path, answering: BatchAnswering, journal: BatchJournal, window: int,
    figures: BatchFigures, shown: Callable[[int], None] = lambda done: None,
) -> None:  # fmt: skip
    """Answer every entry that has no fault and no answer yet; `window` of them are under way at once.

    shown(n) is told how many are done. Raises what `answering` and the journal raise; what was answered is kept.
    """
    todo = [entry for entry in entries if entry.fault is None and entry.key not in journal]
    left = iter(todo)
    asking = _Asking(answering)
    started, done = time.perf_counter(), 0
    with source.open("rb") as file:

        async def work() -> None:
            nonlocal done
            for entry in left:
                status, body = await asking.answer(entry, file)
                journal.put(entry.key, entry.answered(status, body))
                figures.add(status, body)
                figures.seconds = time.perf_counter() - started
                done += 1
                shown(done)

        workers = [asyncio.ensure_future(work()) for _ in range(min(window, len(todo)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


class _Asking:
    """Asks for one entry until there is an answer to keep."""

    def __init__(self, answering: BatchAnswering) -> None:
        self._answering = answering
        self._alone = asyncio.Lock()

    async def answer(self, entry: BatchEntry, file: BinaryIO) -> tuple[int, dict[str, Any]]:
        body = entry.body_in(file)
        if body.get("stream") not in (None, False):
            return 400, {"error": dict(_STREAMED)}
        while (found := await self._answering.ask(entry.url, body))[0] == 429:
            await asyncio.sleep(_FULL_S)
        if _was_lost(found):
            async with self._alone:
                for _ in range(_AGAIN):
                    found = await self._answering.ask(entry.url, body)
                    if not _was_lost(found):
                        break
        return found


def _was_lost(found: tuple[int, dict[str, Any]]) -> bool:
    """Whether nobody could answer at this moment, for which another request may be to blame."""
    return found[0] == 503
