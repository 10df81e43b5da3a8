"""An engine whose model is computed by replicas elsewhere (implements `serve.engine.served.ServedEngine`).

An answer of which nothing was heard before its replica was lost is asked for again; one that had begun ends with an
error. It knows nothing of HTTP, and of Ray only the function that asks.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from serve.adapters.registry import Adapter, Base
from serve.child.messages import Embeddings, Stats
from serve.cluster.board import ReplicaReport, state_of, summed
from serve.cluster.known import KnownAdapters
from serve.cluster.wire import Ask, ChatAsked, CompletionAsked, EmbeddingsAsked, Run, Telling, TextAsked, TokensAsked
from serve.engine.events import Event, Sink, Ticket
from serve.engine.options import EngineOptions
from serve.engine.prompting import TemplateOptions
from serve.engine.router import Route
from serve.engine.served import Lora, way_of
from slm.errors import EngineDiedError, EngineError, SlmError, UnsupportedError
from slm.joints import Finish, Message, SamplingOptions
from slm.terminal.console import note

_PLAIN = TemplateOptions()
_TRIES = 3  # replicas that an answer is asked of, while none has said anything
_PATIENCE_S = 120.0


class ReplicaLostError(Exception):
    """The replica that was asked is gone."""


Asker = Callable[[Ask], AsyncGenerator[Telling, None]]
"""Asks a replica; closing the generator ends what it computes. Raises ReplicaLostError."""


@dataclass(frozen=True)
class Replicas:
    """What an entrance has of the replicas: how to ask one, and what all have said of themselves."""

    ask: Asker
    rows: Callable[[], list[ReplicaReport]]
    loop: asyncio.AbstractEventLoop


class RemoteEngine:
    """Use it from any thread; `Replicas.loop` has to run."""

    def __init__(
        self,
        base: Base,
        known: KnownAdapters,
        replicas: Replicas,
        *,
        options: EngineOptions,
        default_adapter: str | None = None,
    ) -> None:
        self.base, self.options, self.default_adapter = base, options, default_adapter
        trained = base.trained_context
        self.context = min(options.context, trained) if trained > 0 else options.context
        self._known, self._replicas = known, replicas
        if default_adapter is not None:
            known.needed(default_adapter)

    # --- asking ---------------------------------------------------------------------------------------------------

    def begin_chat(
        self,
        messages: Sequence[Message],
        sink: Sink,
        *,
        adapter: str | None = None,
        lora: Lora | None = None,
        template: TemplateOptions = _PLAIN,
        sampling: SamplingOptions,
        fit: bool = False,
    ) -> Ticket:
        """As `serve.engine.engine.Engine.begin_chat`, but events come on the loop's thread."""
        way = self.route(adapter, messages, lora=lora)
        return self._begin(ChatAsked(list(messages), template, sampling, fit), way, lora, sink)

    def begin_complete(
        self,
        text: str | Sequence[int],
        sink: Sink,
        *,
        adapter: str | None = None,
        lora: Lora | None = None,
        sampling: SamplingOptions,
        fit: bool = False,
    ) -> Ticket:
        """As `begin_chat` for a plain text or token ids."""
        shown = text if isinstance(text, str) else ""
        way = self.route(adapter, [Message(role="user", content=shown)], lora=lora)
        return self._begin(CompletionAsked(text, sampling, fit), way, lora, sink)

    def begin_embed(
        self, texts: Sequence[str | Sequence[int]], sink: Callable[[Embeddings | SlmError], None], *, first: int = 0
    ) -> Ticket:
        """As `serve.engine.engine.Engine.begin_embed`."""
        way = Route(None, "embeddings are of the base")
        return self._start(lambda: Ask(EmbeddingsAsked(list(texts), first)), way, sink)

    def route(self, wanted: str | None, messages: Sequence[Message], *, lora: Lora | None = None) -> Route:
        """As `serve.engine.engine.Engine.route`."""
        return way_of(self, wanted, messages, lora)

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """As `serve.engine.engine.Engine.tokenize`; not to be called on the loop's thread."""
        return list(self._result(Ask(TokensAsked(text, add_special))))

    def detokenize(self, tokens: Sequence[int]) -> str:
        """As `serve.engine.engine.Engine.detokenize`; not to be called on the loop's thread."""
        return str(self._result(Ask(TextAsked(list(tokens)))))

    # --- adapters, state ------------------------------------------------------------------------------------------

    def adapters(self) -> list[Adapter]:
        """The adapters that can be asked, in the order they were loaded."""
        return self._known.all()

    def load_adapter(self, name: str, path: Path, *, scale: float = 1.0) -> NoReturn:
        """Raises UnsupportedError: one entrance would know it and the others not."""
        raise _by_folder()

    def unload_adapter(self, name: str) -> NoReturn:
        """Raises UnsupportedError."""
        raise _by_folder()

    @property
    def state(self) -> str:
        """ready while a replica is."""
        return state_of(self._replicas.rows())

    @property
    def restarts(self) -> int:
        """How often the replicas that are there had to start their model's process again."""
        return sum(row.restarts for row in self._replicas.rows())

    @property
    def pid(self) -> None:
        """The model is computed elsewhere."""
        return

    def stats(self) -> Stats:
        """What the replicas are doing, as they last said."""
        return summed(self._replicas.rows())

    # --- inside ---------------------------------------------------------------------------------------------------

    def _begin(self, deed: Run, way: Route, lora: Lora | None, sink: Callable[[Any], None]) -> Ticket:
        """Start what is done with adapters; they are looked up when it is sent: a name may have newer content then."""
        scales = dict(lora) if lora is not None else {way.adapter: 1.0} if way.adapter else {}
        names = [name for name, scale in scales.items() if scale]

        def ask() -> Ask:
            needed = tuple(self._known.needed(name) for name in names)
            return Ask(deed, needed, None if lora is None else tuple(scales[name] for name in names))

        def take(event: Event) -> None:
            if isinstance(event, Finish):
                event = replace(event, adapter=way.adapter, route_reason=way.reason)
            sink(event)

        return self._start(ask, way, take)

    def _start(self, ask: Callable[[], Ask], way: Route, take: Callable[[Any], None]) -> Ticket:
        ask()  # what is wrong with it is said before anything is begun
        run = asyncio.run_coroutine_threadsafe(self._run(ask, take), self._replicas.loop)

        def cancel() -> None:
            run.cancel()

        return Ticket(way, cancel)

    def _result(self, ask: Ask) -> Any:
        told: concurrent.futures.Future[Any] = concurrent.futures.Future()
        ticket = self._start(lambda: ask, Route(None, ""), told.set_result)
        try:
            result = told.result(_PATIENCE_S)
        except concurrent.futures.TimeoutError as error:
            raise EngineError("no replica has answered", found=f"{_PATIENCE_S:g} s") from error
        finally:
            ticket.cancel()
        if isinstance(result, SlmError):
            raise result
        return result

    async def _run(self, ask: Callable[[], Ask], take: Callable[[Any], None]) -> None:
        """Ask until an answer has ended; `take` is told its end, whatever happens, unless the run is cancelled."""
        try:
            await self._asked(ask, take)
        except SlmError as error:
            take(error)
        except Exception as error:  # whoever waits has to be told, whatever it was
            note(f"a replica could not be asked: {error!r}")
            take(EngineError("the server failed at this request"))

    async def _asked(self, ask: Callable[[], Ask], take: Callable[[Any], None]) -> None:
        heard = False
        for _ in range(_TRIES):
            ended, stale = False, ""
            try:
                async with aclosing(self._replicas.ask(ask())) as parts:
                    async for told in parts:
                        stale = told.stale
                        for event in told.events:
                            heard = True
                            take(event)
                        ended = told.last and not stale
            except ReplicaLostError:
                if heard and not ended:
                    break
            if ended:
                return
            if stale:
                try:
                    await asyncio.to_thread(self._known.look_again, stale)
                except SlmError as error:  # for whoever asks it is no fault of theirs
                    raise EngineError("the adapter's file has changed and cannot be used", found=str(error)) from error
        raise EngineDiedError(
            "the machine that computed this answer is gone", hint="Others are there, or are being started; ask again."
        )


def _by_folder() -> UnsupportedError:
    return UnsupportedError(
        "the adapters of a cluster come and go with its folder",
        hint="Put the file into the folder that --adapters-dir names, or take it away.",
    )
