"""How prompts with a common beginning are read in steps: which of their tokens are in which batch. Pure.

A batch is filled with the rest of one prompt and the beginning of the next ones. Once a prompt is read its cells are
free for the next: every row of a step is multiplied with all cells in use.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

# Prompts of a step, each a sequence of its own; and rows of logits, each as long as the vocabulary.
MOST_PROMPTS, MOST_LOGITS = 16, 32


@dataclass(frozen=True)
class PieceTokens:
    """A prompt's token ids, where its first piece ends, and the positions of the last tokens of all others."""

    tokens: Sequence[int]
    head: int
    ends: Sequence[int]


@dataclass(frozen=True)
class Span:
    """The tokens from `start` to before `stop` of the prompt of that number."""

    prompt: int
    start: int
    stop: int


def shared_beginning(prompts: Sequence[PieceTokens]) -> int:
    """How many leading tokens all prompts have in common; no more than any first piece has."""
    first = prompts[0].tokens
    shared = min(prompt.head for prompt in prompts)
    for prompt in prompts:
        if prompt.tokens[:shared] != first[:shared]:
            shared = next(n for n in range(shared) if prompt.tokens[n] != first[n])
    return shared


def steps(prompts: Sequence[PieceTokens], shared: int, *, cells: int, chunk: Callable[[], int]) -> Iterator[list[Span]]:
    """The spans of each step after the shared beginning, which is in the cells already.

    Each prompt fits into the cells. A prompt that is read leaves them after the step. chunk() is how many tokens the
    next step may have.
    """
    number, at = 0, shared
    while number < len(prompts):
        rows, logits, left = chunk(), MOST_LOGITS, cells - at
        spans: list[Span] = []
        while number < len(prompts) and len(spans) < MOST_PROMPTS and min(rows, logits, left) > 0:
            prompt = prompts[number]
            stop = _stop(prompt, at, min(rows, left), logits)
            spans.append(Span(number, at, stop))
            rows, left = rows - (stop - at), left - (stop - at)
            logits -= bisect_left(prompt.ends, stop) - bisect_left(prompt.ends, at)
            at = stop
            if stop == len(prompt.tokens):
                number, at = number + 1, shared
            else:
                break
        yield spans


def _stop(prompt: PieceTokens, at: int, rows: int, logits: int) -> int:
    """Where the span of a prompt from `at` ends that has so many rows and rows of logits at most."""
    stop = min(len(prompt.tokens), at + rows)
    beyond = bisect_left(prompt.ends, at) + logits
    return min(stop, prompt.ends[beyond]) if beyond < len(prompt.ends) else stop
