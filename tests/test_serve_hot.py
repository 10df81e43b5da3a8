"""Adapters that come and go, KV cells that leave and return, requests that end early: on tiny random models."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import pytest

from convert.lora.adapter import convert_adapter
from serve.adapters.registry import vet_adapter
from serve.adapters.watch import WatchedFolder, watching
from serve.child.cells.store import SMALLEST
from serve.engine.engine import Engine, open_engine
from serve.engine.events import Event
from serve.engine.trial import Trials
from slm.errors import DamagedFileError, EngineDiedError, EngineError, InputError, UnknownNameError, UnsupportedError
from slm.joints import Finish, Message, SamplingOptions, Scored
from slm.terminal.arguments import NAMED_FILE
from tests.tiny_engine import Files, Oracle, ask, make_files, user
from tests.waiting import eventually

LONG = "Once upon a time there was a very long question, " * 8  # more tokens than SMALLEST


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return make_files(tmp_path_factory.mktemp("hot"))


@pytest.fixture(scope="module")
def oracle(files: Files) -> Iterator[Oracle]:
    with ExitStack() as stack:
        yield Oracle(stack, files)


def collect(begin: Callable[[Callable[[Event], None]], Any]) -> tuple[str, Finish]:
    """Text and end of a request that was begun with a sink."""
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    begin(events.put)
    text = ""
    while not isinstance(event := events.get(timeout=60), Finish):
        if isinstance(event, Exception):
            raise event
        text += event.text if isinstance(event, Scored) else event
    return text, event


# --- cells that leave and return --------------------------------------------------------------------------------


def crowd_out(engine: Engine, adapter: str | None) -> None:
    """Requests that need every cell of the context, so that nothing idle can stay."""
    ask(engine, "Something else entirely", adapter, engine.context - 60, stop=("never said",))


def test_a_conversation_that_left_its_context_returns_and_answers_as_from_cold(files: Files, oracle: Oracle) -> None:
    with open_engine(files.model, {"a": files.a, "b": files.b}, threads=1, context=640, hot=1) as live:
        cold, before = ask(live, LONG, "a", 16)
        assert before.cached_tokens == 0 and before.prompt_tokens > SMALLEST
        crowd_out(live, "b")
        turns = [*user(LONG), Message(role="assistant", content=cold), Message(role="user", content="And then?")]
        text, after = ask(live, turns, "a", 16)
        assert after.cached_tokens >= before.prompt_tokens - 1
        prompt = live.tokens_of(turns, adapter="a")
        assert oracle.same(files.a, prompt, text, oracle.greedy(files.a, prompt, 16))
        crowd_out(live, "a")
        other, fresh = ask(live, turns, "b", 16)
        assert fresh.cached_tokens == 0, "another adapter's cells are worth nothing"
        assert oracle.same(files.b, prompt, other, oracle.greedy(files.b, prompt, 16))


def test_without_memory_for_it_nothing_returns(files: Files) -> None:
    with open_engine(files.model, {}, threads=1, context=640, hot=1, cache_bytes=0) as live:
        ask(live, LONG, None, 16)
        crowd_out(live, None)
        assert ask(live, LONG, None, 16)[1].cached_tokens < SMALLEST


def test_conversations_outlive_the_process_in_a_folder(files: Files, tmp_path: Path, oracle: Oracle) -> None:
    options: dict[str, Any] = {"threads": 1, "context": 640, "cache_folder": tmp_path / "cache", "cache_bytes": 1}
    with open_engine(files.model, {"a": files.a}, **options) as live:
        ask(live, LONG, "a", 16)
    options["cache_bytes"] = 64 << 20
    with open_engine(files.model, {"a": files.a}, **options) as live:
        ask(live, LONG, "a", 16)
    assert list((tmp_path / "cache").glob("*.kv")), "what was in memory at the end has to be on disk"
    with open_engine(files.model, {"renamed": files.a}, **options) as live:
        text, finish = ask(live, LONG, "renamed", 16)
        assert finish.cached_tokens == finish.prompt_tokens - 1
        prompt = live.tokens_of(user(LONG), adapter="renamed")
        assert oracle.same(files.a, prompt, text, oracle.greedy(files.a, prompt, 16))


# --- sets of adapters -------------------------------------------------------------------------------------------


def test_a_request_may_bring_its_own_set_of_adapters_and_scales(files: Files, oracle: Oracle) -> None:
    with open_engine(files.model, {"a": files.a, "b": files.b}, threads=1) as live:
        prompt = live.tokens_of(user("Mix"))
        mixes: list[tuple[list[tuple[str, float]], dict[Path, float]]] = [
            ([("a", 1.0)], {files.a: 1.0}),
            ([("a", 0.5), ("b", 0.5)], {files.a: 0.5, files.b: 0.5}),
            ([("b", 0.5), ("a", 0.5)], {files.a: 0.5, files.b: 0.5}),
            ([("a", -1.0), ("b", 0.0)], {files.a: -1.0}),
            ([], {}),
        ]
        options = SamplingOptions(max_tokens=12)
        cached = []
        for lora, scales in mixes:
            text, finish = collect(
                lambda sink, lora=lora: live.begin_chat(user("Mix"), sink, lora=lora, sampling=options)  # type: ignore[misc]
            )
            assert oracle.same(scales, prompt, text, oracle.greedy(scales, prompt, 12))
            assert finish.adapter == ("+".join(name for name, scale in lora if scale) or None)
            cached.append(finish.cached_tokens)
        assert cached == [0, 0, len(prompt) - 1, 0, 0], "the same set in another order is the same set"
        with pytest.raises(UnknownNameError):
            live.begin_chat(user("Mix"), lambda _: None, lora=[("nobody", 1.0)], sampling=options)
        with pytest.raises(InputError, match="twice"):
            live.begin_chat(user("Mix"), lambda _: None, lora=[("a", 1.0), ("a", 0.5)], sampling=options)


def test_many_adapters_share_few_contexts_and_none_waits_for_anothers_end(files: Files, oracle: Oracle) -> None:
    names = {"a": files.a, "b": files.b, "c": files.c}
    with open_engine(files.model, names, threads=1, hot=1, context=2000) as live:
        long = live.chat(user("Go on for long"), adapter="a", sampling=SamplingOptions(max_tokens=1500))
        next(long)
        for name in "bc":
            text = ask(live, "Short", name, 8)[0]
            assert live.stats().running == 1, "the long answer has to be under way still"
            prompt = live.tokens_of(user("Short"), adapter=name)
            assert oracle.same(names[name], prompt, text, oracle.greedy(names[name], prompt, 8))
        assert live.stats().contexts == 1
        long.close()


# --- ends -------------------------------------------------------------------------------------------------------


def test_cancelling_interrupts_a_long_prompt_and_spares_its_neighbours(files: Files, oracle: Oracle) -> None:
    with open_engine(files.model, {"a": files.a}, threads=1, context=2000, cache_bytes=0) as live:
        neighbour = live.chat(user("Go on"), adapter="a", sampling=SamplingOptions(max_tokens=400))
        text = str(next(neighbour))
        for _ in range(5):
            ticket = live.begin_chat(
                user(LONG * 3), lambda _: None, adapter="a", sampling=SamplingOptions(max_tokens=64)
            )
            time.sleep(0.01)
            ticket.cancel()
        assert eventually(lambda: live.stats().running <= 1, 5)
        text += "".join(piece for piece in neighbour if isinstance(piece, str))
        prompt = live.tokens_of(user("Go on"), adapter="a")
        assert oracle.same(files.a, prompt, text[:60], oracle.greedy(files.a, prompt, 60))
        again, _ = ask(live, LONG * 3, "a", 12)
        prompt = live.tokens_of(user(LONG * 3), adapter="a")
        assert oracle.same(files.a, prompt, again, oracle.greedy(files.a, prompt, 12))


@pytest.mark.parametrize("threads", [1, 2])
def test_no_request_is_forgotten_whatever_comes_and_goes(files: Files, threads: int) -> None:
    """Requests of many adapters, short and long, of which many are cancelled at any moment: each of the others ends."""
    random = Random(threads)
    names = {"a": files.a, "b": files.b, "c": files.c}
    with open_engine(files.model, names, threads=threads, hot=2, parallel=2, context=600) as live:
        ends: queue.SimpleQueue[int] = queue.SimpleQueue()
        kept: set[int] = set()
        for number in range(150):

            def sink(event: Event, number: int = number) -> None:
                if not isinstance(event, str | Scored):
                    ends.put(number)

            sampling = SamplingOptions(max_tokens=random.choice([1, 8, 60]))
            text = random.choice(["Hi", "Once upon a time", LONG]) + str(random.randrange(3))
            adapter = random.choice([None, "a", "b", "c"])
            ticket = live.begin_chat(user(text), sink, adapter=adapter, sampling=sampling)
            if random.random() < 0.4:
                threading.Timer(random.random() * 0.05, ticket.cancel).start()
            else:
                kept.add(number)
            time.sleep(random.random() * 0.01)
        seen: set[int] = set()
        while not kept <= seen:
            seen.add(ends.get(timeout=60))
        assert eventually(lambda: (live.stats().running, live.stats().waiting) == (0, 0), 20)


def test_a_request_that_was_there_at_two_deaths_is_refused(files: Files) -> None:
    with open_engine(files.model, {}, threads=1, context=2000) as live:
        for _ in range(2):
            stream = live.chat(user("Deadly"), sampling=SamplingOptions(max_tokens=1500))
            next(stream)
            assert live.pid is not None
            os.kill(live.pid, signal.SIGKILL)
            with pytest.raises(EngineDiedError):
                list(stream)
        with pytest.raises(EngineError, match="ended the inference process twice"):
            ask(live, "Deadly", None, 1500)
        assert ask(live, "Harmless", None, 4)[1].completion_tokens == 4 and live.restarts == 2


def test_a_trial_reports_an_adapter_that_llama_cpp_refuses(files: Files, tmp_path: Path) -> None:
    with open_engine(files.model, {}, threads=1) as live:
        adapter = vet_adapter("x", files.a, live.base)
        trials = Trials(files.model, set())
        trials.check(adapter)
        broken = tmp_path / "broken.gguf"
        broken.write_bytes(files.a.read_bytes()[:-4000])
        with pytest.raises((DamagedFileError, InputError), match=r"does not fit|not survive"):
            trials.check(
                vet_adapter("x", files.b, live.base).__class__(**{**vars(adapter), "file": broken, "content": "?"})
            )
        assert ask(live, "Still here", None, 4)[1].completion_tokens == 4


# --- a watched folder -------------------------------------------------------------------------------------------


def test_adapters_come_and_go_with_their_files(files: Files, tmp_path: Path, oracle: Oracle) -> None:
    converted: list[Path] = []

    def convert(folder: Path) -> Path:
        converted.append(folder)
        return files.c

    folder = tmp_path / "adapters"
    folder.mkdir()
    (folder / "en.gguf").write_bytes(files.a.read_bytes())
    with open_engine(files.model, {"fixed": files.b}, threads=1) as live:
        names = lambda: [adapter.name for adapter in live.adapters()]  # noqa: E731
        watched = WatchedFolder(folder, live, convert, taken=frozenset({"fixed"}))
        with watching(watched):
            assert names() == ["fixed", "en"]
            (folder / "fixed.gguf").write_bytes(files.a.read_bytes())
            (folder / "broken.gguf").write_bytes(b"GGUF nonsense")
            peft = folder / "ja_lora"
            peft.mkdir()
            (peft / "adapter_config.json").write_text("{}")
            time.sleep(0.1)
            (peft / "adapter_model.safetensors").write_bytes(b"weights")
            assert eventually(lambda: "ja_lora" in names(), 20)
            assert names() == ["fixed", "en", "ja_lora"] and converted == [peft]
            prompt = live.tokens_of(user("Hello"), adapter="en")
            assert oracle.same(files.a, prompt, ask(live, "Hello", "en", 8)[0], oracle.greedy(files.a, prompt, 8))
            (folder / "new.part").write_bytes(files.b.read_bytes())
            (folder / "new.part").replace(folder / "en.gguf")
            changed = oracle.greedy(files.b, prompt, 8)
            assert eventually(lambda: oracle.same(files.b, prompt, ask(live, "Hello", "en", 8)[0], changed), 20)
            (folder / "en.gguf").unlink()
            assert eventually(lambda: names() == ["fixed", "ja_lora"], 20)
        (folder / "late.gguf").write_bytes(files.a.read_bytes())
        threading.Event().wait(1.5)
        assert names() == ["fixed", "ja_lora"], "nobody looks any more"


def test_what_is_put_there_and_cannot_be_read_is_named_and_not_passed_over(tmp_path: Path, capsys: Any) -> None:
    class Loads:
        def __init__(self) -> None:
            self.names: list[str] = []

        def load_adapter(self, name: str, path: Path) -> object:
            self.names.append(name)
            return None

        def unload_adapter(self, name: str) -> None:
            raise AssertionError("nothing is gone")

    (tmp_path / "old").mkdir()
    for name in ("adapter_config.json", "adapter_model.bin"):
        (tmp_path / "old" / name).write_text("{}")
    (tmp_path / "loud.GGUF").write_bytes(b"x")
    live = Loads()

    def converted(folder: Path) -> Path:
        convert_adapter(folder, tmp_path / "x", tmp_path)
        return folder

    watched = WatchedFolder(tmp_path, live, converted)
    watched.update()
    watched.update()
    said = capsys.readouterr().err
    assert live.names == ["loud"] and said.count("the adapter 'old' in") == 1


def test_a_name_is_the_same_however_a_disk_or_a_request_spells_it(files: Files, tmp_path: Path) -> None:
    whole, pieces = "かながき", unicodedata.normalize("NFD", "かながき")
    (tmp_path / f"{pieces}.gguf").write_bytes(files.a.read_bytes())
    with open_engine(files.model, {}, threads=1) as live:
        WatchedFolder(tmp_path, live, lambda folder: folder).update()
        assert [adapter.name for adapter in live.adapters()] == [whole]
        for name in (whole, pieces):
            assert ask(live, "Hello", name, 2)[1].completion_tokens == 2
        live.unload_adapter(pieces)
        assert live.adapters() == []
    assert NAMED_FILE.convert(f"{pieces}=a.gguf", None, None) == (whole, Path("a.gguf"))


def test_an_alora_in_the_folder_is_named_and_left_out(files: Files, tmp_path: Path, capsys: Any) -> None:
    class Refuses:
        def load_adapter(self, name: str, path: Path) -> object:
            raise UnsupportedError(f"'{path.name}' is an activated LoRA")

        def unload_adapter(self, name: str) -> None:
            raise AssertionError("it was never loaded")

    (tmp_path / "x.gguf").write_bytes(b"x")
    watched = WatchedFolder(tmp_path, Refuses(), lambda folder: folder)
    watched.update()
    watched.update()
    (tmp_path / "x.gguf").unlink()
    watched.update()
    assert capsys.readouterr().err.count("activated LoRA") == 1
