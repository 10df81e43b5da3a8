"""A replica: an engine in a process of Ray Serve, which loads adapters as they are asked for and keeps the last ones.

It knows nothing of HTTP.

Ray's batching of calls is not used: it would part requests by adapter, and the engine computes several at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray import serve as ray_serve

from serve.cluster.answering import Answering
from serve.cluster.board import REPORT_S, ReplicaReport
from serve.cluster.settings import ClusterSettings
from serve.cluster.wire import Ask, NeededAdapter, Telling
from serve.engine.engine import Engine
from slm.errors import EngineError, SlmError
from slm.joints import Joints

# Adapters that a replica keeps: 15 MB each for rank 16 on a model of 270 million parameters.
_MOST_WARM = 16
_F = TypeVar("_F", bound=Callable[..., Any])
_multiplexed: Callable[[_F], _F] = ray_serve.multiplexed(max_num_models_per_replica=_MOST_WARM)


class _Kept:
    """What Ray holds for an adapter that is warm here. Ray calls `__del__` when it forgets it."""

    def __init__(self, drop: Callable[[], None]) -> None:
        self._drop: Callable[[], None] | None = drop

    def __del__(self) -> None:
        drop, self._drop = self._drop, None
        if drop:
            drop()


class EngineReplica:
    """The deployment `engine`. plain: as `ClusterSettings.plain`; joints: the roof, on this machine."""

    def __init__(self, plain: Mapping[str, Any], joints: Joints, board: Any) -> None:
        self._settings = ClusterSettings.of(plain)
        self._joints, self._board = joints, board
        self._asked: dict[str, NeededAdapter] = {}
        model = joints.gguf_of(self._settings.model.model)
        self._engine = Engine(model, {}, options=self._settings.engine_options())
        self._answering = Answering(self._engine, self._file_of)
        self._reporting: asyncio.Task[None] | None = None

    async def check_health(self) -> None:
        """Called by Ray every second. Raises EngineError when the model's process cannot be started any more."""
        if self._reporting is None:
            self._reporting = asyncio.create_task(self._report())
        if self._engine.state in ("down", "closed"):
            raise EngineError(f"the engine is {self._engine.state}")

    async def ask(self, ask: Ask) -> AsyncGenerator[Telling, None]:
        """Do what is asked; a caller that leaves ends it, in the middle of a step if need be."""
        for adapter in ask.adapters:
            self._asked[adapter.content] = adapter
            with suppress(Exception):  # what is wrong with it is told below, by its own name
                await self._keep(adapter.content)
        async with aclosing(self._answering.told(ask)) as parts:
            async for told in parts:
                yield told

    @_multiplexed
    async def _keep(self, content: str) -> _Kept:
        """What Ray calls for an adapter that is not warm here; from then on it sends here who asks for it."""
        await asyncio.to_thread(self._answering.warm.keep, self._asked[content])
        return _Kept(partial(self._answering.warm.drop, content))

    def _file_of(self, source: str) -> Path:
        model = self._settings.model.model
        path = Path(source)
        return self._joints.adapter_gguf_of(path, model) if path.is_dir() else path

    async def _report(self) -> None:
        """Tell the board what this replica is doing, for as long as it lives."""
        context = ray_serve.get_replica_context()
        name, machine = context.replica_id.unique_id, ray.get_runtime_context().get_node_id()[:8]
        while True:
            stats = None
            with suppress(SlmError):
                stats = await asyncio.to_thread(self._engine.stats)
            row = ReplicaReport(name, machine, self._engine.state, self._engine.restarts, stats)
            with suppress(Exception):  # the board is being started again: the next report finds it
                await self._board.report.remote(row)
            await asyncio.sleep(REPORT_S)

    def __del__(self) -> None:
        if engine := getattr(self, "_engine", None):
            engine.close()
