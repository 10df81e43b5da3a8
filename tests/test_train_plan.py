"""The plan of a run: what each batch holds, the same from any place it is asked from."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.errors import InputError
from train.batch.plan import BatchPlan

lengths = st.lists(st.integers(1, 2000), min_size=1, max_size=80)
batch_sizes = st.integers(1, 9)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def weighted(draw: st.DrawFn) -> tuple[list[int], list[float]]:
    """Lengths, and weights as files have them: a few values, each of many sequences."""
    sizes = draw(lengths)
    values = draw(st.lists(st.floats(0.01, 4), min_size=1, max_size=3))
    return sizes, [values[n % len(values)] for n in range(len(sizes))]


def epoch(plan: BatchPlan, number: int) -> list[int]:
    start = number * plan.batches_per_epoch
    return [index for n in range(plan.batches_per_epoch) for index in plan.batch(start + n)]


@given(lengths, batch_sizes, seeds)
def test_without_weights_every_sequence_comes_once_an_epoch(sizes: list[int], batch_size: int, seed: int) -> None:
    plan = BatchPlan(sizes, batch_size, seed)
    assert plan.batches_per_epoch == -(-len(sizes) // batch_size)
    for number in (0, 1, 7):
        assert sorted(epoch(plan, number)) == list(range(len(sizes)))
    counts = [len(plan.batch(n)) for n in range(plan.batches_per_epoch)]
    assert counts[:-1] == [batch_size] * (len(counts) - 1) and 1 <= counts[-1] <= batch_size


@given(weighted(), batch_sizes, seeds)
def test_a_weight_is_how_often_a_sequence_comes_an_epoch(
    data: tuple[list[int], list[float]], batch_size: int, seed: int
) -> None:
    sizes, weights = data
    plan = BatchPlan(sizes, batch_size, seed, weights)
    for number in (0, 3):
        seen = Counter(epoch(plan, number))
        for index, weight in enumerate(weights):
            assert seen[index] in (math.floor(weight), math.ceil(weight))
        for weight, members in ((w, [n for n, v in enumerate(weights) if v == w]) for w in set(weights)):
            total = sum(seen[n] for n in members)
            assert abs(total - weight * len(members)) <= (1 if weight < 1 else 0.5)


@given(weighted(), seeds)
def test_over_the_epochs_no_sequence_of_a_weight_is_favoured(data: tuple[list[int], list[float]], seed: int) -> None:
    sizes, weights = data
    plan = BatchPlan(sizes, 4, seed, weights)
    for last in (1, 2, 5):
        seen = Counter(index for number in range(last) for index in epoch(plan, number))
        for weight in set(weights):
            counts = [seen[n] for n, value in enumerate(weights) if value == weight]
            assert max(counts) - min(counts) <= 1


@given(weighted(), batch_sizes, seeds, st.lists(st.integers(0, 500), min_size=1, max_size=12))
def test_a_batch_is_the_same_wherever_one_begins(
    data: tuple[list[int], list[float]], batch_size: int, seed: int, asked: list[int]
) -> None:
    sizes, weights = data
    one = BatchPlan(sizes, batch_size, seed, weights)
    for n in asked:
        assert one.batch(n) == BatchPlan(sizes, batch_size, seed, weights).batch(n)


def test_batches_have_like_lengths_and_come_in_another_order_each_epoch_and_with_another_seed() -> None:
    sizes = [(n * 37) % 100 for n in range(43)]
    plan = BatchPlan(sizes, 4, seed=5)
    assert epoch(plan, 0) != epoch(plan, 1) and epoch(plan, 0) != epoch(BatchPlan(sizes, 4, seed=6), 0)
    spread = [max(part) - min(part) for part in ([sizes[i] for i in plan.batch(n)] for n in range(10))]
    assert sum(spread) / len(spread) < 20  # 59 for random batches of this set


def test_the_plan_is_the_one_that_earlier_versions_made() -> None:
    """A run that is resumed after an update goes on with the batches it would have had."""
    plan = BatchPlan([3, 1, 4, 1, 5, 9, 2, 6], 3, seed=7, weights=[1, 1, 1, 1, 0.5, 0.5, 0.5, 2])
    assert [plan.batch(n) for n in (0, 1, 2, 1000)] == [[1, 3, 6], [2, 7, 7], [0, 4], [3, 1, 0]]


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, math.nan], [1.0, math.inf]])
def test_weights_that_make_no_sense_are_refused(weights: list[float]) -> None:
    with pytest.raises(InputError, match="positive number"):
        BatchPlan([3, 4], 1, 0, weights)


def test_a_plan_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="no sequence"):
        BatchPlan([], 1, 0)
