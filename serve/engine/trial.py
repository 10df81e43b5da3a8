"""An adapter is tried in a process of its own before the live engine sees it: llama.cpp may abort on what our own
checks let pass, and then only the trial dies. It knows nothing of names or of requests.
"""

from __future__ import annotations

import queue
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from serve.adapters.registry import Adapter
from serve.child.messages import Answer, Failed, Generate, Load, Open, Order
from serve.child.spelling.lines import order_line, read_answer
from serve.engine.process import ChildProcess
from slm.errors import DamagedFileError, InputError
from slm.joints import SamplingOptions

_PATIENCE_S = 120.0


class Trials:
    """Trials for one model; a content that passed once is not tried again. Not thread-safe.

    known: contents that need no trial, because the engine's own child begins with them.
    """

    def __init__(self, model: Path, known: set[str]) -> None:
        self._model, self._passed = model, known

    def check(self, adapter: Adapter) -> None:
        """Load the adapter and compute one token with it. Raises DamagedFileError."""
        if adapter.content in self._passed:
            return
        answers: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
        child = ChildProcess(
            "serve.child.worker", lambda _, line: answers.put(read_answer(line)[1]), lambda _: answers.put(None)
        )
        try:
            for order in self._orders(adapter):
                child.send(order_line(1, order))
                answer = self._last(answers)
                if answer is None:
                    child.close(patience_s=0.0)
                    raise DamagedFileError(
                        f"llama.cpp does not survive the adapter '{adapter.path}'", found=child.epitaph()
                    )
                if isinstance(answer, Failed):
                    error = answer.error
                    raise InputError(error.what, found=error.found, hint=error.hint)
        finally:
            child.close()
        self._passed.add(adapter.content)

    def _orders(self, adapter: Adapter) -> Sequence[Order[Any]]:
        lora = ((adapter.content, adapter.scale),)
        return (
            Open(str(self._model.resolve()), threads=1, context=64, parallel=1, hot=1, draft=0),
            Load(adapter.content, str(adapter.file)),
            Generate((0,), add_special=False, fit=True, lora=lora, sampling=SamplingOptions(max_tokens=1)),
        )

    @staticmethod
    def _last(answers: queue.SimpleQueue[Answer | None]) -> Answer | None:
        """The answer that ends an order; None: the process ended, or does not answer in time."""
        with suppress(queue.Empty):
            while (answer := answers.get(timeout=_PATIENCE_S)) is not None:
                if answer.last:
                    return answer
        return None
