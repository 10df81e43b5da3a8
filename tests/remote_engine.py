"""An entrance's engine and two replicas in one process, without Ray: what is said crosses by pickle, as with Ray."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from serve.adapters.registry import vet_base
from serve.cluster.answering import Answering
from serve.cluster.board import ReplicaReport
from serve.cluster.known import KnownAdapters
from serve.cluster.remote import RemoteEngine, ReplicaLostError, Replicas
from serve.cluster.wire import Ask, Telling
from serve.engine.engine import Engine, open_engine
from serve.engine.options import EngineOptions


@dataclass
class Fleet:
    """Replicas that take turns. lose: how many parts of the next answer come before its replica is lost."""

    engines: list[Engine]
    remote: RemoteEngine
    known: KnownAdapters
    asked: list[Ask] = field(default_factory=list)
    lose: list[int] = field(default_factory=list)


@contextmanager
def fleet(
    model: Path, adapters: Mapping[str, Path], *, replicas: int = 2, parallel: int = 4,
    file_of: Callable[[str], Path] = Path,
) -> Iterator[Fleet]:  # fmt: skip
    """A RemoteEngine on so many engines of one thread each. file_of: as `Answering` has it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    with ExitStack() as stack:
        engines = [stack.enter_context(open_engine(model, {}, threads=1, parallel=parallel)) for _ in range(replicas)]
        answering = [Answering(engine, file_of) for engine in engines]

        def no_folder(folder: Path) -> Path:
            raise AssertionError(folder)

        known = KnownAdapters(vet_base(model), no_folder)
        stack.callback(known.close)
        for name, path in adapters.items():
            known.load_adapter(name, path)

        def rows() -> list[ReplicaReport]:
            return [ReplicaReport(str(n), "here", e.state, e.restarts, e.stats()) for n, e in enumerate(engines)]

        async def ask(asked: Ask) -> AsyncGenerator[Telling, None]:
            number = len(here.asked)
            here.asked.append(asked)
            left = here.lose.pop() if here.lose else None
            parts = answering[number % replicas].told(pickle.loads(pickle.dumps(asked)))
            try:
                async for told in parts:
                    if left == 0:
                        raise ReplicaLostError
                    yield pickle.loads(pickle.dumps(told))
                    left = None if left is None else left - 1
            finally:
                await parts.aclose()

        options = EngineOptions(parallel=parallel)
        remote = RemoteEngine(known.base, known, Replicas(ask, rows, loop), options=options)
        here = Fleet(engines, remote, known)
        thread.start()
        try:
            yield here
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(30)
            loop.close()
