"""What whoever asks the engine is told: the child's answers as events, an iterator over them, or one result.

It knows nothing of orders, of adapters' contents or of the process that computes.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Generator
from dataclasses import dataclass

from serve.child.messages import Answer, Failed, Finished, Piece
from serve.engine.router import Route
from slm.errors import SlmError
from slm.joints import Finish, Scored

Event = str | Scored | Finish | SlmError
Sink = Callable[[Event], None]


@dataclass(frozen=True)
class Ticket:
    """A request under way; `cancel` ends it, in the middle of a step if need be."""

    route: Route
    cancel: Callable[[], None]


def iterated(begin: Callable[[Sink], Ticket]) -> Generator[str | Finish, None, None]:
    """The pieces of an answer's text, and its Finish. Raises what ends the answer; closing it cancels the request."""
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    ticket = begin(events.put)
    try:
        while True:
            event = events.get()
            if isinstance(event, SlmError):
                raise event
            yield event.text if isinstance(event, Scored) else event
            if isinstance(event, Finish):
                return
    finally:
        ticket.cancel()


def event_of(answer: Answer, way: Route) -> Event | None:
    """What the child's answer means for whoever waits for it; None: nothing yet."""
    match answer:
        case Piece(text, None):
            return text
        case Piece(text, score) if score:
            return Scored(text, (score,))
        case Finished():
            return Finish(
                answer.reason, way.adapter, way.reason, answer.prompt_tokens, answer.completion_tokens,
                answer.prefill_s, answer.decode_s, answer.cached_tokens,
            )  # fmt: skip
        case Failed(error):
            return error
    return None
