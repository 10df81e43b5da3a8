"""An engine of a crew, in a process of Ray: it answers what it is asked, each answer whole. It knows nothing of lines.

An answer crosses in one message, so that whoever is only a client of the cluster can ask as well.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from serve.cluster.answering import Answering
from serve.cluster.settings import ClusterSettings
from serve.cluster.wire import Ask, NeededAdapter, Telling
from serve.engine.engine import Engine
from slm.errors import EngineError, SlmError
from slm.joints import Joints
from slm.native.llama import physical_cores


@dataclass(frozen=True)
class OpenedHand:
    """What an engine is: the machine it is on, and the hash of its model's file."""

    machine: str
    content: str


class BatchHand:
    """plain: as `ClusterSettings.plain`; joints: the roof, on this machine; adapters: those of the batch.

    Ray calls its methods side by side, and makes it anew where its process was lost.
    """

    def __init__(self, plain: Mapping[str, Any], joints: Joints, adapters: Sequence[NeededAdapter]) -> None:
        self._plain, self._joints, self._adapters = plain, joints, adapters
        self._opening = asyncio.Lock()
        self._engine: Engine | None = None
        self._answering: Answering | None = None

    async def open(self) -> OpenedHand | SlmError:
        """Open the model with its adapters. An error is given back: what Ray raises would be an error of Ray's."""
        try:
            await self._opened()
        except SlmError as error:
            return error
        engine = self._engine
        assert engine is not None
        return OpenedHand(socket.gethostname(), await asyncio.to_thread(lambda: engine.base.content))

    async def answer(self, ask: Ask) -> Telling:
        """All events of an answer."""
        try:
            answering = await self._opened()
        except SlmError as error:
            return Telling((EngineError("a machine cannot open the model any more", found=str(error)),), True)
        events: list[Any] = []
        async with aclosing(answering.told(ask)) as parts:
            async for told in parts:
                if told.stale:
                    return told
                events += told.events
        return Telling(tuple(events), True)

    async def _opened(self) -> Answering:
        """What answers; an engine that cannot be started any more gives way to a new one. Raises SlmError."""
        async with self._opening:
            if self._engine is None or self._answering is None or self._engine.state in ("down", "closed"):
                await asyncio.to_thread(self._open)
            assert self._answering is not None
            return self._answering

    def _open(self) -> None:
        if self._engine:
            self._engine.close()
        settings = ClusterSettings.of(self._plain)
        options = settings.engine_options()  # Ray counts hyper-threads as cores
        options = replace(options, threads=min(options.threads, physical_cores()))
        engine = Engine(self._joints.gguf_of(settings.model.model), {}, options=options)
        try:
            answering = Answering(engine, Path)
            for adapter in self._adapters:
                answering.keep(adapter)
        except BaseException:
            engine.close()
            raise
        self._engine, self._answering = engine, answering

    def __del__(self) -> None:
        if engine := getattr(self, "_engine", None):
            engine.close()
