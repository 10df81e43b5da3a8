"""What the roof hands from one room to another. It knows the shapes of these objects, not who makes them.

A room's command that needs something of another room takes `Joints` from click's context
(`@pass_joints`); the roof fills it. Plain data goes in and out, so that an object may live in another process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypedDict

import click


class Turn(TypedDict):
    """What every turn of a conversation has: role is system, user, assistant or tool."""

    role: str
    content: str


class Message(Turn, total=False):
    """One turn of a conversation.

    tool_calls (of an assistant): {"id", "type": "function", "function": {"name", "arguments": mapping}} each.
    tool_call_id and name (of a tool): which call this is the result of, and of which function.
    reasoning_content (of an assistant): what was thought before the answer; few templates show it.
    """

    tool_calls: list[dict[str, Any]]
    tool_call_id: str
    name: str
    reasoning_content: str


@dataclass(frozen=True)
class Passage:
    """A retrieved piece of a document: where it stands, its text, and its score (higher is better)."""

    title: str
    heading: str
    text: str
    source: str
    score: float

    @property
    def place(self) -> str:
        """Title > heading, without a mark for the one that is empty."""
        return " > ".join(part for part in (self.title, self.heading) if part.strip())


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen. Temperature 0 is greedy.

    logit_bias: (token id, added to its logit). logprobs: report every token's log-probability with so many
    alternatives (None: do not). grammar: what the answer must match, as llguidance's JSON text ("": free).
    repeat_last_n: how many tokens back repeat_penalty looks (-1: all). stop_tokens: ids that end the answer besides
    the model's own; ignore_eos: those do not end it; min_tokens: before so many nothing of both ends it.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    grammar: str = ""
    repeat_last_n: int = 64
    stop_tokens: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0


@dataclass(frozen=True)
class TokenScore:
    """One generated token: id, its bytes, its natural log-probability, and the likeliest (id, bytes, logprob)."""

    token: int
    piece: bytes
    logprob: float
    top: tuple[tuple[int, bytes, float], ...] = ()


@dataclass(frozen=True)
class Scored:
    """Text with the tokens it came from; takes the place of a plain str when `logprobs` was asked for."""

    text: str
    tokens: tuple[TokenScore, ...]


@dataclass(frozen=True)
class Finish:
    """The end of one answer: why it ended (stop, length, cancelled), who answered, and the figures."""

    reason: str
    adapter: str | None
    route_reason: str
    prompt_tokens: int
    completion_tokens: int
    prefill_s: float
    decode_s: float
    cached_tokens: int = 0


class Engine(Protocol):
    """A loaded model with adapters, seen from outside its room."""

    def chat(
        self, messages: Sequence[Message], *, adapter: str | None = None, sampling: SamplingOptions = ...
    ) -> Iterator[str | Finish]:
        """Yield the answer's text piece by piece, then one Finish.

        adapter: a loaded adapter's name, None for the base, or "auto" to route by language.
        """
        ...


class Citations(Protocol):
    """An answer on its way to the reader, whose citations are checked against the passages."""

    def feed(self, piece: str) -> str:
        """Take the next piece of the answer; the text that is ready to be shown."""
        ...

    def end(self) -> str:
        """The rest of the answer."""
        ...

    @property
    def cited(self) -> list[int]:
        """The numbers of the passages cited so far, from 1, in order of appearance, each once."""
        ...


@dataclass(frozen=True)
class Grounded:
    """A question with its passages, numbered from 1: what to ask a model, and where to pass its answer through.

    quotes() gives for each passage its sentence nearest to the question, or "". It takes some tenths of a second,
    so it is called when the answer has been shown.
    """

    messages: list[Message]
    passages: list[Passage]
    citations: Citations
    quotes: Callable[[], list[str]]


class Retriever(Protocol):
    """An index, seen from outside its room."""

    def search(self, query: str, k: int = 5) -> list[Passage]: ...

    def grounded(self, question: str, k: int = ...) -> Grounded:
        """The conversation that asks a model to answer a question from the best k passages."""
        ...


def _missing(*_args: object, **_kwargs: object) -> AbstractContextManager[object]:
    raise RuntimeError("this command was started without the roof; run it through `slm`")


@dataclass(frozen=True)
class Joints:
    """The doors between rooms.

    open_engine(model, adapters {name: file}, threads, context) -> context manager of an Engine
    open_retriever(index) -> context manager of a Retriever
    checkpoint_of(model) -> a checkpoint folder for a folder, a catalog name or a GGUF (restored when needed)
    gguf_of(model) -> a GGUF file for a file, a catalog name or a checkpoint folder (converted when needed)
    adapter_gguf_of(folder, model) -> the adapter GGUF of a PEFT folder for that model (converted when needed)
    """

    open_engine: Callable[..., AbstractContextManager[Engine]] = _missing  # type: ignore[assignment]
    open_retriever: Callable[[str], AbstractContextManager[Retriever]] = _missing  # type: ignore[assignment]
    checkpoint_of: Callable[[str], Path] = _missing  # type: ignore[assignment]
    gguf_of: Callable[[str], Path] = _missing  # type: ignore[assignment]
    adapter_gguf_of: Callable[[Path, str], Path] = _missing  # type: ignore[assignment]


pass_joints = click.make_pass_decorator(Joints, ensure=True)
