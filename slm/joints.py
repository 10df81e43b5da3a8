"""What the roof hands from one room to another. It knows the shapes of these objects, not who makes them.

A room's command that needs something of another room takes `Joints` from click's context (`@pass_joints`); the roof
puts it there (`slm_cli.Roof`). Plain data goes in and out, so that an object may live in another process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import update_wrapper
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypedDict, TypeVar

import click

_P = ParamSpec("_P")
_R = TypeVar("_R")


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
    """A retrieved piece of a document: where it stands, its text, and its score (higher is better).

    also: the sources of other documents that say the same.
    """

    title: str
    heading: str
    text: str
    source: str
    score: float
    also: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Title > heading, without a mark for the one that is empty."""
        return " > ".join(part for part in (self.title, self.heading) if part.strip())


@dataclass(frozen=True)
class Filters:
    """Which documents a question is answered from; of several spaces, labels or languages any. Empty: all.

    since, until: the time of a document's last change, ISO 8601; a date alone is that day, from beginning to end.
    viewer: who asks, user:NAME and group:NAME (a NAME alone is both); pages that are restricted to others are left out,
    all restricted ones when it is (). None: restrictions are not looked at.
    """

    spaces: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    since: str = ""
    until: str = ""
    viewer: tuple[str, ...] | None = None


EVERYTHING = Filters()


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen. Temperature 0 is greedy.

    logit_bias: (token id, added to its logit). logprobs: report every token's log-probability with so many
    alternatives (None: do not). grammar: what the answer must match, as llguidance's JSON text ("": free);
    grammar_field: where that was asked for, with which an error of the grammar begins.
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
    grammar_field: str = ""
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

    def timings(self) -> dict[str, float | None]:
        """Tokens per second; prefill counts only those that were not in the cache. None: too short to tell."""
        read = self.prompt_tokens - self.cached_tokens
        made = self.completion_tokens - 1  # the first token belongs to prefill
        return {
            "prefill_tokens_per_s": round(read / self.prefill_s, 1) if self.prefill_s > 0 else None,
            "decode_tokens_per_s": round(made / self.decode_s, 1) if made > 0 and self.decode_s > 0 else None,
        }


class ChatEngine(Protocol):
    """A loaded model with adapters, seen from outside its room."""

    def chat(
        self, messages: Sequence[Message], *, adapter: str | None = None, sampling: SamplingOptions = ...
    ) -> Iterator[str | Finish]:
        """Yield the answer's text piece by piece, then one Finish.

        adapter: a loaded adapter's name, None for the base, or "auto" to route by language.
        """
        ...


class CitationStream(Protocol):
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
    citations: CitationStream
    quotes: Callable[[], list[str]]


@dataclass(frozen=True)
class Quotation:
    """A line of a passage: its number (from 1), the line as it is read, and the passage's text[start:end] it came from.

    share: of the probability over all lines and "none of them", how much this line has.
    """

    passage: int
    text: str
    start: int
    end: int
    share: float


@dataclass(frozen=True)
class PointedAnswer:
    """What a reader found: lines of passages word for word with their numbers, or that the documents do not hold it.

    said: the lines of the answer; none in a refusal. nearest: the likeliest lines, best first. doubt: how
    likely it is that they do not answer. tokens: how many were read for it.
    """

    text: str
    passages: list[Passage]
    said: tuple[Quotation, ...]
    nearest: tuple[Quotation, ...]
    doubt: float
    tokens: int = 0


@dataclass(frozen=True)
class LineScores:
    """What a reader makes of passages: for each a score of each of its lines, ln(p / p0), p that it answers the
    question, p0 that nothing does. tokens: how many were read."""

    scores: list[list[float]]
    tokens: int


class Judge(Protocol):
    """A reader's model at work."""

    def __call__(self, question: str, passages: Sequence[Sequence[str]]) -> LineScores:
        """Judge the lines of passages, each given as its place and its lines. Raises InputError, EngineError."""
        ...


@dataclass(frozen=True)
class Reader:
    """Who judges whether a line answers a question. refuse_at: the doubt from which on it refuses, by language ("": any
    other)."""

    name: str
    judge: Judge
    refuse_at: Mapping[str, float]


class Retriever(Protocol):
    """An index, seen from outside its room."""

    def search(self, query: str, k: int = 5, filters: Filters = EVERYTHING) -> list[Passage]: ...

    def grounded(self, question: str, k: int = ..., filters: Filters = EVERYTHING) -> Grounded:
        """The conversation that asks a model to answer a question from the best k passages that are let through."""
        ...

    def pointed(self, question: str, reader: Reader, filters: Filters = ...) -> PointedAnswer:
        """The answer that a reader points at, among what is let through."""
        ...


@dataclass(frozen=True)
class IndexState:
    """An index of the data folder. problem: what is wrong with it, "" for one that can be used; mend: the command."""

    name: str
    embedder: str
    documents: int
    chunks: int
    problem: str = ""
    mend: str = ""


class Joints(Protocol):
    """The doors between rooms. Each says that it is missing, unless whoever implements this has it."""

    def open_engine(
        self, model: Path, adapters: Mapping[str, Path], *, threads: int = 0, context: int = 4096
    ) -> AbstractContextManager[ChatEngine]:
        """A GGUF file with its adapters {name: file}. threads: 0 for the physical cores. context: in tokens."""
        raise _no_roof()

    def open_retriever(self, index: str) -> AbstractContextManager[Retriever]:
        """An index, by its name or its path."""
        raise _no_roof()

    def reader_of(self, wanted: str) -> Reader | None:
        """Who reads documents.

        wanted: "auto" (the reader that comes with the program, None where its weights are not here), "point" (the same,
        but they have to be), a reader's adapter folder, or "model" (None: the model itself answers).
        """
        raise _no_roof()

    def checkpoint_of(self, model: str) -> Path:
        """A checkpoint folder for a folder, a catalog name or a GGUF (restored when needed)."""
        raise _no_roof()

    def adapter_of(self, adapter: Path, base: Path) -> Path:
        """The PEFT folder of an adapter for the base's checkpoint folder (restored where it is given as a GGUF file, or
        as a folder that holds only such)."""
        raise _no_roof()

    def gguf_of(self, model: str) -> Path:
        """A GGUF file for a file, a catalog name or a checkpoint folder (converted when needed)."""
        raise _no_roof()

    def adapter_gguf_of(self, folder: Path, model: str) -> Path:
        """The adapter GGUF of a PEFT folder for that model (converted when needed)."""
        raise _no_roof()

    def converter(self) -> str:
        """The version of what makes the GGUF files and checkpoints in the caches."""
        raise _no_roof()

    def index_states(self) -> list[IndexState]:
        """Every index of the data folder, and whether it is whole and fits the embedder that is here."""
        raise _no_roof()


class _NoRoof(Joints):
    """What a command has that was not started through `slm`."""


def _no_roof() -> RuntimeError:
    return RuntimeError("this command needs another room and was started without the roof; run it through `slm`")


def pass_joints(command: Callable[Concatenate[Joints, _P], _R]) -> Callable[_P, _R]:
    """Hand a command the joints as its first argument: what the roof put into click's context."""

    def with_joints(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        joints: Joints | None = click.get_current_context().obj
        return command(_NoRoof() if joints is None else joints, *args, **kwargs)

    return update_wrapper(with_joints, command)
