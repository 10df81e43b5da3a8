"""A conversation as plain data, what of it a model is sent, and which of it does not fit. It knows no model.

The oldest exchanges are left out first, and then a quarter of the room is made free at once: what a model has read
stays in its cache only while a conversation begins as before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from slm.joints import Message

ALMOST_FULL = 0.8
_AFTER_DROPPING = 0.75
_MOST_FOR_THE_ANSWER = 0.25


@dataclass(eq=False)
class Exchange:
    """A question and its answer. Two are never equal: the same may be asked twice.

    id: its row in the archive, None where nothing is saved. answer: None until there is one; of a stopped one what was
    said. facts: who answered and why, tokens and times, sources; as they are saved.
    """

    question: str
    answer: str | None = None
    id: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sent:
    """What a model is sent, and from which exchange on (left out: those before). tokens: of all of it, 0: unknown."""

    messages: list[Message]
    first: int
    tokens: int


def messages_of(system: str, exchanges: Sequence[Exchange], asked: Sequence[Message]) -> list[Message]:
    """System text, what was said, what is asked now. Questions without an answer are left out."""
    turns = [Message(role="system", content=system)] if system else []
    for exchange in exchanges:
        if exchange.answer:
            turns.append(Message(role="user", content=exchange.question))
            turns.append(Message(role="assistant", content=exchange.answer))
    return [*turns, *asked]


def fitting(
    system: str,
    exchanges: Sequence[Exchange],
    asked: Sequence[Message],
    first: int,
    count: Callable[[Sequence[Message]], int],
    room: int,
) -> Sent:
    """The conversation from exchange `first` on, or from a later one where that is too long.

    count: tokens of messages. room: tokens for them (`room_for`); 0: unknown, then nothing is left out. Where even the
    question alone is too long it is sent as it is: whoever runs the model says so.
    """
    first = min(first, len(exchanges))
    messages = messages_of(system, exchanges[first:], asked)
    if not room:
        return Sent(messages, first, 0)
    tokens = count(messages)
    if tokens <= room or first == len(exchanges):
        return Sent(messages, first, tokens)
    low, high = first + 1, len(exchanges)
    while low < high:
        middle = (low + high) // 2
        if count(messages_of(system, exchanges[middle:], asked)) <= room * _AFTER_DROPPING:
            high = middle
        else:
            low = middle + 1
    messages = messages_of(system, exchanges[low:], asked)
    return Sent(messages, low, count(messages))


def used_by(exchanges: Sequence[Exchange]) -> int:
    """Tokens of a conversation, as they were counted with its last answer by a model; 0: there is none."""
    for exchange in reversed(exchanges):
        if "prompt_tokens" in exchange.facts:
            return int(exchange.facts["prompt_tokens"] + exchange.facts["completion_tokens"])
    return 0


def room_for(context: int, max_tokens: int) -> int:
    """Tokens of a context for what is sent: the answer gets what it may have, at most a quarter."""
    return context - min(max_tokens, int(context * _MOST_FOR_THE_ANSWER)) if context else 0
