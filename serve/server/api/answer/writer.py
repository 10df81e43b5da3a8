"""How the events of a request's runs become an answer, whole or streamed: what every writer does, and chat's.

It knows nothing of sockets or of the engine. `serve.server.respond` hands a writer what comes and sends what it gives.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from serve.server.api.answer.objects import Choice, Completion, citations_of
from serve.server.api.errors import error_body
from slm.errors import SlmError
from slm.joints import Finish, Grounded, Scored


class Writer(Protocol):
    """An answer under way. What it yields goes through `frame` at once, if it is sent at all."""

    tail: str  # what ends a stream

    def opening(self) -> Iterator[dict[str, Any]]:
        """What a stream begins with."""

    def take(self, number: int, event: str | Scored | Finish) -> Iterator[dict[str, Any]]:
        """What an event of the run of that number adds to a stream; has to be exhausted."""

    async def before_end(self) -> None:
        """Get ready what takes long and belongs to the end; called before a Finish is taken."""

    def closing(self) -> Iterator[dict[str, Any]]:
        """What follows when every run has ended."""

    def failed(self, error: SlmError) -> Iterator[dict[str, Any]]:
        """What tells of an error after the start."""

    def frame(self, value: dict[str, Any]) -> str:
        """A server-sent event."""

    def whole(self) -> dict[str, Any]:
        """The body, when nothing was streamed."""


class ChatWriter:
    """OpenAI's chat completions and completions. prompts: how many different ones there were."""

    tail = "data: [DONE]\n\n"

    def __init__(
        self,
        answer: Completion,
        choices: Sequence[Choice],
        *,
        with_usage: bool = False,
        prompts: int = 1,
        grounded: Grounded | None = None,
    ) -> None:
        self._answer, self._choices = answer, choices
        self._with_usage, self._prompts = with_usage, prompts
        self._grounded = grounded
        self._quotes: Sequence[str] = ()

    def opening(self) -> Iterator[dict[str, Any]]:
        for choice in self._choices if self._answer.chat else ():
            yield self._answer.chunk(choice.first(), citations_of(self._grounded))

    def take(self, number: int, event: str | Scored | Finish) -> Iterator[dict[str, Any]]:
        for part in self._choices[number].take(event):
            last = part["finish_reason"] is not None
            yield self._answer.chunk(part, citations_of(self._grounded, self._quotes) if last else None)

    async def before_end(self) -> None:
        if self._grounded:
            self._quotes = await asyncio.to_thread(self._grounded.quotes)

    def closing(self) -> Iterator[dict[str, Any]]:
        if self._with_usage:
            yield self._answer.usage_chunk(self._choices, self._prompts)

    def failed(self, error: SlmError) -> Iterator[dict[str, Any]]:
        yield error_body(error)[1]

    def frame(self, value: dict[str, Any]) -> str:
        return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"

    def whole(self) -> dict[str, Any]:
        return self._answer.whole(self._choices, self._prompts, citations_of(self._grounded, self._quotes))
