"""What the engine and its child process say to each other; how it stands in a line is in `serve.child.spelling.lines`.

An order is answered by what its `reply` says, or by `Failed`; with either the answer ends. `Generate` is answered by
`Begun` before that, and by a `Piece` for each token that adds text or a score. It knows nothing of processes,
models or HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from slm.chat.segments import Segment
from slm.errors import (
    ContextOverflowError,
    DamagedFileError,
    EngineDiedError,
    EngineError,
    InputError,
    MismatchError,
    MissingFileError,
    ResourceError,
    SlmError,
    UnsupportedError,
)
from slm.joints import SamplingOptions, TokenScore

if TYPE_CHECKING:
    from typing_extensions import TypeIs

M = TypeVar("M", bound="WireMessage")
R = TypeVar("R", bound="Answer")
Segments = tuple[Segment, ...]
TokenIds = tuple[int, ...]

# Errors that cross as what they are; any other crosses as the nearest of its ancestors.
_ERRORS: dict[str, type[SlmError]] = {
    kind.__name__: kind
    for kind in (
        SlmError, InputError, MissingFileError, DamagedFileError, UnsupportedError, MismatchError, ResourceError,
        EngineError, EngineDiedError, ContextOverflowError,
    )
}  # fmt: skip


def is_segments(prompt: Segments | TokenIds) -> TypeIs[Segments]:
    """Whether a prompt is text to be tokenized."""
    return bool(prompt) and isinstance(prompt[0], Segment)


class WireMessage:
    """Something that is said: a frozen dataclass whose fields are JSON's own values, or tuples of them.

    The messages with other fields say how those stand in a line.
    """

    def row(self) -> Sequence[Any]:
        """The fields as JSON's values."""
        return list(vars(self).values())

    @classmethod
    def of(cls: type[M], *row: Any) -> M:
        """The message of a row that was read."""
        return cls(*map(_tuples, row))


def _tuples(value: Any) -> Any:
    """A JSON value with tuples for its lists."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


# --- answers ---------------------------------------------------------------------------------------------------------


class Answer(WireMessage):
    """What the child says to an order. last: nothing follows it."""

    last: ClassVar[bool] = True


@dataclass(frozen=True)
class Done(Answer):
    """The order was carried out; there is nothing to tell."""


@dataclass(frozen=True)
class Opened(Answer):
    """The model is open. context: tokens of a prompt with its answer. control, added: as in `Markers`."""

    context: int
    trained_context: int
    control: tuple[str, ...]
    added: tuple[str, ...]


@dataclass(frozen=True)
class Tokens(Answer):
    """Token ids of a prompt."""

    tokens: TokenIds


@dataclass(frozen=True)
class Text(Answer):
    """The text of token ids."""

    text: str


@dataclass(frozen=True)
class Embeddings(Answer):
    """A vector of length 1 for each text, and how many tokens they have together."""

    vectors: tuple[tuple[float, ...], ...]
    tokens: int


@dataclass(frozen=True)
class RunningRow:
    """A request that runs. lora: (content hash, scale) of its adapters. cells: of the KV cache that it holds.

    cached_tokens: those of the prompt that were found in the cache. generated: tokens of the answer so far.
    """

    request: int
    lora: tuple[tuple[str, float], ...]
    cells: int
    prompt_tokens: int
    cached_tokens: int
    generated: int
    max_tokens: int


@dataclass(frozen=True)
class Stats(Answer):
    """What the child is doing. parallel: requests at once for one set of adapters. adapters: contents that are loaded.

    steps: of all open contexts since they were opened; of their time, in seconds, decode_s was inside llama_decode and
    step_s is all. drafted: tokens tried because the same had followed before; accepted: those that were right.
    """

    parallel: int
    running: int
    waiting: int
    contexts: int
    adapters: tuple[str, ...]
    steps: int = 0
    decode_s: float = 0.0
    step_s: float = 0.0
    drafted: int = 0
    accepted: int = 0
    rows: tuple[RunningRow, ...] = ()

    def row(self) -> Sequence[Any]:
        *figures, rows = vars(self).values()
        return [*figures, [list(vars(row).values()) for row in rows]]

    @classmethod
    def of(cls, *row: Any) -> Stats:
        return replace(super().of(*row), rows=tuple(RunningRow(*one) for one in _tuples(row[-1])))


@dataclass(frozen=True)
class Begun(Answer):
    """The request has got its place and is being computed."""

    last = False


@dataclass(frozen=True)
class Piece(Answer):
    """What one token added to the answer. score: when scores were asked for."""

    last = False
    text: str
    score: TokenScore | None = None

    def row(self) -> Sequence[Any]:
        if self.score is None:
            return (self.text,)
        token, piece, logprob, top = self.score.token, self.score.piece, self.score.logprob, self.score.top
        return self.text, (token, _latin(piece), logprob, [(t, _latin(p), v) for t, p, v in top])

    @classmethod
    def of(cls, text: str, score: Any = None) -> Piece:
        if score is None:
            return cls(text)
        token, piece, logprob, top = score
        return cls(text, TokenScore(token, _bytes(piece), logprob, tuple((t, _bytes(p), v) for t, p, v in top)))


def _latin(piece: bytes) -> str:
    """Bytes as JSON's text, a character each."""
    return piece.decode("latin-1")


def _bytes(text: str) -> bytes:
    return text.encode("latin-1")


@dataclass(frozen=True)
class Finished(Answer):
    """The end of an answer: why (stop, length, cancelled), and the figures; times in seconds."""

    reason: str
    prompt_tokens: int
    completion_tokens: int
    prefill_s: float
    decode_s: float
    cached_tokens: int


@dataclass(frozen=True)
class Failed(Answer):
    """The order was not carried out."""

    error: SlmError

    def row(self) -> Sequence[Any]:
        error = self.error
        name = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _ERRORS)
        return name, error.what, error.found, error.hint

    @classmethod
    def of(cls, name: str, what: str, found: str, hint: str) -> Failed:
        return cls(_ERRORS[name](what, found=found, hint=hint))


AnyAnswer = Done | Opened | Tokens | Text | Embeddings | Stats | Begun | Piece | Finished | Failed

# --- orders ----------------------------------------------------------------------------------------------------------


class Order(WireMessage, Generic[R]):
    """What the child is to do. reply: the type of the answer that says it is done."""

    reply: type[R]


@dataclass(frozen=True)
class Open(Order[Opened]):
    """Open a model. The fields are those of `serve.engine.options.EngineOptions`.

    ends: tokens that end an answer beside llama.cpp's. identity: of the model and whatever else shapes cached states.
    """

    reply = Opened
    model: str
    threads: int
    context: int
    parallel: int
    hot: int
    draft: int
    ends: TokenIds = ()
    identity: str = ""
    cache_bytes: int = 0
    cache_folder: str = ""


@dataclass(frozen=True)
class Load(Order[Done]):
    """Load an adapter file under the hash of its content."""

    reply = Done
    content: str
    path: str


@dataclass(frozen=True)
class Unload(Order[Done]):
    """Forget an adapter as soon as no request uses it."""

    reply = Done
    content: str


@dataclass(frozen=True)
class AskStats(Order[Stats]):
    """Tell what you are doing."""

    reply = Stats


@dataclass(frozen=True)
class Tokenize(Order[Tokens]):
    """Token ids of a prompt. add_special: with BOS where the vocabulary has one."""

    reply = Tokens
    prompt: Segments
    add_special: bool

    @classmethod
    def of(cls, prompt: Any, add_special: bool) -> Tokenize:
        return cls(_segments(prompt), add_special)


@dataclass(frozen=True)
class Detokenize(Order[Text]):
    """The text of token ids."""

    reply = Text
    tokens: TokenIds


@dataclass(frozen=True)
class Embed(Order[Embeddings]):
    """The embeddings of texts, each a text or token ids. first: the number that errors give to the first of them."""

    reply = Embeddings
    texts: tuple[str | TokenIds, ...]
    first: int = 0


@dataclass(frozen=True)
class Generate(Order[Finished]):
    """Continue a prompt. lora: (content hash, scale) of the adapters.

    fit: let the answer end where the context ends, instead of refusing a max_tokens that does not fit.
    """

    reply = Finished
    prompt: Segments | TokenIds
    add_special: bool
    fit: bool
    lora: tuple[tuple[str, float], ...]
    sampling: SamplingOptions

    def row(self) -> Sequence[Any]:
        return self.prompt, self.add_special, self.fit, self.lora, vars(self.sampling)

    @classmethod
    def of(cls, prompt: Any, add_special: bool, fit: bool, lora: Any, sampling: Any) -> Generate:
        read = _segments(prompt) if prompt and isinstance(prompt[0], list) else tuple(prompt)
        options = SamplingOptions(**{name: _tuples(value) for name, value in sampling.items()})
        return cls(read, add_special, fit, _tuples(lora), options)


def _segments(rows: Any) -> Segments:
    return tuple(Segment(text, special) for text, special in rows)


@dataclass(frozen=True)
class Cancel(Order[Done]):
    """End the request that was ordered under the id `request`, wherever it is."""

    reply = Done
    request: int


AnyOrder = Open | Load | Unload | AskStats | Tokenize | Detokenize | Embed | Generate | Cancel
