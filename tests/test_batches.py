"""Texts to batches by length: every text once, within the bounds, in either order."""

from __future__ import annotations

import pytest

from slm.native.batches import batches


@pytest.mark.parametrize("longest_first", [True, False])
@pytest.mark.parametrize("sizes", [[5], [600, 3, 512, 513, 1], [8] * 200, [3, 700, 5, 500, 12, 12, 1, 1, 1, 400], []])
def test_every_text_is_in_one_batch_that_holds_it(sizes: list[int], longest_first: bool) -> None:
    made = list(batches(sizes, tokens=512, texts=64, longest_first=longest_first))
    assert sorted(number for batch in made for number in batch) == list(range(len(sizes)))
    for batch in made:
        assert len(batch) <= 64 and (len(batch) == 1 or sum(sizes[number] for number in batch) <= 512)


def test_the_longest_or_the_shortest_come_first_and_those_alike_in_their_order() -> None:
    sizes = [3, 700, 5, 500, 12, 12, 1]
    assert list(batches(sizes, 512, 2, longest_first=True)) == [[1], [3, 4], [5, 2], [0, 6]]
    assert list(batches(sizes, 512, 2, longest_first=False)) == [[6, 0], [2, 4], [5, 3], [1]]
