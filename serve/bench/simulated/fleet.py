"""A simulation of many machines behind their entrances, from service times that were measured on one or two.

Closed loops: each client asks again as soon as it is answered. An engine computes all its requests side by side
(processor sharing) at the rate that was measured for so many at once; a request goes to the less loaded of two
different engines that are drawn at random, as Ray Serve's router does it (the power of two choices). An entrance serves
in order of arrival: some time for the request, and the rest, for the pieces of its answer, when they are there. It
knows nothing of Ray, and measures nothing.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from serve.bench.load import quantile

_ANSWERS = 12  # of each client; the first third, while the queues fill, is not counted
_BEFORE = 0.25  # of an entrance's work for a request: what is done before an engine is asked


@dataclass(frozen=True)
class EngineLoad:
    """What one engine does for so many clients: answers a second, and the share of a request's time before its first
    token."""

    clients: int
    answers_per_s: float
    first_share: float


@dataclass(frozen=True)
class ServiceTimes:
    """What was measured. engine: at least one row, by rising clients. entrance_s: processor seconds of entrance and
    proxy for one answer. tokens: of an answer. one_adapter: the engine again, all its clients asking the same adapter,
    which is what it gets from a router that keeps an adapter's requests together; empty: as `engine`."""

    engine: tuple[EngineLoad, ...]
    entrance_s: float
    tokens: float
    one_adapter: tuple[EngineLoad, ...] = ()

    def rows(self, machines: int) -> tuple[EngineLoad, ...]:
        """What is true of each of so many engines."""
        return self.one_adapter if machines > 1 and self.one_adapter else self.engine


@dataclass(frozen=True)
class FleetLoad:
    """What the simulation gives. Times in seconds; entrance_busy: share of their time that the entrances work."""

    machines: int
    clients: int
    entrances: int
    tokens_per_s: float
    ttft_p95_s: float
    answer_p95_s: float
    entrance_busy: float


def load_of(rows: Sequence[EngineLoad], clients: float) -> EngineLoad:
    """An engine's figures for so many clients, between the measured ones by straight lines, beyond them the last."""
    if clients <= rows[0].clients:
        # Fewer than were measured: each is served as fast as those were.
        one = rows[0]
        return EngineLoad(int(clients), one.answers_per_s * clients / one.clients, one.first_share)
    for low, high in itertools.pairwise(rows):
        if clients <= high.clients:
            part = (clients - low.clients) / (high.clients - low.clients)
            return EngineLoad(
                int(clients), low.answers_per_s + part * (high.answers_per_s - low.answers_per_s),
                low.first_share + part * (high.first_share - low.first_share),
            )  # fmt: skip
    return EngineLoad(int(clients), rows[-1].answers_per_s, rows[-1].first_share)


def most_machines(times: ServiceTimes, clients: int, entrances: int) -> float:
    """How many machines of so many clients each keep the entrances busy all the time: there they are the limit."""
    each = load_of(times.rows(2), clients).answers_per_s * times.entrance_s
    return entrances / each if each > 0 else float("inf")


class _Machine:
    """An engine: requests share it, and each has done the work of `done` since the engine began."""

    def __init__(self, rows: Sequence[EngineLoad], speed: float) -> None:
        self._rows, self._speed = rows, speed
        self._now = self._done = 0.0
        self.requests: list[tuple[float, int]] = []  # (work at which it is answered, client)
        self.version = 0

    def _rate(self) -> float:
        count = len(self.requests)
        return self._speed * load_of(self._rows, count).answers_per_s / count if count else 0.0

    def advance(self, now: float) -> None:
        self._done += (now - self._now) * self._rate()
        self._now = now

    def enter(self, now: float, client: int) -> None:
        self.advance(now)
        heapq.heappush(self.requests, (self._done + 1.0, client))
        self.version += 1

    def leave(self, now: float) -> int:
        self.advance(now)
        self.version += 1
        return heapq.heappop(self.requests)[1]

    def next_end(self) -> float:
        """When the next answer is whole, if nobody comes before."""
        return self._now + max(0.0, self.requests[0][0] - self._done) / self._rate()


class _Entrances:
    """Servers that take work in order of arrival."""

    def __init__(self, count: int) -> None:
        self._free = [0.0] * count
        self.worked = 0.0

    def serve(self, now: float, seconds: float) -> float:
        """When work that comes now is done."""
        end = max(now, self._free[0]) + seconds
        heapq.heapreplace(self._free, end)
        self.worked += seconds
        return end


def simulate(
    times: ServiceTimes, machines: int, clients: int, *, entrances: int = 1, speed: float = 1.0, seed: int = 0
) -> FleetLoad:
    """So many machines with so many clients each. speed: of their engines, 1 as measured (less where entrances take
    from the same cores)."""
    drawn = random.Random(seed)
    rows = times.rows(machines)
    doors, engines = _Entrances(entrances), [_Machine(rows, speed) for _ in range(machines)]
    people = machines * clients
    events: list[tuple[float, int, str, int, int]] = []
    number = 0

    def plan(when: float, what: str, who: int, version: int = 0) -> None:
        nonlocal number
        number += 1
        heapq.heappush(events, (when, number, what, who, version))

    began, entered, at, left = [0.0] * people, [0.0] * people, [0] * people, [_ANSWERS] * people
    first: list[float] = []
    whole: list[float] = []
    counted, opened, ended = 0, 0.0, 0.0
    skip = people * _ANSWERS // 3
    for client in range(people):  # not all at the same moment
        plan(drawn.random() * 1.0 / max(1e-9, load_of(rows, 1).answers_per_s), "ask", client)
    answered = 0
    while events and answered < people * _ANSWERS * 2 // 3:  # until the first clients have nothing more to ask
        now, _, what, who, version = heapq.heappop(events)
        if what == "ask":
            began[who] = now
            plan(doors.serve(now, _BEFORE * times.entrance_s), "enter", who)
        elif what == "enter":
            pair = drawn.sample(range(machines), min(2, machines))
            chosen = min(pair, key=lambda one: len(engines[one].requests))
            entered[who], at[who] = now, chosen
            engines[chosen].enter(now, who)
            plan(engines[chosen].next_end(), "end", chosen, engines[chosen].version)
        elif what == "end":
            engine = engines[who]
            if version != engine.version:
                continue
            count = len(engine.requests)
            client = engine.leave(now)
            share = load_of(rows, count).first_share
            done = doors.serve(now, (1 - _BEFORE) * times.entrance_s)
            late = done - now - (1 - _BEFORE) * times.entrance_s  # what waits at the door delays the first piece too
            answered += 1
            if answered == skip:
                opened, doors.worked = now, 0.0
            if answered > skip:
                first.append(entered[client] - began[client] + share * (now - entered[client]) + late)
                whole.append(done - began[client])
                counted, ended = counted + 1, now
            left[client] -= 1
            if left[client]:
                plan(done, "ask", client)
            if engine.requests:
                plan(engine.next_end(), "end", who, engine.version)
    seconds = max(ended - opened, 1e-9)
    return FleetLoad(
        machines, people, entrances, round(counted * times.tokens / seconds, 1), _of(first), _of(whole),
        round(min(1.0, doors.worked / seconds / entrances), 3),
    )  # fmt: skip


def _of(values: Sequence[float]) -> float:
    return round(quantile(values, 0.95) or 0.0, 4)
