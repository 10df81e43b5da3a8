"""Clients that stream completions over HTTP, and what can be computed from their answers.

It knows OpenAI's event stream, not which server sends it. Tokens are what the server's `usage` says, never the
number of events: an event may hold several tokens or none.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

_TIMEOUT = httpx.Timeout(180.0, connect=30.0)


@dataclass(frozen=True)
class Outcome:
    """One request. Times are of time.perf_counter(), in seconds; `first` is when the first text came.

    error is empty for a whole answer; told: the server itself said what was wrong, in an error body or event.
    short: it has fewer tokens than were asked for. times: when each piece of text came.
    """

    started: float
    first: float | None
    ended: float
    tokens: int = 0
    prompt_tokens: int = 0
    short: bool = False
    text: str = ""
    error: str = ""
    told: bool = False
    times: tuple[float, ...] = ()

    @property
    def ttft(self) -> float | None:
        """Time to first token, seconds."""
        return None if self.first is None else self.first - self.started


def new_client(base_url: str, connections: int) -> httpx.AsyncClient:
    """A client for so many requests at once; proxies of the environment are not asked.

    Each request has a connection of its own: servers close idle ones at moments of their choice, and a request that
    meets such a moment would count as the server's failure.
    """
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=base_url, timeout=_TIMEOUT, limits=limits, trust_env=False)


async def ask(
    client: httpx.AsyncClient, body: dict[str, Any], *, on_first: Callable[[], None] = lambda: None,
    path: str = "/v1/chat/completions",
) -> Outcome:  # fmt: skip
    """Stream one completion of a chat, or of a prompt (`path`). Never raises for what the server does: that is the
    outcome's `error`.

    A server whose stream carries no usage is believed when it says that the answer ended at max_tokens.
    """
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    started = time.perf_counter()
    answer = _Answer()
    try:
        async with client.stream("POST", path, json=asked) as response:
            if response.status_code != 200:
                text = (await response.aread()).decode("utf-8", "replace")
                words = f"HTTP {response.status_code}: {text[:200]}"
                return Outcome(started, None, time.perf_counter(), error=words, told=text.startswith('{"error"'))
            async for line in response.aiter_lines():
                if line.startswith("data: ") and answer.take(line[6:]):
                    on_first()
    except (httpx.HTTPError, ValueError) as error:
        return answer.outcome(started, int(body["max_tokens"]), f"{type(error).__name__}: {error}")
    return answer.outcome(started, int(body["max_tokens"]))


class _Answer:
    """What the events of one answer add up to."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.pieces: list[str] = []
        self.usage: dict[str, Any] = {}
        self.reason = self.error = ""
        self.done = False

    def take(self, data: str) -> bool:
        """Take one event's data; whether it brought the first text. Raises ValueError for what is not JSON."""
        if data == "[DONE]":
            self.done = True
            return False
        event = json.loads(data)
        if "error" in event:
            self.error = str(event["error"])[:200]
            return False
        self.usage = event.get("usage") or self.usage
        none_yet = not self.times
        for choice in event.get("choices", ()):
            self.reason = choice.get("finish_reason") or self.reason
            if text := choice["delta"].get("content") if "delta" in choice else choice.get("text"):
                self.pieces.append(text)
                self.times.append(time.perf_counter())
        return none_yet and bool(self.times)

    def outcome(self, started: float, max_tokens: int, broken: str = "") -> Outcome:
        """The request's outcome; broken: why the stream could not be read to its end."""
        told = bool(self.error)
        tokens = int(self.usage.get("completion_tokens", max_tokens if self.reason == "length" else 0))
        error = self.error or broken
        if not error and not (self.done and self.reason):
            error = "the stream ended before the answer did"
        if not error and not tokens:
            error = "an answer without tokens"
        return Outcome(
            started, self.times[0] if self.times else None, time.perf_counter(), tokens,
            int(self.usage.get("prompt_tokens", 0)), tokens < max_tokens, "".join(self.pieces), error, told,
            tuple(self.times),
        )  # fmt: skip


async def closed_loop(
    send: Callable[[int, int], Awaitable[Outcome]], *, clients: int, seconds: float
) -> tuple[list[Outcome], float, float]:
    """`clients` clients, each asking again as soon as it is answered, until `seconds` have passed.

    send(client, number) makes a client's request of that number. Returns all outcomes, and the window's begin and
    end; answers under way at the end are waited for.
    """
    begin = time.perf_counter()
    end = begin + seconds

    async def one(client: int) -> list[Outcome]:
        mine: list[Outcome] = []
        while time.perf_counter() < end:
            mine.append(await send(client, len(mine)))
            if mine[-1].error:
                await asyncio.sleep(0.05)  # a server that refuses at once is not to be flooded
        return mine

    parts = await asyncio.gather(*(one(client) for client in range(clients)))
    return [outcome for part in parts for outcome in part], begin, end


def tokens_per_second(outcomes: Iterable[Outcome], begin: float, end: float) -> float:
    """Tokens streamed between begin and end, per second.

    An answer that ends later counts with the share of its tokens that fits: the first when it came, the others
    spread evenly until its end.
    """
    total = 0.0
    for one in outcomes:
        if one.error or one.first is None or one.first > end:
            continue
        if one.ended <= end:
            total += one.tokens
        else:
            total += 1 + (one.tokens - 1) * (end - one.first) / (one.ended - one.first)
    return total / (end - begin)


def quantile(values: Sequence[float], q: float) -> float | None:
    """The q-quantile by linear interpolation (numpy's default); None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
