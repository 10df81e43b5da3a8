"""Where a new request's tokens go inside a context, and what of the KV cache it may reuse.

Pure functions. Every sequence carries the key of the adapters (by content and scale) its cells were computed with,
and only sequences of the same key share cells: the cache's key is (adapters' content, tokens), never a name. It
knows nothing of llama.cpp handles.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SlotView:
    """One sequence of a context: whose cells it holds, for which tokens, what it may still grow to, and its use."""

    index: int
    key: str
    tokens: Sequence[int]
    busy: bool
    reserved: int
    last_used: int


@dataclass(frozen=True)
class Placement:
    """Slot to run in; slot to copy the first `keep` cells from (None: they are in place); idle slots to empty."""

    slot: int
    source: int | None
    keep: int
    evict: tuple[int, ...]


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many leading tokens two sequences share."""
    low, high = 0, min(len(left), len(right))
    while low < high:  # comparing slices is far faster than a loop over tokens
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def worth_waiting(prompt: Sequence[int], shared: int, being_read: Iterable[Sequence[int]], *, gain: int) -> bool:
    """Whether one of the prompts that are being read will soon share at least `gain` more tokens than `shared`.

    Of several requests that arrive together with the same system prompt, one reads it and the others copy its cells.
    """
    return any(common_prefix(other, prompt) >= shared + gain for other in being_read)


def place(
    slots: Sequence[SlotView], key: str, prompt: Sequence[int], *, reserve: int, cells: int, can_copy: bool = True
) -> Placement | None:
    """Choose a slot for `prompt` under the adapters `key`; it may grow to `reserve` tokens in a context of `cells`.

    None means it has to wait for a running request to end. Other idle sequences leave the context. At least one
    prompt token is always decoded again, because its logits are needed. can_copy: whether cells can be shared between
    sequences.
    """
    idle = [slot for slot in slots if not slot.busy]
    free = cells - sum(slot.reserved for slot in slots if slot.busy) - reserve
    if not idle or free < 0:
        return None
    shared = {
        slot.index: min(common_prefix(slot.tokens, prompt), len(prompt) - 1) if slot.key == key else 0 for slot in slots
    }
    best = max(slots, key=lambda slot: (shared[slot.index], not slot.busy, slot.last_used))
    keep = shared[best.index]
    # An idle conversation that goes on is continued where it is; a prefix that others may want again
    # (a system prompt, a sequence still running) is copied, which is metadata only in a unified cache.
    in_place = keep > 0 and not best.busy and (not can_copy or keep * 2 >= len(best.tokens))
    if in_place:
        target, source = best, None
    else:
        target = min(idle, key=lambda slot: (slot is best, len(slot.tokens) > 0, slot.last_used))
        source = best.index if keep > 0 and can_copy and target is not best else None
        keep = keep if source is not None or target is best else 0
    # Every row of a step is multiplied with all cells in use, so idle ones would slow down those at work.
    evict = tuple(slot.index for slot in idle if slot is not target and slot.tokens)
    return Placement(target.index, source, keep, evict)
