"""What is asked of an engine, in which turns, and which figures come of it. Pure: `AskEngine` is whoever answers.

A figure of several streams is taken while all of them are answered: their prompts are read before, by an order of one
token each, which every engine with a prefix cache keeps.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from slm.errors import EngineError

COLD_START, MEMORY = "cold_start_s", "memory_mb"
_ROOM = 256  # llama.cpp gives cells in steps of so many (src/llama-context.cpp, `n_ctx_seq`)
_FEW = 64
_NORMAL = 1  # a token of text, by GGUF's numbers


@dataclass(frozen=True)
class TimedStream:
    """One answer: when its pieces came, in seconds since all prompts were sent, and how many tokens they were."""

    times: tuple[float, ...]
    tokens: int


# Sends prompts of token ids at once and waits for so many tokens of each. Raises EngineError.
AskEngine = Callable[[Sequence[Sequence[int]], int], list[TimedStream]]


@dataclass(frozen=True)
class EnginePlan:
    """Sizes in tokens: of the prompt that is read, of the prompts before a stream (depth), of a stream, of the short
    prompts and of the long one. repeat: how often every engine has its turn."""

    prefill: int = 512
    depth: int = 256
    decode: int = 64
    streams: tuple[int, ...] = (1, 4, 16)
    short_prompts: int = 16
    short: int = 24
    long: int = 700
    repeat: int = 3

    @property
    def most(self) -> int:
        """Requests at once."""
        return max(*self.streams, self.short_prompts)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with its answer, in llama.cpp's steps."""
        needed = max(self.prefill + 1, self.long + 1, self.depth + self.decode, self.short + self.decode)
        return -(-needed // _ROOM) * _ROOM


@dataclass(frozen=True)
class EngineFigure:
    """A figure of the table: its key, what it is called, and whether more is better."""

    key: str
    title: str
    more_is_better: bool = False


def figures(plan: EnginePlan) -> list[EngineFigure]:
    """The figures of a plan, in the table's order."""
    return [
        EngineFigure("prefill_tokens_per_s", f"prefill {plan.prefill}", True),
        *(EngineFigure(decode_key(n), f"decode {n}", True) for n in plan.streams),
        EngineFigure("last_first_token_s", f"{plan.short_prompts} at once, s"),
        EngineFigure("ttft_s", f"first of {plan.long}, s"),
        EngineFigure(COLD_START, "start, s"),
        EngineFigure(MEMORY, "MB"),
    ]


def decode_key(streams: int) -> str:
    """The key of a decoding figure."""
    return f"decode_{streams}_tokens_per_s"


def turns(names: Sequence[str], repeat: int) -> Iterator[tuple[int, str]]:
    """(round from 1, name): everybody once, then everybody again, so that a slow hour of the machine is everybody's."""
    for number in range(1, repeat + 1):
        for name in names:
            yield number, name


class MadePrompts:
    """Prompts of token ids, made of whole words where the vocabulary has some; none begins as another one does."""

    def __init__(self, tokens: Sequence[str], types: Iterable[int] | None) -> None:
        """tokens and types: the vocabulary's, as a GGUF file has them; types are not in every file."""
        kinds = [_NORMAL] * len(tokens) if types is None else types
        normal = [id for id, kind in enumerate(kinds) if kind == _NORMAL]
        words = [
            id for id in normal if tokens[id][:1] in "Ġ▁" and tokens[id][1:].isascii() and tokens[id][1:].isalpha()
        ]
        self._ids = words if len(words) >= _FEW else normal
        self._count = 0

    def next(self, length: int) -> list[int]:
        """A prompt that was not there before."""
        self._count += 1
        made = random.Random(self._count)
        first = self._ids[self._count % len(self._ids)]
        return [first, *made.choices(self._ids, k=length - 1)]


def taken(ask: AskEngine, prompts: MadePrompts, plan: EnginePlan) -> tuple[dict[str, float | None], list[str]]:
    """(figures of one turn, why one is missing). An order that fails leaves its own figure out."""
    found: dict[str, float | None] = {}
    problems: list[str] = []

    def take(key: str, figure: Callable[[], float | None]) -> None:
        try:
            found[key] = figure()
            if found[key] is None:
                problems.append(f"{key}: the streams were not answered at the same time")
        except EngineError as error:
            found[key] = None
            problems.append(f"{key}: {error}")

    def prefill() -> float:
        return plan.prefill / last_first_token(ask([prompts.next(plan.prefill)], 1))

    def decode(streams: int) -> float | None:
        asked = [prompts.next(plan.depth) for _ in range(streams)]
        ask(asked, 1)
        return decode_rate(ask(asked, plan.decode))

    def short() -> float:
        return last_first_token(ask([prompts.next(plan.short) for _ in range(plan.short_prompts)], plan.decode))

    take("prefill_tokens_per_s", prefill)  # not counted: engines make themselves ready at the first of a size
    problems.clear()
    take("prefill_tokens_per_s", prefill)
    for n in plan.streams:
        take(decode_key(n), partial(decode, n))
    take("last_first_token_s", short)
    take("ttft_s", lambda: last_first_token(ask([prompts.next(plan.long)], 1)))
    return found, problems


def last_first_token(streams: Sequence[TimedStream]) -> float:
    """Seconds until every stream has begun."""
    return max(stream.times[0] for stream in streams)


def decode_rate(streams: Sequence[TimedStream]) -> float | None:
    """Tokens per second from the last beginning to the first end; None where there is no such time.

    A piece may be several tokens: a stream's pieces are taken for equally many each.
    """
    begin = last_first_token(streams)
    end = min(stream.times[-1] for stream in streams)
    if end <= begin:
        return None
    counted = sum(
        stream.tokens * sum(begin < at <= end for at in stream.times) / len(stream.times) for stream in streams
    )
    return counted / (end - begin)
