"""What our engine's loop costs beside llama.cpp's own work in it. It knows the engine, not HTTP."""

from __future__ import annotations

import queue
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serve.bench.prompts import conversation
from serve.engine.engine import Event, open_engine
from slm.errors import SlmError
from slm.joints import Finish, SamplingOptions

_FIELDS = ("decode_s", "step_s", "steps")


def loop_overhead(
    model: Path, adapters: Mapping[str, Path], *, clients: int, tokens: int, context: int, threads: int, parallel: int
) -> dict[str, Any] | None:
    """Time of the loop's steps outside of llama_decode, while `clients` requests on the adapters are answered.

    Returns {steps, decode_s, step_s, overhead}; overhead is (step_s - decode_s) / step_s. None when the engine does
    not report these. Raises what the engine answers.
    """
    with open_engine(model, adapters, context=context, threads=threads, parallel=parallel) as engine:
        before = engine.stats()
        if not all(name in before for name in _FIELDS):
            return None
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        names = list(adapters)
        sampling = SamplingOptions(max_tokens=tokens)
        for n in range(clients):
            language = "en" if n % 2 == 0 else "ja"
            engine.begin_chat(conversation(language, n), events.put, adapter=names[n % len(names)], sampling=sampling)
        for _ in range(clients):
            while not isinstance(event := events.get(), Finish):
                if isinstance(event, SlmError):
                    raise event
        after = engine.stats()
    spent = {name: after[name] - before[name] for name in _FIELDS}
    share = (spent["step_s"] - spent["decode_s"]) / spent["step_s"] if spent["step_s"] else None
    return {"steps": spent["steps"], "decode_s": spent["decode_s"], "step_s": spent["step_s"], "overhead": share}
