"""One request's runs in the engine, from their start to the answer, streamed or whole.

A client that goes away at any moment cancels them all. It knows nothing of what was asked, nor of the engine beyond
the call that begins a run.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from serve.engine import Event, Sink, Ticket
from serve.server.api.answers import Answer, Choice, citations_of
from serve.server.api.errors import Json, error_body
from slm.errors import SlmError
from slm.joints import Finish, Grounded

_T = TypeVar("_T")
Begin = Callable[[Sink], Ticket]
_Numbered = tuple[int, Event]


class Runs:
    """Runs of the engine whose events come together in one queue; use it on the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[_Numbered] = asyncio.Queue()
        self._tickets: list[Ticket] = []

    async def start(self, begins: Sequence[Begin]) -> None:
        """Begin them all. When one cannot begin, the others are cancelled and its error is raised."""
        try:
            for number, begin in enumerate(begins):
                self._tickets.append(await _begun(begin, self._sink(number)))
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        """End what is still under way."""
        for ticket in self._tickets:
            ticket.cancel()

    async def events(self) -> AsyncIterator[tuple[int, Any]]:
        """(number of the run, text or Finish) until every run has ended. Raises the first SlmError."""
        left = len(self._tickets)
        while left:
            number, event = await self._events.get()
            if isinstance(event, SlmError):
                self.cancel()
                raise event
            left -= isinstance(event, Finish)
            yield number, event

    def _sink(self, number: int) -> Sink:
        def sink(event: Event) -> None:
            with suppress(RuntimeError):  # the loop is closed when the server is being stopped
                self._loop.call_soon_threadsafe(self._events.put_nowait, (number, event))

        return sink


async def _begun(begin: Begin, sink: Sink) -> Ticket:
    """The ticket of a run begun in a thread; if nobody waits for it any more, it is cancelled when it comes."""

    def forget(done: asyncio.Future[Ticket]) -> None:
        if not done.cancelled() and done.exception() is None:
            done.result().cancel()

    work = asyncio.ensure_future(asyncio.to_thread(begin, sink))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        work.add_done_callback(forget)
        raise


async def respond(
    request: Request,
    begins: Sequence[Begin],
    answer: Answer,
    choices: Sequence[Choice],
    *,
    stream: bool,
    with_usage: bool = False,
    prompts: int = 1,
    headers: dict[str, str],
    grounded: Grounded | None = None,
) -> Response:
    """Start the runs, one for each choice, and answer with them. prompts: how many different ones there are."""
    runs = Runs()
    await runs.start(begins)
    events = runs.events()
    if stream:
        first = await _unless_left(request, runs, _next(events))  # an error before the start has its own status
        body = _stream(first, events, answer, choices, prompts if with_usage else 0, grounded)
        return _EventStream(body, runs, headers)

    async def collect() -> None:
        async for number, event in events:
            for _ in choices[number].take(event):
                pass

    await _unless_left(request, runs, collect())
    return Json(answer.whole(choices, prompts, await _quoted(grounded)), headers=headers)


async def _next(events: AsyncIterator[_T]) -> _T:
    return await anext(events)


class _EventStream(StreamingResponse):
    """Server-sent events of one request, which is cancelled when the client goes away at any moment."""

    def __init__(self, events: AsyncIterator[str], runs: Runs, headers: dict[str, str]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={**headers, "cache-control": "no-store"})
        self._runs = runs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._runs.cancel()


async def _unless_left(request: Request, runs: Runs, wanted: Coroutine[Any, Any, _T]) -> _T:
    """The result of `wanted`, unless the client closes the connection first: then the request is cancelled."""
    work = asyncio.create_task(wanted)
    left = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            runs.cancel()
            raise HTTPException(499, "the client closed the connection")
        return work.result()
    except asyncio.CancelledError:
        runs.cancel()
        raise
    finally:
        work.cancel()
        left.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _stream(
    first: tuple[int, Any],
    events: AsyncIterator[tuple[int, Any]],
    answer: Answer,
    choices: Sequence[Choice],
    usage_of: int,
    grounded: Grounded | None,
) -> AsyncIterator[str]:
    """The events of one answer; an error after the start is an event of its own. usage_of: prompts, 0: no usage."""
    for choice in choices if answer.chat else ():
        yield _event(answer.chunk(choice.first(), citations_of(grounded)))
    try:
        number, event = first
        while True:
            for part in choices[number].take(event):
                last = part["finish_reason"] is not None
                yield _event(answer.chunk(part, await _quoted(grounded) if last else None))
            try:
                number, event = await anext(events)
            except StopAsyncIteration:
                break
        if usage_of:
            yield _event(answer.usage_chunk(choices, usage_of))
    except SlmError as error:
        yield _event(error_body(error)[1])
    yield "data: [DONE]\n\n"


async def _quoted(grounded: Grounded | None) -> dict[str, Any]:
    """The citations of an answer that has been given, with their quotes."""
    return citations_of(grounded, await asyncio.to_thread(grounded.quotes)) if grounded else {}


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
