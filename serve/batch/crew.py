"""Engines on the machines of a Ray cluster for the time of a batch: who of them is asked, and what if one is lost.

A machine that comes late joins in, one that cannot open the model is left out. It knows nothing of lines.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from serve.adapters.registry import vet_base
from serve.batch.hand import BatchHand, OpenedHand
from serve.batch.run import requests_ahead
from serve.cluster.board import ReplicaReport
from serve.cluster.known import KnownAdapters
from serve.cluster.remote import RemoteEngine, ReplicaLostError, Replicas
from serve.cluster.settings import ClusterSettings
from serve.cluster.wire import Ask, Telling
from slm.errors import EngineError, MismatchError, SlmError
from slm.joints import Joints
from slm.models.model_argument import name_of_model
from slm.native.ray_cluster import connected
from slm.native.ray_data import ActorPlan
from slm.terminal.console import note

_PATIENCE_S = 10.0
_LOOK_AGAIN_S = 1.0


@dataclass
class _Member:
    """An engine as the crew sees it. asked: requests under way, by adapter. fault: why it is down."""

    actor: Any
    machine: str = ""
    state: str = "starting"
    asked: Counter[str] = field(default_factory=Counter)
    fault: SlmError | None = None


class Crew:
    """Engines elsewhere, each of which gets `room` requests at once; use it on one event loop.

    actors: handles of `serve.batch.hand.BatchHand`. content: hash of the model that all must have. parallel: requests
    of one adapter that an engine computes at once.
    """

    def __init__(self, actors: Sequence[Any], content: str, *, room: int, parallel: int) -> None:
        self._members = [_Member(actor) for actor in actors]
        self._content, self._room, self._parallel = content, room, parallel
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self) -> None:
        """Let all open the model."""
        for member in self._members:
            self._open_aside(member)

    async def first(self) -> None:
        """Wait until somebody can be asked. Raises what the first of them lacks where nobody can."""
        while not any(member.state == "ready" for member in self._members):
            if all(member.state == "down" for member in self._members):
                raise next(member.fault for member in self._members if member.fault)
            await self._changed.wait()

    async def ask(self, ask: Ask) -> AsyncGenerator[Telling, None]:
        """As `serve.cluster.remote.Asker`; waits for one who has room. Raises EngineError when all are down."""
        member = await self._chosen(ask.warm)
        member.asked[ask.warm] += 1
        try:
            yield await self._answer(member, ask)
        finally:
            member.asked[ask.warm] -= 1
            self._wake()

    def rows(self) -> list[ReplicaReport]:
        """What is known of each, those that can be asked first."""
        rows = [ReplicaReport(str(n), one.machine, one.state, 0, None) for n, one in enumerate(self._members)]
        return sorted(rows, key=lambda row: ("ready", "starting", "down").index(row.state))

    async def _chosen(self, warm: str) -> _Member:
        """Who is asked: the least busy, where one that is not at this adapter already counts as busier by a batch."""
        while True:
            free = [one for one in self._members if one.state == "ready" and one.asked.total() < self._room]
            if free:
                return min(free, key=lambda one: one.asked.total() + (0 if one.asked[warm] else self._parallel))
            if all(one.state == "down" for one in self._members):
                raise EngineError(
                    "no machine of the cluster is left to ask", found=str(self._members[0].fault),
                    hint="What was answered is kept; go on with --resume when they are back.",
                )  # fmt: skip
            await self._changed.wait()

    async def _answer(self, member: _Member, ask: Ask) -> Telling:
        from ray.exceptions import RayError, RayTaskError

        try:
            told: Telling = await member.actor.answer.remote(ask)
            return told
        except RayTaskError as error:  # what nobody foresaw, over there
            raise EngineError("a machine failed at this request", found=str(error.cause)[:200]) from error
        except (RayError, ConnectionError) as error:
            if member.state == "ready":
                member.state = "starting"
                self._open_aside(member)
            raise ReplicaLostError from error

    def _open_aside(self, member: _Member) -> None:
        task = asyncio.get_running_loop().create_task(self._open(member))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self, member: _Member) -> None:
        found: OpenedHand | SlmError
        try:
            found = await self._told(member)
        except Exception as error:  # Ray's own; it is not started again
            found = EngineError("a machine of the cluster is lost", found=" ".join(str(error).split())[:300])
        if isinstance(found, OpenedHand):
            member.machine = found.machine
            if found.content != self._content:
                found = MismatchError(
                    f"the model is another file on the machine {found.machine}",
                    hint="Pull it there under the same name, or give every machine the same file.",
                )
        if isinstance(found, SlmError):
            member.state, member.fault = "down", found
            note(f"a machine is left out: {found}")
        else:
            member.state = "ready"
        self._wake()

    async def _told(self, member: _Member) -> OpenedHand | SlmError:
        from ray.exceptions import ActorUnavailableError

        while True:
            try:
                told: OpenedHand | SlmError = await member.actor.open.remote()
                return told
            except ActorUnavailableError:  # it is being started again
                await asyncio.sleep(_LOOK_AGAIN_S)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


@contextmanager
def opened_crew(
    address: str, settings: ClusterSettings, joints: Joints, model: Path
) -> Iterator[tuple[RemoteEngine, int]]:
    """An engine whose model is computed by the machines of a cluster, and how many there may be; until the block ends.

    model: the file on this machine, by which the others are checked; the settings say how it is named on all. Raises as
    `slm.native.ray_cluster.connected`, and SlmError for adapters that do not fit or when no machine can open the model.
    """
    with ExitStack() as stack:
        base = vet_base(model, name_of_model(settings.model.model))
        known = KnownAdapters(base, lambda folder: folder)
        stack.callback(known.close)
        for name, path in settings.model.adapters.items():
            known.load_adapter(name, Path(path))
        stack.enter_context(connected(address))
        import ray

        plan = ActorPlan.of_cluster(settings.size.cores)
        settings = replace(settings, size=replace(settings.size, cores=plan.cores))
        needed = [known.needed(adapter.name) for adapter in known.all()]
        parallel = settings.model.parallel
        room = requests_ahead(parallel, settings.model.hot, len(needed))
        options = {"num_cpus": plan.cores, "max_restarts": -1, "max_concurrency": room + parallel}
        actors: list[Any] = []
        stack.callback(_end, actors)
        for _ in range(plan.actors):
            actors.append(ray.remote(BatchHand).options(**options).remote(settings.plain(), joints, needed))
        crew = Crew(actors, base.content, room=room, parallel=parallel)
        loop = stack.enter_context(_turning())
        loop.call_soon_threadsafe(crew.begin)
        _wait(asyncio.run_coroutine_threadsafe(crew.first(), loop), plan.cores)
        replicas = Replicas(crew.ask, crew.rows, loop)
        yield RemoteEngine(base, known, replicas, options=settings.engine_options()), plan.actors


def _wait(first: concurrent.futures.Future[None], cores: int) -> None:
    try:
        first.result(_PATIENCE_S)
    except concurrent.futures.TimeoutError:
        note(f"waiting for an engine; a machine with {cores} cores free is needed (`ray status` shows who has them)")
        first.result()


def _end(actors: Sequence[Any]) -> None:
    import ray

    for actor in actors:
        with suppress(Exception):  # whatever Ray says: this command is done with them
            ray.kill(actor)


@contextmanager
def _turning() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread of its own; what is left of its tasks is cancelled at the end."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        with suppress(concurrent.futures.TimeoutError):
            asyncio.run_coroutine_threadsafe(_cancelled(), loop).result(_PATIENCE_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_PATIENCE_S)
        if not thread.is_alive():
            loop.close()


async def _cancelled() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
