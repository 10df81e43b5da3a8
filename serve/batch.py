"""The scheduling policy: who gets how many tokens in a step, which context steps next, who must make room.

Pure functions over plain data. It knows nothing of llama.cpp handles, of adapters' files or of HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PREFILL_CHUNK = 256


@dataclass(frozen=True)
class Work:
    """One running sequence: its slot, and how many prompt tokens are not decoded yet (0: it generates)."""

    slot: int
    prompt_left: int


def plan_step(work: Sequence[Work], *, chunk: int = PREFILL_CHUNK) -> dict[int, int]:
    """Tokens for each slot in the next decode call.

    Every generating sequence gets its one token, so a long prompt never stops those that are answering. Prompts
    share `chunk` tokens evenly, and what a short prompt does not need goes to the longer ones: the short one
    starts answering first.
    """
    plan = {item.slot: 1 for item in work if item.prompt_left == 0}
    waiting = sorted((item for item in work if item.prompt_left > 0), key=lambda item: item.prompt_left)
    budget = chunk
    for position, item in enumerate(waiting):
        share = min(item.prompt_left, budget // (len(waiting) - position))
        if share > 0:
            plan[item.slot] = share
            budget -= share
    return plan


def next_in_turn(keys: Sequence[str], last: str | None) -> str | None:
    """The key after `last` in a fixed cyclic order (sorted), so that every context with work gets its turn."""
    if not keys:
        return None
    ordered = sorted(keys)
    if last is None:
        return ordered[0]
    return next((key for key in ordered if key > last), ordered[0])


@dataclass(frozen=True)
class ContextLoad:
    """One open context: when it last worked (a counter), its running requests, the most tokens one has left."""

    last_used: int
    running: int
    most_left: int


def make_room(contexts: Mapping[str, ContextLoad], *, hot: int) -> tuple[str | None, str | None]:
    """(context to close now, context to let run dry) for opening one more among at most `hot`.

    Idle contexts go first, the least recently used before others. When all are working, the one that will be
    done soonest takes no new requests until it is empty, so that a waiting adapter is never starved.
    """
    if len(contexts) < hot:
        return None, None
    idle = [key for key, load in contexts.items() if load.running == 0]
    if idle:
        return min(idle, key=lambda key: (contexts[key].last_used, key)), None
    return None, min(contexts, key=lambda key: (contexts[key].most_left, key))
