"""The loads a server is put under, each a question that users ask of it. It knows the server as an HTTP client.

mixed         many clients, their adapters taking turns: throughput and time to first token (TTFT)
one_adapter   the same with one adapter
overtaking    a short request on one adapter while another one generates a long answer: TTFT
second_turn   the second turn of a conversation with a long history: TTFT
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from serve.bench.load import Outcome, ask, closed_loop, new_client, quantile, tokens_per_second
from serve.bench.peers import Contender
from serve.bench.process import Server
from serve.bench.prompts import conversation, long_conversation, next_turn
from slm.joints import Message

LONG_TOKENS, SHORT_TOKENS, TURN_TOKENS = 400, 16, 32
LANGUAGES = ("en", "ja")
_RECORDS = 18  # about 1,500 tokens
_HEAD_START_S = 0.5


@dataclass(frozen=True)
class LoadPlan:
    """How much load: clients at once, tokens of an answer, seconds of each closed loop, how many adapters.

    repeats: of the scenarios with one request. records: length of the long history, about 75 tokens each.
    """

    clients: int = 8
    tokens: int = 64
    seconds: float = 15.0
    adapters: int = 2
    records: int = _RECORDS
    long_tokens: int = LONG_TOKENS
    repeats: int = 3


class Session:
    """One server under test and what its requests look like."""

    def __init__(self, client: httpx.AsyncClient, contender: Contender, plan: LoadPlan, full_length: dict[str, Any]):
        self._client, self._contender, self.plan, self._full_length = client, contender, plan, full_length

    async def ask(
        self, messages: Sequence[Message], adapter: int, tokens: int, on_first: Callable[[], None] = lambda: None
    ) -> Outcome:
        """One streamed request, greedy, of exactly `tokens` tokens where the server can."""
        body = {"messages": list(messages), "max_tokens": tokens, "temperature": 0}
        body |= {**self._contender.fields(adapter), **self._full_length}
        return await ask(self._client, body, on_first=on_first)


async def run_scenarios(server: Server, contender: Contender, plan: LoadPlan, number: int) -> dict[str, Any]:
    """Every scenario once, after a warm-up that is not counted. number: of the round; no prompt repeats over rounds.

    Returns {scenario: {figures}}. Raises nothing for failed requests: they are counted.
    """
    async with new_client(server.url, plan.clients + 4) as client:
        session = Session(client, contender, plan, await full_length_of(client, contender))
        await asyncio.gather(*(session.ask(conversation("en", 0), n, 8) for n in range(plan.adapters)))
        first = 1 + number * 100_000
        return {
            "mixed": await loop(session, first, plan.adapters),
            "one_adapter": await loop(session, first + 50_000, 1),
            "overtaking": await overtaking(session, first + 90_000),
            "second_turn": await second_turn(session, 1 + number * plan.repeats),
        }


async def full_length_of(client: httpx.AsyncClient, contender: Contender) -> dict[str, Any]:
    """The fields against an early end of an answer, if the server takes them."""
    body = {"messages": list(conversation("en", 0)), "max_tokens": 1, **contender.fields(0)}
    first = await ask(client, {**body, **contender.full_length})
    return {} if first.error.startswith("HTTP 400") else contender.full_length


async def loop(session: Session, first: int, adapters: int) -> dict[str, Any]:
    """The closed loop: clients take the adapters, and the languages, in turn."""
    plan = session.plan

    async def send(client: int, n: int) -> Outcome:
        turns = conversation(LANGUAGES[client % len(LANGUAGES)], first + n * plan.clients + client)
        return await session.ask(turns, client % adapters, plan.tokens)

    outcomes, begin, end = await closed_loop(send, clients=plan.clients, seconds=plan.seconds)
    return {**summary(outcomes), "tokens_per_s": tokens_per_second(outcomes, begin, end)}


async def overtaking(session: Session, first: int) -> dict[str, Any]:
    """TTFT of a short request on the last adapter, half a second after a long answer on the first began to come."""
    outcomes = []
    for n in range(session.plan.repeats):
        began = asyncio.Event()
        long = asyncio.create_task(
            session.ask(conversation("en", first + 2 * n), 0, session.plan.long_tokens, on_first=began.set)
        )
        wait = asyncio.create_task(began.wait())
        await asyncio.wait({long, wait}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(_HEAD_START_S)
        outcomes.append(
            await session.ask(conversation("ja", first + 2 * n + 1), session.plan.adapters - 1, SHORT_TOKENS)
        )
        wait.cancel()
        if long.done() and long.result().error:
            outcomes.append(long.result())
        long.cancel()
        await asyncio.gather(long, wait, return_exceptions=True)
    return summary(outcomes)


async def second_turn(session: Session, first: int) -> dict[str, Any]:
    """TTFT of a conversation's second turn, asked as soon as the first is answered."""
    outcomes, failed_before = [], []
    for n in range(session.plan.repeats):
        turns = long_conversation(first + n, session.plan.records)
        answer = await session.ask(turns, 0, TURN_TOKENS)
        if answer.error:
            failed_before.append(answer)
            continue
        outcomes.append(await session.ask(next_turn(turns, answer.text), 0, TURN_TOKENS))
    return summary(outcomes, failed_before)


def summary(outcomes: Sequence[Outcome], also_failed: Sequence[Outcome] = ()) -> dict[str, Any]:
    """{requests, failed, short, prompt_tokens, ttft_p50_s, ttft_p95_s, error}; error: the first one's words."""
    whole = [one for one in outcomes if not one.error]
    failed = [*also_failed, *(one for one in outcomes if one.error)]
    waits = [one.ttft for one in whole if one.ttft is not None]
    counted = [one.prompt_tokens for one in whole if one.prompt_tokens]
    return {
        "requests": len(outcomes) + len(also_failed),
        "failed": len(failed),
        "short": sum(one.short for one in whole),
        "prompt_tokens": quantile(counted, 0.5),
        "ttft_p50_s": quantile(waits, 0.5),
        "ttft_p95_s": quantile(waits, 0.95),
        "error": failed[0].error if failed else "",
    }
