"""The scheduling policy: who gets how many tokens in a step, whose turn it is, which context takes a request.

Pure functions and plain state, no clock of its own. It knows nothing of llama.cpp handles, of adapters' files,
of threads or of HTTP.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

# A step should not last longer than this, so that arrivals, cancellations and other contexts wait little.
STEP_S = 0.1
# One that nobody waits for with a next token: products of many rows lay out their weights anew for each step.
CALM_STEP_S = 0.4
SMALLEST_CHUNK, LARGEST_CHUNK = 32, 512
# So few tokens of a prompt are not left for a step of their own.
REMAINDER = 8
# Tokens of one sequence's draft, and of all in one step; and what a step costs beside its rows, in rows.
LONGEST_DRAFT, MOST_DRAFTED, STEP_COST = 7, 24, 2.75
# Reading so many tokens again costs more than computing in a less suitable context.
LONG_BEGINNING = 256
# Changing a context's adapter makes llama.cpp plan its graphs anew (about half a token's time): not at every step.
QUANTUM = 16


@dataclass(frozen=True)
class Work:
    """One running sequence: its slot, how many prompt tokens are not decoded yet (0: it generates), its arrival.

    chances: of each token of a draft of what comes next, that it and all before it are right.
    """

    slot: int
    prompt_left: int
    arrived: int = 0
    chances: Sequence[float] = ()


def plan_step(work: Sequence[Work], *, chunk: int) -> dict[int, int]:
    """Tokens for each slot in the next decode call.

    Every generating sequence gets its one token, so a long prompt never stops those that are answering, and those of
    its draft that are worth their rows. `chunk` tokens go to prompts: a quarter of them to the one that has waited
    longest, so that none starves, the rest to the shortest first, because an almost read prompt starts answering
    soonest. The last of them may take up to `REMAINDER` more, when that is all it lacks.
    """
    plan = with_drafts([item for item in work if item.prompt_left == 0])
    prompts = sorted((item for item in work if item.prompt_left > 0), key=lambda item: (item.prompt_left, item.arrived))
    if not prompts:
        return plan
    oldest = min(prompts, key=lambda item: item.arrived)
    share = min(oldest.prompt_left, max(1, chunk // 4))
    plan[oldest.slot] = share
    budget = chunk - share
    for item in prompts:
        left = item.prompt_left - plan.get(item.slot, 0)
        more = left if left <= budget + REMAINDER and budget > 0 else min(left, budget)
        if more > 0:
            plan[item.slot] = plan.get(item.slot, 0) + more
            budget -= more
    return plan


def with_drafts(generating: Sequence[Work]) -> dict[int, int]:
    """Tokens for each generating slot: the one that is known, and so many of its draft that the step is expected to
    gain the most tokens for its cost. The likeliest of all drafts come first."""
    plan = {item.slot: 1 for item in generating}
    offers = sorted(((-chance, n, item.slot) for item in generating for n, chance in enumerate(item.chances)))
    rows, gain, best, taken = len(plan), float(len(plan)), 0.0, 0
    for count in range(min(len(offers), MOST_DRAFTED) + 1):
        gain -= offers[count - 1][0] if count else 0.0
        if rows and gain / cost_of(rows + count) > best:
            best, taken = gain / cost_of(rows + count), count
    for _, _, slot in offers[:taken]:
        plan[slot] += 1
    return plan


def cost_of(rows: int) -> float:
    """What a step costs, in tokens of a long prompt.

    Rows are multiplied in fours, what lacks in the last costs half; a single one is as good as free, as it has only to
    keep up with the memory. Measured with SmolLM2-135M q4_0 and Gemma 3 270m q4_k_m on one and two cores (AVX2).
    """
    return STEP_COST if rows == 1 else STEP_COST + rows + (-rows % 4) / 2


def chunk_of(prefill_rate: float, seconds: float = STEP_S) -> int:
    """How many prompt tokens fit into a step of so many seconds, from the measured tokens per second (0: not measured
    yet)."""
    if prefill_rate <= 0:
        return 4 * SMALLEST_CHUNK
    return int(min(LARGEST_CHUNK, max(SMALLEST_CHUNK, prefill_rate * seconds)))


def reads_alone(running: int, reading: int, others: int) -> bool:
    """Whether a context's step takes all cores: its only request reads its prompt, and no other context reads.

    Many rows share the cores well (two read 1.6 times as fast as one), single ones badly: those who generate lose
    little by waiting a step, and the first token comes sooner, above all for a burst that waits for the beginning
    it has in common. others: how many requests of other contexts read.
    """
    return running == reading == 1 and others == 0


class Rotation:
    """Whose turn it is among adapters that share a context: each keeps it for a quantum of steps, then the next."""

    def __init__(self, quantum: int = QUANTUM) -> None:
        self._quantum = quantum
        self._current: str | None = None
        self._left = 0

    def next(self, waiting: Collection[str]) -> str:
        """The adapter of the next step among those with work, of which there is one at least; counts the step."""
        current = self._current
        if current is None or current not in waiting or (self._left <= 0 and len(waiting) > 1):
            ordered = sorted(waiting)
            following = (key for key in ordered if current is not None and key > current)
            self._current = current = next(following, ordered[0])
            self._left = self._quantum
        self._left -= 1
        return current


@dataclass
class Cores:
    """Which contexts compute now and with how many cores: never more in all than there are.

    A context asks with `want`, is given cores by `grant`, and gives them back with `release` after its step. The
    one that has waited longest is served first, and no one gets more than its share while others have work.
    """

    total: int
    _queue: dict[int, bool] = field(default_factory=dict)  # in the order they came: whether all cores are wanted
    _granted: dict[int, int] = field(default_factory=dict)

    def want(self, lane: int, *, whole: bool = False) -> None:
        """The lane has work and would like to step; whole: on all cores, as soon as none of them computes."""
        self._queue[lane] = whole

    def drop(self, lane: int) -> bool:
        """The lane has no work any more; whether it had been in the queue, so that others are nearer to their turn."""
        return self._queue.pop(lane, None) is not None

    def grant(self, lane: int) -> int:
        """Cores for one step of this lane now, or 0 when it has to wait."""
        if lane not in self._queue or lane in self._granted:
            return 0
        ahead = list(self._queue.values())[: list(self._queue).index(lane)]
        if self._queue[lane]:
            cores = 0 if ahead or self._granted else self.total
        else:
            cores = 0 if any(ahead) else self._part(len(ahead))
        if cores:
            del self._queue[lane]
            self._granted[lane] = cores
        return cores

    def _part(self, ahead: int) -> int:
        """The cores of one that shares, after so many who are before it."""
        free = self.total - sum(self._granted.values())
        contenders = len(self._granted) + sum(not whole for whole in self._queue.values())
        share = max(1, self.total // contenders)
        # What the division leaves over goes to the first who asks, so that no core idles.
        over = self.total - share * contenders - sum(max(0, cores - share) for cores in self._granted.values())
        return max(0, min(share + max(0, over), free - ahead * share))

    def release(self, lane: int) -> None:
        """The lane's step is over."""
        self._granted.pop(lane, None)

    @property
    def busy(self) -> bool:
        """Whether any lane is computing."""
        return bool(self._granted)


@dataclass(frozen=True)
class LaneLoad:
    """What a context is doing: running requests by adapter, whether it could take one more, whether it was opened,
    and how many of the new request's leading tokens it holds already."""

    running: Mapping[str, int]
    room: bool = True
    opened: bool = True
    shared: int = 0


def home_of(
    key: str, lanes: Sequence[LaneLoad], *, parallel: int, cores: int, wanted: Collection[str] = ()
) -> int | None:
    """The context that takes the next request for adapter `key`, or None: it has to wait.

    wanted: adapters whose requests waited or ended a moment ago. While one of them may come back, a request that would
    spread waits: else of two bursts the first takes the second one's context, and three contend for two cores.

    Every adapter with work may spread over its share of the cores, one context for each: two contexts on a core each
    do more than one on two, which wait for one another at every matrix. Beyond its share a request joins the contexts
    that work for its adapter; an adapter that has none takes an idle one, else shares the least mixed. A long
    beginning that some context holds already decides before all this. Never more than `parallel` requests of one.
    """
    if sum(lane.running.get(key, 0) for lane in lanes) >= parallel:
        return None
    open_to = [index for index, lane in enumerate(lanes) if lane.room]
    if not open_to:
        return None
    mine = [index for index in open_to if lanes[index].running.get(key, 0)]
    idle = [index for index in open_to if not lanes[index].running]
    adapters = {key}.union(*(lane.running for lane in lanes))
    share = max(1, cores // len(adapters))

    def count(index: int) -> int:
        return sum(lanes[index].running.values())

    best = max(open_to, key=lambda index: (lanes[index].shared, -count(index), -index))
    if idle and mine and max(1, cores // len(adapters.union(wanted))) <= len(mine) < share:
        return None
    if idle and (not mine or len(mine) < share):
        home = max(idle, key=lambda index: (lanes[index].shared, lanes[index].opened, -index))
    elif mine:  # where there are more than the share, the emptier ones are to run dry
        crowd = 1 if len(mine) <= share else -1
        home = min(mine, key=lambda index: (crowd * lanes[index].running[key], index))
    else:
        home = min(open_to, key=lambda index: (len(lanes[index].running), count(index), index))
    return best if lanes[best].shared > lanes[home].shared + LONG_BEGINNING else home
