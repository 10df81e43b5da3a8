"""What the replicas last said of themselves, for `/health`, `/slots` and `/metrics`. It knows nothing of Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serve.child.messages import Stats

REPORT_S = 1.0
_FORGET_S = 10.0


@dataclass(frozen=True)
class ReplicaReport:
    """A replica at this moment. machine: Ray's name of the node it is on."""

    replica: str
    machine: str
    state: str
    restarts: int
    stats: Stats | None


class Board:
    """The youngest report of every replica; one that has been silent for ten seconds is forgotten."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rows: dict[str, tuple[float, ReplicaReport]] = {}

    def report(self, row: ReplicaReport) -> None:
        """Take a replica's word."""
        self._rows[row.replica] = self._clock(), row

    def rows(self) -> list[ReplicaReport]:
        """Who has been heard of lately, the longest known first."""
        young = self._clock() - _FORGET_S
        self._rows = {name: kept for name, kept in self._rows.items() if kept[0] > young}
        return [row for _, row in self._rows.values()]


def summed(rows: Sequence[ReplicaReport]) -> Stats:
    """The figures of all replicas together. parallel: requests at once for one set of adapters, on all of them."""
    told = [row.stats for row in rows if row.stats]
    return Stats(
        parallel=sum(s.parallel for s in told),
        running=sum(s.running for s in told),
        waiting=sum(s.waiting for s in told),
        contexts=sum(s.contexts for s in told),
        adapters=tuple(sorted({content for s in told for content in s.adapters})),
        steps=sum(s.steps for s in told),
        decode_s=sum(s.decode_s for s in told),
        step_s=sum(s.step_s for s in told),
        drafted=sum(s.drafted for s in told),
        accepted=sum(s.accepted for s in told),
        rows=tuple(row for s in told for row in s.rows),
    )


def state_of(rows: Sequence[ReplicaReport]) -> str:
    """ready when one replica is, else what the first says, or starting."""
    states = [row.state for row in rows]
    return "ready" if "ready" in states else next(iter(states), "starting")
