"""What a replica tells of an answer: the first word and the end at once, and what comes between in few tellings."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from serve.cluster.answering import Answering
from serve.cluster.wire import Ask, CompletionAsked, Telling
from serve.engine.engine import Engine
from serve.engine.events import Ticket
from serve.engine.router import Route
from slm.errors import EngineDiedError
from slm.joints import Finish, SamplingOptions

END = Finish("stop", None, "", 1, 50, 0.1, 0.1)
ASK = Ask(CompletionAsked("Hello", SamplingOptions(), True))


class SteadyEngine:
    """Says so many words, one every `pause_s`, and then how it ended."""

    def __init__(self, words: int, pause_s: float, end: Any = END) -> None:
        self.words, self.pause_s, self.end, self.cancelled = words, pause_s, end, False

    def unload_adapter(self, name: str) -> None:
        """There is none."""

    def begin_complete(self, text: str, sink: Callable[[Any], None], **options: Any) -> Ticket:
        def speak() -> None:
            for number in range(self.words):
                sink(f"{number} ")
                time.sleep(self.pause_s)
            sink(self.end)

        threading.Thread(target=speak).start()
        return Ticket(Route(None, ""), lambda: setattr(self, "cancelled", True))


def tellings(engine: SteadyEngine) -> list[tuple[float, Telling]]:
    """Each with the seconds since the beginning."""

    async def heard() -> list[tuple[float, Telling]]:
        began = time.monotonic()
        answering = Answering(cast(Engine, engine), Path)
        return [(time.monotonic() - began, told) async for told in answering.told(ASK)]

    return asyncio.run(heard())


def test_all_is_told_in_order_the_first_at_once_and_the_rest_in_few_tellings() -> None:
    engine = SteadyEngine(100, 0.004)
    told = tellings(engine)
    events = [event for _, telling in told for event in telling.events]
    assert "".join(events[:-1]) == "".join(f"{number} " for number in range(100)) and events[-1] == END
    assert events[0].startswith("0 ") and len(events[0]) < 10
    assert len(told) <= 50  # a hundred words in four tenths of a second or more
    assert [telling.last for _, telling in told] == [False] * (len(told) - 1) + [True]
    assert engine.cancelled  # the ticket is given back


@pytest.mark.parametrize("end", [END, EngineDiedError("the process ended")])
def test_the_end_is_not_waited_for(end: Any) -> None:
    told = tellings(SteadyEngine(2, 0.0, end))
    *words, last = (event for _, telling in told for event in telling.events)
    assert ("".join(words), last) == ("0 1 ", end)
    assert told[-1][0] - told[0][0] < 0.09  # sooner than the longest pause
