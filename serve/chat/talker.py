"""Who answers in a chat: a model in this program (here), or a server (`serve.chat.remote`), behind one shape."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Protocol

from serve.engine.router import Route
from slm.joints import Finish, Message, SamplingOptions

if TYPE_CHECKING:
    from serve.engine.engine import Engine


class Talker(Protocol):
    """A model to talk to."""

    @property
    def name(self) -> str:
        """The model's name."""

    @property
    def context(self) -> int:
        """Tokens of a prompt with its answer, 0 where that is unknown."""

    def adapters(self) -> list[tuple[str, str]]:
        """What may be asked for beside the base: name and language ("": none)."""

    def route(self, wanted: str, messages: Sequence[Message]) -> Route:
        """Who answers. Raises UnknownNameError."""

    def chat(
        self, messages: Sequence[Message], adapter: str | None, sampling: SamplingOptions
    ) -> Generator[str | Finish, None, None]:
        """The answer in pieces, then one Finish."""

    def count(self, messages: Sequence[Message], adapter: str | None) -> int:
        """Tokens of a conversation."""


class LocalTalker:
    """An engine of ours."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def name(self) -> str:
        return self.engine.base.name

    @property
    def context(self) -> int:
        return self.engine.context

    def adapters(self) -> list[tuple[str, str]]:
        return [(a.name, a.language or "") for a in self.engine.adapters()]

    def route(self, wanted: str, messages: Sequence[Message]) -> Route:
        return self.engine.route(wanted, messages)

    def chat(
        self, messages: Sequence[Message], adapter: str | None, sampling: SamplingOptions
    ) -> Generator[str | Finish, None, None]:
        return self.engine.chat(messages, adapter=adapter, sampling=sampling, fit=True)

    def count(self, messages: Sequence[Message], adapter: str | None) -> int:
        return len(self.engine.tokens_of(messages, adapter=adapter))
