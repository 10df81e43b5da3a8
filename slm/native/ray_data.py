"""Work on many items by actors of Ray Data, each of which is opened once. It knows nothing of what they do."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from slm.errors import EngineError, ResourceError, SlmError
from slm.native.ray_cluster import is_client

# Ray Data keeps a few hundred bytes for each block, and starts a task for it.
_MOST_BLOCKS = 1000


@dataclass(frozen=True)
class ActorPlan:
    """How many actors there may be, and the cores of each."""

    actors: int
    cores: int

    @classmethod
    def of_cluster(cls, cores: int = 0) -> ActorPlan:
        """As many as the machines of the Ray that is connected hold. cores: of each; 0: all of the smallest machine.

        Raises ResourceError where no machine has so many.
        """
        import ray

        sizes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        cores = cores or min([size for size in sizes if size > 0], default=1)
        actors = sum(size // cores for size in sizes)
        if not actors:
            raise ResourceError(
                f"no machine of the cluster has {cores} cores", found=f"at most {max(sizes, default=0)}",
                hint="Ask for fewer, or start Ray there with more: ray start --num-cpus N",
            )  # fmt: skip
        return cls(actors, cores)


def mapped(
    kind: Callable[..., Callable[[Any], Any]], opening: tuple[Any, ...], items: Sequence[Any], plan: ActorPlan
) -> Iterator[tuple[int, Any]]:
    """(number of an item, kind(*opening)(item)) for each item, in the order they are ready.

    A process that is only a client of the cluster has an actor there do it, and asks for one result after the other.

    What an actor raises of our own errors is raised as it is, once; an actor that is lost is replaced, and its item
    done again. Raises EngineError for what nobody foresaw.
    """
    if not is_client():
        yield from _mapped(kind, opening, items, plan)
        return
    import ray
    from ray.exceptions import RayError

    pump = ray.remote(num_cpus=0)(_Pump).remote(kind, opening, items, plan)
    try:
        while (result := ray.get(pump.next.remote())) is not None:
            if isinstance(result, SlmError):
                raise result
            yield result
    except RayError as error:
        raise EngineError("the work on Ray broke off", found=" ".join(str(error).split())[-400:]) from error
    finally:
        ray.kill(pump)


class _Pump:
    """What does the work on the cluster for a client: `mapped`, a result at a time; None is its end."""

    def __init__(self, *work: Any) -> None:
        self._results = _mapped(*work)

    def next(self) -> tuple[int, Any] | SlmError | None:
        try:
            return next(self._results, None)
        except SlmError as error:
            return error


def _mapped(
    kind: Callable[..., Callable[[Any], Any]], opening: tuple[Any, ...], items: Sequence[Any], plan: ActorPlan
) -> Iterator[tuple[int, Any]]:
    import ray.data
    from ray.exceptions import RayError

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    rows = [{"number": number, "item": pickle.dumps(item)} for number, item in enumerate(items)]
    if not rows:
        return
    done = ray.data.from_items(rows, override_num_blocks=min(len(rows), _MOST_BLOCKS)).map_batches(
        _Actor, fn_constructor_args=(kind, opening), batch_size=1, batch_format="pyarrow", num_cpus=plan.cores,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(plan.actors, len(rows))),
    )  # fmt: skip
    try:
        for row in done.iter_rows():
            result = pickle.loads(row["result"])
            if isinstance(result, SlmError):
                raise result
            yield int(row["number"]), result
    except RayError as error:
        raise EngineError("the work on Ray broke off", found=" ".join(str(error).split())[-400:]) from error


class _Actor:
    """Opens what does the work when the first item comes: an error of it is then a result, and not tried again."""

    def __init__(self, kind: Callable[..., Callable[[Any], Any]], opening: tuple[Any, ...]) -> None:
        self._open: Callable[[], Callable[[Any], Any]] = lambda: kind(*opening)
        self._work: Callable[[Any], Any] | None = None

    def __call__(self, batch: Any) -> Any:
        import pyarrow as pa

        items = batch["item"].to_pylist()
        try:
            self._work = self._work or self._open()
            results = [self._work(pickle.loads(item)) for item in items]
        except SlmError as error:
            results = [error for _ in items]
        told = pa.array([pickle.dumps(result) for result in results], pa.large_binary())
        return pa.table({"number": batch["number"], "result": told})
