"""Puts the sequences of a batch end to end, without padding, and computes their common beginnings once.

A batch becomes a tree of pieces: a run of tokens that several sequences begin with is one piece, and what follows
it in each of them is a piece of its own, whose attention sees the pieces before it. In a causal model the states of
a common beginning are the same in every sequence, so losses and gradients are those of the separate sequences.
It knows nothing of models.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from train.data.masks import IGNORE, Encoded

# A shared beginning shorter than this saves less than its own attention call costs.
_MIN_SHARED = 8


@dataclass(frozen=True)
class PackPiece:
    """Rows `start` to `end` of a pack, and the (start, end) of the pieces that stand before it, in their order."""

    start: int
    end: int
    before: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Pack:
    """A batch without padding, a row for each token that is computed.

    ids, positions: of each row; positions begin at 0 in every sequence. owners: the sequence (a number in the batch)
    each row was taken from. rows, labels: of each supervised token, the row whose output predicts it, and the token.
    tokens: of the sequences, common beginnings counted in each of them.
    """

    ids: list[int]
    positions: list[int]
    owners: list[int]
    pieces: tuple[PackPiece, ...]
    rows: list[int]
    labels: list[int]
    tokens: int


def seen_length(item: Encoded) -> int:
    """How many tokens of a sequence a model must see to predict its last label; what follows has no effect."""
    return max(n for n, label in enumerate(item.labels) if label != IGNORE)


def pack(items: Sequence[Encoded], *, share: bool = True) -> Pack:
    """The pack of some sequences; with `share`, beginnings of 8 tokens and more that they have in common stand once."""
    texts = [item.ids[: seen_length(item)] for item in items]
    order = sorted(range(len(items)), key=lambda n: texts[n]) if share else list(range(len(items)))
    ids: list[int] = []
    positions: list[int] = []
    owners: list[int] = []
    pieces: list[PackPiece] = []
    rows_of: list[list[int]] = [[] for _ in items]
    for members, begin, end, parent in _pieces([texts[n] for n in order], share):
        before = () if parent is None else (*pieces[parent].before, (pieces[parent].start, pieces[parent].end))
        piece = PackPiece(len(ids), len(ids) + end - begin, before)
        pieces.append(piece)
        owner = order[members[0]]
        ids += texts[owner][begin:end]
        positions += range(begin, end)
        owners += [owner] * (end - begin)
        for member in members:
            rows_of[order[member]] += range(piece.start, piece.end)
    wanted = [(n, at) for n, item in enumerate(items) for at, label in enumerate(item.labels) if at and label != IGNORE]
    return Pack(
        ids, positions, owners, tuple(pieces),
        rows=[rows_of[n][at - 1] for n, at in wanted],
        labels=[items[n].labels[at] for n, at in wanted],
        tokens=sum(map(len, texts)),
    )  # fmt: skip


def _pieces(texts: Sequence[Sequence[int]], share: bool) -> Iterator[tuple[range, int, int, int | None]]:
    """(which texts, first token, token after the last, number of the piece before) of every piece of sorted texts."""
    common = [_common(one, other) if share else 0 for one, other in itertools.pairwise(texts)]
    number = 0
    waiting: list[tuple[range, int, int | None]] = [(range(len(texts)), 0, None)]
    while waiting:
        group, begin, parent = waiting.pop()
        first = group.start
        for last in group:
            if last + 1 < group.stop and (
                common[last] >= begin + _MIN_SHARED or common[last] == len(texts[last]) == len(texts[last + 1])
            ):
                continue  # the next one has enough in common with this one, or is the same
            members = range(first, last + 1)
            end = min(common[first:last]) if len(members) > 1 else len(texts[first])
            first = last + 1
            if end > begin:
                yield members, begin, end, parent
                if len(members) > 1:
                    waiting.append((members, end, number))
                number += 1


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    shorter = min(len(left), len(right))
    return next((n for n in range(shorter) if left[n] != right[n]), shorter)
