"""A batch answered by several machines, without Ray: who is asked, who is left out, and what if one is lost.

What crosses does so by pickle, as with Ray (`tests/test_cluster.py` has Ray itself).
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from serve.adapters.registry import vet_base
from serve.batch import crew as crew_module
from serve.batch.crew import Crew
from serve.batch.hand import BatchHand, OpenedHand
from serve.batch.inside import InsideServer
from serve.cluster.known import KnownAdapters
from serve.cluster.remote import RemoteEngine, ReplicaLostError, Replicas
from serve.cluster.settings import ClusterSettings, ModelSettings
from serve.cluster.wire import Ask, NeededAdapter, Telling, TextAsked, TokensAsked
from serve.engine.engine import open_engine
from serve.engine.options import EngineOptions
from slm.errors import EngineError, MismatchError, MissingFileError, SlmError
from slm.joints import Joints
from tests.path_joints import PathJoints
from tests.test_batch import answered, batch, line
from tests.tiny_gguf import write_adapter, write_model

CHAT = "/v1/chat/completions"


class Far:
    """A handle of Ray on somebody in this process: what goes and comes is pickled."""

    def __init__(self, hand: Any) -> None:
        self._hand = hand

    def __getattr__(self, name: str) -> Any:
        def remote(*arguments: Any) -> Awaitable[Any]:
            async def run() -> Any:
                done = await getattr(self._hand, name)(*pickle.loads(pickle.dumps(arguments)))
                return pickle.loads(pickle.dumps(done))

            return run()

        return SimpleNamespace(remote=remote)


class Played:
    """A machine that says what it is told to say: `opens` in turns, the last for good; `answers` for each request."""

    def __init__(self, *opens: Any, answers: Callable[[int], Exception | None] = lambda n: None) -> None:
        self.opens, self.answers = list(opens or [OpenedHand("m", "c")]), answers
        self.asked: list[str] = []
        self.free = asyncio.Event()
        self.free.set()

    async def open(self) -> Any:
        found = self.opens.pop(0) if len(self.opens) > 1 else self.opens[0]
        if isinstance(found, Exception) and not isinstance(found, SlmError):
            raise found
        return found

    async def answer(self, ask: Ask) -> Telling:
        self.asked.append(ask.warm)
        await self.free.wait()
        if error := self.answers(len(self.asked)):
            raise error
        return Telling(("said",), True)


def asking(warm: str = "") -> Ask:
    return Ask(TextAsked(()), (NeededAdapter(warm, ""),) if warm else ())


def with_crew(does: Callable[[Crew], Coroutine[Any, Any, None]], *machines: Played, room: int = 4) -> None:
    async def run() -> None:
        crew = Crew([Far(one) for one in machines], "c", room=room, parallel=2)
        crew.begin()
        await asyncio.wait_for(does(crew), 30)

    asyncio.run(run())


async def told(crew: Crew, ask: Ask) -> tuple[Any, ...]:
    async for telling in crew.ask(ask):
        return telling.events
    raise AssertionError


def test_who_is_at_an_adapter_gets_its_requests_until_another_is_idler_by_a_batch() -> None:
    one, two = Played(), Played()

    async def does(crew: Crew) -> None:
        await crew.first()
        while len([row for row in crew.rows() if row.state == "ready"]) < 2:
            await asyncio.sleep(0)
        for machine in (one, two):
            machine.free.clear()
        works = []
        for warm in ("a", "b", "a", "b", "a", "a", "a"):
            works.append(asyncio.ensure_future(told(crew, asking(warm))))
            await asyncio.sleep(0.01)
        # Each takes four: the last of "a" finds no room with the first machine.
        assert one.asked == ["a", "a", "a", "a"] and two.asked == ["b", "b", "a"]
        works += [asyncio.ensure_future(told(crew, asking("c"))) for _ in range(2)]
        await asyncio.sleep(0.01)
        assert len(one.asked) + len(two.asked) == 8  # one waits
        for machine in (one, two):
            machine.free.set()
        assert await asyncio.gather(*works) == [("said",)] * 9

    with_crew(does, one, two)


def test_a_machine_that_is_lost_is_asked_again_when_it_is_back_and_the_others_go_on() -> None:
    away = ActorUnavailableError("away", None)
    lost = Played(OpenedHand("m", "c"), away, OpenedHand("m", "c"), answers=lambda n: away if n == 1 else None)
    late = Played()
    late.opens = [OpenedHand("n", "c")]

    async def does(crew: Crew) -> None:
        await crew.first()
        with pytest.raises(ReplicaLostError):
            while True:
                await told(crew, asking("a"))
        assert [row.state for row in crew.rows()] == ["ready", "starting"]
        assert await told(crew, asking("a")) == ("said",) and late.asked
        while [row.state for row in crew.rows()] != ["ready", "ready"]:
            await asyncio.sleep(0.01)
        assert {row.machine for row in crew.rows()} == {"m", "n"}

    with_crew(does, lost, late)


def test_a_machine_with_another_model_is_left_out_and_named(capfd: pytest.CaptureFixture[str]) -> None:
    good, other = Played(), Played(OpenedHand("node2", "d"))

    async def does(crew: Crew) -> None:
        for _ in range(6):
            await told(crew, asking())
        assert [row.state for row in crew.rows()] == ["ready", "down"] and not other.asked

    with_crew(does, good, other)
    assert "a machine is left out: the model is another file on the machine node2" in capfd.readouterr().err


def test_without_a_machine_that_can_open_the_model_its_error_is_raised() -> None:
    missing = MissingFileError("there is no file 'm.gguf'")

    async def does(crew: Crew) -> None:
        with pytest.raises(MissingFileError, match=r"there is no file 'm\.gguf'"):
            await crew.first()
        with pytest.raises(EngineError, match="no machine of the cluster is left"):
            await told(crew, asking())

    with_crew(does, Played(missing), Played(MismatchError("another version")))


def test_when_all_are_lost_for_good_the_batch_ends_and_its_answers_are_kept(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.gguf")
    dying = Played(OpenedHand("m", vet_base(model).content), ActorDiedError(), answers=lambda n: ActorDiedError())
    path = batch(tmp_path / "b.jsonl", *(line(f"{n}") for n in range(4)))
    with engine_of([Far(dying)], model, {}) as engine, pytest.raises(EngineError, match="could not be started again"):
        answered(path, InsideServer(engine))
    assert not (tmp_path / "out.jsonl").exists()


@contextmanager
def engine_of(handles: list[Any], model: Path, adapters: dict[str, Path]) -> Iterator[RemoteEngine]:
    """As `opened_crew` makes it, of these handles."""
    base = vet_base(model)
    known = KnownAdapters(base, lambda folder: folder)
    try:
        for name, path in adapters.items():
            known.load_adapter(name, path)
        with crew_module._turning() as loop:
            crew = Crew(handles, base.content, room=8, parallel=2)
            loop.call_soon_threadsafe(crew.begin)
            asyncio.run_coroutine_threadsafe(crew.first(), loop).result(60)
            yield RemoteEngine(base, known, Replicas(crew.ask, crew.rows, loop), options=EngineOptions(parallel=2))
    finally:
        known.close()


def hand(model: Path, adapters: dict[str, Path], *, content: str = "") -> BatchHand:
    """One that opens a model in this process. content: what the first adapter's file is said to hold."""
    known = KnownAdapters(vet_base(model), lambda folder: folder)
    for name, path in adapters.items():
        known.load_adapter(name, path)
    needed = [known.needed(name) for name in adapters]
    known.close()
    if content:
        needed[0] = NeededAdapter(content, needed[0].source)
    settings = ClusterSettings(ModelSettings(str(model), parallel=2, context=512))
    return BatchHand(settings.plain(), cast(Joints, PathJoints()), needed)


def test_two_machines_write_the_lines_that_one_writes(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.gguf")
    adapters = {name: write_adapter(tmp_path / f"{name}.gguf", seed=n) for n, name in enumerate(("en", "ja"), 1)}

    def body(n: int) -> dict[str, Any]:
        words = {"model": ("en", "ja", "base", "none")[n % 4], "max_tokens": 6, "temperature": 0, "ignore_eos": True}
        return {"messages": [{"role": "user", "content": f"Count to {n}."}], **words}

    path = batch(tmp_path / "b.jsonl", *(line(f"{n}", body(n), CHAT) for n in range(24)), "no json")
    with open_engine(model, adapters, threads=1, parallel=2, context=512) as engine:
        figures, alone = answered(path, InsideServer(engine))
    hands = [hand(model, adapters) for _ in range(2)]
    for each in hands:  # else a quick one answers everything before the other is ready
        asyncio.run(each.open())
    with engine_of([Far(one) for one in hands], model, adapters) as spread:
        again, together = answered(path, InsideServer(spread), window=16)
    for each in hands:
        assert each._engine is not None and each._engine.stats().steps > 0
        each._engine.close()
    assert (figures.answered, figures.failed) == (again.answered, again.failed) == (18, 7)
    for one, two in zip(alone, together, strict=True):
        assert (one["custom_id"], one["error"]) == (two["custom_id"], two["error"])
        if one["response"]:
            assert one["response"]["status_code"] == two["response"]["status_code"]
            ours, theirs = one["response"]["body"], two["response"]["body"]
            assert ours.get("choices") == theirs.get("choices") and ours.get("error") == theirs.get("error")


def test_a_machine_whose_adapter_is_another_file_says_so(tmp_path: Path) -> None:
    model, en = write_model(tmp_path / "tiny.gguf"), write_adapter(tmp_path / "en.gguf", seed=1)
    other = hand(model, {"en": en}, content="0" * 64)
    found = asyncio.run(other.open())
    assert isinstance(found, MismatchError) and "another file on another machine" in found.what
    asked = asyncio.run(other.answer(asking()))
    assert isinstance(asked.events[0], EngineError) and asked.last and other._engine is None


def test_an_engine_that_cannot_be_started_any_more_gives_way_to_a_new_one(tmp_path: Path) -> None:
    one = hand(write_model(tmp_path / "tiny.gguf"), {})

    async def does() -> None:
        assert isinstance(await one.open(), OpenedHand)
        assert one._engine is not None
        one._engine.close()
        assert one._engine.state == "closed"
        asked = await one.answer(Ask(TokensAsked("Hi", add_special=False)))
        assert asked.events and isinstance(asked.events[0], list)
        one._engine.close()

    asyncio.run(does())
