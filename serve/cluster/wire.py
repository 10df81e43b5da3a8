"""What an entrance and a replica say to each other. It knows nothing of Ray, of HTTP or of answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serve.engine.prompting import TemplateOptions
from slm.joints import Message, SamplingOptions


@dataclass(frozen=True)
class NeededAdapter:
    """An adapter of a request: the hash of its content, and where its file or PEFT folder is."""

    content: str
    source: str


@dataclass(frozen=True)
class ChatAsked:
    """Answer a conversation, as `serve.engine.engine.Engine.begin_chat` does."""

    messages: Sequence[Message]
    template: TemplateOptions
    sampling: SamplingOptions
    fit: bool


@dataclass(frozen=True)
class CompletionAsked:
    """Continue a text or token ids, as `begin_complete` does."""

    text: str | Sequence[int]
    sampling: SamplingOptions
    fit: bool


@dataclass(frozen=True)
class EmbeddingsAsked:
    """The embeddings of texts, as `begin_embed` makes them."""

    texts: Sequence[str | Sequence[int]]
    first: int


@dataclass(frozen=True)
class TokensAsked:
    """The token ids of a text."""

    text: str
    add_special: bool


@dataclass(frozen=True)
class TextAsked:
    """The text of token ids."""

    tokens: Sequence[int]


Run = ChatAsked | CompletionAsked | EmbeddingsAsked
"""What is begun, told as it comes, and can be cancelled."""
Deed = Run | TokensAsked | TextAsked


@dataclass(frozen=True)
class Ask:
    """What a replica is to do, and with which adapters.

    Adapters are called by the hash of their content, so that two machines never mean two things by one name.
    scales: of each of them; None where one adapter answers as it was loaded, or the base alone.
    """

    deed: Deed
    adapters: tuple[NeededAdapter, ...] = ()
    scales: tuple[float, ...] | None = None

    @property
    def warm(self) -> str:
        """The adapter by which a replica is chosen, "" for the base."""
        return self.adapters[0].content if self.adapters else ""

    @property
    def adapter(self) -> str | None:
        """The one that answers where no scales are given; None for the base."""
        return self.warm or None if self.scales is None else None

    @property
    def lora(self) -> list[tuple[str, float]] | None:
        """The adapters with their scales, where these are given."""
        if self.scales is None:
            return None
        return [(needed.content, scale) for needed, scale in zip(self.adapters, self.scales, strict=True)]


@dataclass(frozen=True)
class Telling:
    """Events of an answer, in order; last: the answer ends with them. stale: an adapter's file is another by now."""

    events: tuple[Any, ...]
    last: bool
    stale: str = ""
