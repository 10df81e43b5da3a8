"""An entrance: our HTTP application in a process of Ray Serve, with an engine whose model is computed by replicas.

It knows nothing of how a replica computes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve as ray_serve
from ray.exceptions import RayError, RayTaskError

from serve.adapters.registry import vet_base
from serve.adapters.watch import WatchedFolder, watching
from serve.cluster.board import REPORT_S, Board, ReplicaReport
from serve.cluster.known import KnownAdapters
from serve.cluster.remote import RemoteEngine, ReplicaLostError, Replicas
from serve.cluster.settings import ClusterSettings
from serve.cluster.wire import Ask, Telling
from serve.server.app import create_app
from slm.errors import EngineError
from slm.joints import Joints
from slm.models.model_argument import name_of_model
from slm.terminal.asking import reader_of_index


class BoardKeeper:
    """The deployment `board`: one `Board` for all."""

    def __init__(self) -> None:
        self._board = Board()

    async def report(self, row: ReplicaReport) -> None:
        """As `Board.report`."""
        self._board.report(row)

    async def rows(self) -> list[ReplicaReport]:
        """As `Board.rows`."""
        return self._board.rows()


class Entrance:
    """The deployment `entrance`. plain: as `ClusterSettings.plain`; joints: the roof, on this machine."""

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self, plain: Mapping[str, Any], joints: Joints, engines: Any, board: Any
    ) -> None:
        settings = ClusterSettings.of(plain)
        self._engines, self._board = engines, board
        self._rows: list[ReplicaReport] = []
        self._stack = ExitStack()
        loop = asyncio.get_running_loop()
        self._application = await asyncio.to_thread(self._opened, settings, joints, loop)
        self._listening = asyncio.create_task(self._listen())

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._application

    def _opened(self, settings: ClusterSettings, joints: Joints, loop: asyncio.AbstractEventLoop) -> FastAPI:
        model, documents = settings.model, settings.documents
        base = vet_base(joints.gguf_of(model.model), name_of_model(model.model))

        def convert(folder: Path) -> Path:
            return joints.adapter_gguf_of(folder, model.model)

        known = KnownAdapters(base, convert)
        self._stack.callback(known.close)
        index = documents.index or None
        reader = reader_of_index(joints, index, documents.reader, documents.refuse_at)
        for name, path in model.adapters.items():
            known.load_adapter(name, Path(path))
        engine = RemoteEngine(
            base, known, Replicas(self._ask, lambda: self._rows, loop),
            options=settings.engine_options(), default_adapter=model.default_adapter,
        )  # fmt: skip
        if model.adapters_dir:
            taken = frozenset(adapter.name for adapter in known.all())
            watched = WatchedFolder(Path(model.adapters_dir), known, lambda folder: folder, taken=taken)
            # A change made by another machine gives no sign here: the folder has to be looked at.
            self._stack.enter_context(watching(watched, polling=True))
        retriever = self._stack.enter_context(joints.open_retriever(index)) if index else None
        policy = settings.door.policy(settings.size.ingresses)
        return create_app(engine, policy=policy, retriever=retriever, viewer=documents.viewer, reader=reader)

    async def _ask(self, ask: Ask) -> AsyncGenerator[Telling, None]:
        """As `serve.cluster.remote.Asker`: adapters go where they are warm."""
        told = self._engines.options(stream=True, multiplexed_model_id=ask.warm).ask.remote(ask)
        try:
            async for part in told:
                yield part
        except RayTaskError as error:  # what nobody foresaw, in the replica
            raise EngineError("a replica failed at this request", found=str(error.cause)[:200]) from error
        except RayError as error:
            raise ReplicaLostError from error
        finally:
            told.cancel()

    async def _listen(self) -> None:
        """Read the board, for as long as this entrance lives."""
        while True:
            with suppress(Exception):  # the board is being started again
                self._rows = await self._board.rows.remote()
            await asyncio.sleep(REPORT_S)

    def __del__(self) -> None:
        self._stack.close()


EntranceDeployment = ray_serve.ingress()(Entrance)
