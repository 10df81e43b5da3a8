"""What our engine's loop costs beside llama.cpp's own work in it. It knows the engine, not HTTP."""

from __future__ import annotations

import queue
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serve.bench.prompts import conversation
from serve.engine.engine import open_engine
from serve.engine.events import Event
from slm.errors import SlmError
from slm.joints import Finish, SamplingOptions


def loop_overhead(
    model: Path, adapters: Mapping[str, Path], *, clients: int, tokens: int, context: int, threads: int, parallel: int
) -> dict[str, Any]:
    """Time of the loop's steps outside of llama_decode, while `clients` requests on the adapters are answered.

    Returns {steps, decode_s, step_s, overhead}; overhead is (step_s - decode_s) / step_s, None without a step. Raises
    what the engine answers.
    """
    with open_engine(model, adapters, context=context, threads=threads, parallel=parallel) as engine:
        before = engine.stats()
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
    decode_s, step_s = after.decode_s - before.decode_s, after.step_s - before.step_s
    share = (step_s - decode_s) / step_s if step_s else None
    return {"steps": after.steps - before.steps, "decode_s": decode_s, "step_s": step_s, "overhead": share}
