"""A replica: an engine with its model's process, which loads adapters as they are asked for. It knows nothing of HTTP.

Ray's batching of calls is not used: it would part requests by adapter, and the engine computes several at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray import serve as ray_serve

from serve.cluster.board import REPORT_S, ReplicaReport
from serve.cluster.settings import ClusterSettings
from serve.cluster.warm import WarmAdapters
from serve.cluster.wire import Ask, NeededAdapter, Told
from serve.engine.engine import Engine
from serve.engine.events import Ticket
from serve.server.respond import begun
from slm.errors import EngineError, SlmError
from slm.joints import Joints, Scored
from slm.terminal.console import note

# Adapters that a replica keeps: 15 MB each for rank 16 on a model of 270 million parameters.
_MOST_WARM = 16
_F = TypeVar("_F", bound=Callable[..., Any])
_multiplexed: Callable[[_F], _F] = ray_serve.multiplexed(max_num_models_per_replica=_MOST_WARM)


class _StaleError(Exception):
    """The file is another by now."""


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
        self._sources: dict[str, NeededAdapter] = {}
        model = joints.gguf_of(self._settings.model.model)
        self._engine = Engine(model, {}, options=self._settings.engine_options())
        self._warm = WarmAdapters(self._load, self._engine.unload_adapter)
        self._reporting: asyncio.Task[None] | None = None

    async def check_health(self) -> None:
        """Called by Ray every second. Raises EngineError when the model's process cannot be started any more."""
        if self._reporting is None:
            self._reporting = asyncio.create_task(self._report())
        if self._engine.state in ("down", "closed"):
            raise EngineError(f"the engine is {self._engine.state}")

    async def ask(self, ask: Ask) -> AsyncIterator[Told]:
        """Do what is asked; a caller that leaves ends it, in the middle of a step if need be."""
        with ExitStack() as stack:
            try:
                for adapter in ask.adapters:
                    await self._ready(adapter)
                    await asyncio.to_thread(stack.enter_context, self._warm.using(adapter))
            except _StaleError:
                yield Told((), True, stale=adapter.content)
                return
            except SlmError as error:
                yield Told((error,), True)
                return
            if ask.deed in ("tokenize", "detokenize"):
                yield await asyncio.to_thread(self._told_at_once, ask)
                return
            async for told in self._computed(ask):
                yield told

    def _told_at_once(self, ask: Ask) -> Told:
        does: Callable[..., Any] = self._engine.tokenize if ask.deed == "tokenize" else self._engine.detokenize
        try:
            return Told((does(**ask.arguments),), True)
        except SlmError as error:
            return Told((error,), True)

    async def _computed(self, ask: Ask) -> AsyncIterator[Told]:
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Any] = asyncio.Queue()

        def sink(event: Any) -> None:
            with suppress(RuntimeError):  # the loop is closed when the replica is being stopped
                loop.call_soon_threadsafe(events.put_nowait, event)

        engine = self._engine
        begins: dict[str, Callable[..., Ticket]] = {
            "chat": engine.begin_chat, "complete": engine.begin_complete, "embed": engine.begin_embed,
            "scores": engine.begin_scores,
        }  # fmt: skip
        try:
            ticket = await begun(partial(begins[ask.deed], sink=sink, **ask.arguments))
        except SlmError as error:
            yield Told((error,), True)
            return
        try:
            last = False
            while not last:
                ready = [await events.get()]
                while not events.empty():
                    ready.append(events.get_nowait())
                last = not isinstance(ready[-1], str | Scored)
                yield Told(tuple(ready), last)
        finally:
            ticket.cancel()

    # --- adapters -------------------------------------------------------------------------------------------------

    @_multiplexed
    async def _keep(self, content: str) -> _Kept:
        """What Ray calls for an adapter that is not warm here."""
        await asyncio.to_thread(self._warm.keep, self._sources[content])
        return _Kept(partial(self._warm.drop, content))

    async def _ready(self, adapter: NeededAdapter) -> None:
        """Let Ray know that it is asked for here, so that others who ask for it come here too."""
        self._sources[adapter.content] = adapter
        await self._keep(adapter.content)

    def _load(self, adapter: NeededAdapter) -> None:
        """Raises _StaleError when the file has other content than was asked for, EngineError when it cannot be had."""
        where = ray_serve.get_replica_context().replica_id.unique_id
        try:
            loaded = self._engine.load_adapter(adapter.content, self._file_of(adapter.source))
        except SlmError as error:  # for whoever asks it is no fault of theirs
            note(f"an adapter cannot be loaded: {error}")
            raise EngineError(f"the adapter cannot be loaded on the replica {where}", found=str(error)) from error
        if loaded.content != adapter.content:
            self._engine.unload_adapter(adapter.content)
            raise _StaleError

    def _file_of(self, source: str) -> Path:
        model = self._settings.model.model
        if not source:
            reader = self._joints.reader_of(model, self._settings.documents.reader)
            if reader is None:
                raise EngineError(f"this machine has no reader for '{model}'")
            return reader.adapter
        path = Path(source)
        return self._joints.adapter_gguf_of(path, model) if path.is_dir() else path

    # --- state ----------------------------------------------------------------------------------------------------

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
        self._engine.close()
