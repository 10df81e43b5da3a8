"""Texts to batches of neighbours in length. It knows nothing of who computes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def batches(sizes: Sequence[int], tokens: int, texts: int, *, longest_first: bool) -> Iterator[list[int]]:
    """The numbers of the texts of each batch: so many tokens and texts at most; one that is longer is alone.

    sizes: of each text, in tokens. longest_first: for cores that share the batches, so that they end at about the same
    time; the shortest come first where answers are waited for. Texts of one length stay in their order.
    """
    batch: list[int] = []
    filled = 0
    for number in sorted(range(len(sizes)), key=lambda n: -sizes[n] if longest_first else sizes[n]):
        if batch and (filled + sizes[number] > tokens or len(batch) == texts):
            yield batch
            batch, filled = [], 0
        batch.append(number)
        filled += sizes[number]
    if batch:
        yield batch
