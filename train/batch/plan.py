"""The whole run as batches of indices, the n-th of which is known without going through those before it.

It knows lengths and weights only: nothing of texts, tokens or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from slm.errors import InputError

# A pool of this many batches is sorted by length before it is cut: little padding, and still mixed every epoch.
_POOL = 8
# What a stream of random numbers is for, so that no two are the same.
_PICK, _SHUFFLE, _BATCHES = range(3)
_Indices = npt.NDArray[np.int64]


class BatchPlan:
    """Which sequences are in which micro-batch, over all epochs, from the seed alone.

    lengths: tokens of each sequence. weights: how often each is seen an epoch (none: once each). Of the sequences
    with the weight 2.5 an epoch holds all twice and a half of them once more, another half in the next epoch, so that
    over the epochs none is favoured. Sequences of a batch are of like length; an epoch's last batch may be smaller.
    The same arguments give the same plan with any version of numpy.

    Raises InputError when there is no sequence, or when a weight is not a positive number.
    """

    def __init__(
        self,
        lengths: Sequence[int] | npt.NDArray[Any],
        batch_size: int,
        seed: int,
        weights: Sequence[float] | npt.NDArray[Any] | None = None,
    ) -> None:
        self._lengths = np.asarray(lengths, dtype=np.int64)
        self._batch_size, self._seed = batch_size, seed
        if not len(self._lengths):
            raise InputError("there is no sequence to make a batch of")
        given = np.ones(len(self._lengths)) if weights is None else np.asarray(weights, dtype=np.float64)
        if len(given) != len(self._lengths) or not np.all((given > 0) & np.isfinite(given)):
            raise InputError("every sequence needs a weight that is a positive number")
        whole = np.floor(given).astype(np.int64)
        self._always: _Indices = np.repeat(np.arange(len(given)), whole)
        self._drawn = [_shares(given, value, seed, n) for n, value in enumerate(np.unique(given[given > whole]))]
        self._per_epoch = len(self._always) + sum(count for _, count in self._drawn)
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    @property
    def batches_per_epoch(self) -> int:
        """How many micro-batches one epoch has; the same for every epoch."""
        return -(-self._per_epoch // self._batch_size)

    def batch(self, n: int) -> list[int]:
        """The indices of micro-batch `n`, counted from the start of the run over all epochs."""
        epoch, place = divmod(n, self.batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._epoch_order(epoch)
        start = place * self._batch_size
        chosen: list[int] = self._order[start : start + self._batch_size].tolist()
        return chosen

    def _epoch_order(self, epoch: int) -> _Indices:
        picked = [self._always, *(_window(members, count, epoch) for members, count in self._drawn)]
        order = np.concatenate(picked)
        order = order[_permutation(len(order), self._seed, _SHUFFLE, epoch)]
        full = len(order) // self._batch_size
        body, last = order[: full * self._batch_size], order[full * self._batch_size :]
        pool = np.arange(len(body)) // (self._batch_size * _POOL)
        batches = body[np.lexsort((self._lengths[body], pool))].reshape(full, self._batch_size)
        return np.concatenate([batches[_permutation(full, self._seed, _BATCHES, epoch)].ravel(), last])


def _shares(weights: npt.NDArray[np.float64], value: float, seed: int, group: int) -> tuple[_Indices, int]:
    """(the sequences of the weight `value`, shuffled; how many of them an epoch draws for its fraction)."""
    members = np.flatnonzero(weights == value)
    count = round((value % 1.0) * len(members))
    shuffled = members[_permutation(len(members), seed, _PICK, group)]
    return shuffled, max(count, 1) if value < 1.0 else count  # a small file of small weight is not left out


def _window(members: _Indices, count: int, epoch: int) -> _Indices:
    """The next `count` members after those that the earlier epochs took, going round in a circle."""
    return members[(epoch * count + np.arange(count)) % len(members)]


def _permutation(size: int, *key: int) -> _Indices:
    """A permutation of range(size). The raw numbers of a bit generator are stable between versions (NumPy's NEP 19)."""
    return np.argsort(np.random.PCG64(np.random.SeedSequence(key)).random_raw(size), kind="stable")
