"""One model and many adapters: each answers as it does alone, and a damaged or foreign one is refused."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from serve.child.cells.placement import common_prefix
from serve.child.schedule import SMALLEST_CHUNK
from serve.engine.engine import Engine, open_engine
from slm.errors import (
    DamagedFileError,
    EngineDiedError,
    EngineError,
    InputError,
    MismatchError,
    SlmError,
    UnknownNameError,
)
from slm.joints import Finish, Message, SamplingOptions
from tests.served import standing_still
from tests.tiny_engine import QUESTIONS, Files, Oracle, ask, engine, files, oracle, user
from tests.tiny_gguf import write_adapter
from tests.waiting import eventually

__all__ = ["engine", "files", "oracle"]  # fixtures


# --- one model, many adapters -----------------------------------------------------------------------------------


def test_every_adapter_answers_as_bare_llama_cpp_does_whatever_ran_before(
    engine: Engine, files: Files, oracle: Oracle
) -> None:
    for question in QUESTIONS[:2]:
        answers = {}
        for name, path in {"en": files.a, "ja": files.b, "base": None}.items():
            tokens = engine.tokens_of(user(question), adapter=name)
            answers[name] = ask(engine, question, name)[0]
            assert oracle.same(path, tokens, answers[name], oracle.greedy(path, tokens))
        assert len({answer[:8] for answer in answers.values()}) == 3


def test_an_adapter_answers_after_another_as_in_a_fresh_engine(engine: Engine, files: Files, oracle: Oracle) -> None:
    for question in QUESTIONS:
        ask(engine, question, "ja")
    with open_engine(files.model, {"only": files.a}, threads=1) as fresh:
        for question in QUESTIONS:
            mixed, alone = ask(engine, question, "en")[0], ask(fresh, question, "only")[0]
            assert oracle.same(files.a, fresh.tokens_of(user(question)), mixed, alone)


def test_a_burst_is_read_in_few_steps_by_all_contexts(files: Files) -> None:
    """Not one request for each step of the other context."""
    ended: queue.SimpleQueue[object] = queue.SimpleQueue()

    def take(event: object) -> None:
        if not isinstance(event, str):
            ended.put(event)

    with open_engine(files.model, {}, threads=2, parallel=12) as engine:
        with standing_still(engine):
            for number in range(12):
                ids = np.random.default_rng(number).integers(40, 60, 20).tolist()
                engine.begin_complete(ids, take, sampling=SamplingOptions(max_tokens=1, ignore_eos=True))
        assert all(isinstance(ended.get(timeout=30), Finish) for _ in range(12))
        assert engine.stats().steps <= 4


def test_adapters_mixed_at_the_same_time_answer_as_alone(engine: Engine, files: Files, oracle: Oracle) -> None:
    paths = {"en": files.a, "ja": files.b, None: None}
    jobs = [(f"{question} {n}", name) for n in range(3) for question in QUESTIONS for name in paths]
    together: dict[tuple[str, str | None], str] = {}
    threads = [
        threading.Thread(target=lambda job=job: together.__setitem__(job, ask(engine, job[0], job[1])[0]))
        for job in jobs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    alone = {job: ask(engine, *job)[0] for job in jobs}
    for job in jobs:
        assert oracle.same(paths[job[1]], engine.tokens_of(user(job[0])), together[job], alone[job])
    assert sum(together[job] == alone[job] for job in jobs) > len(jobs) * 0.7


def test_of_requests_that_come_together_one_reads_the_common_beginning(engine: Engine) -> None:
    system = Message(role="system", content="A shop for lamps and desks answers its customers. " * 5)
    asked = [[system, Message(role="user", content=f"{n} {QUESTIONS[n]}")] for n in range(4)]
    finishes: dict[int, Finish] = {}

    def sink(number: int) -> Callable[[object], None]:
        return lambda event: finishes.__setitem__(number, event) if isinstance(event, Finish) else None

    for number, messages in enumerate(asked):  # no answer is read before all are under way
        engine.begin_chat(messages, sink(number), adapter="en", sampling=SamplingOptions(max_tokens=4))
    assert eventually(lambda: len(finishes) == 4)
    prompts = [engine.tokens_of(messages, adapter="en") for messages in asked]
    enough = min(common_prefix(prompts[0], prompt) for prompt in prompts) - SMALLEST_CHUNK
    assert enough > 200
    assert sorted(finish.cached_tokens > enough for finish in finishes.values()) == [False, True, True, True]


def test_more_adapters_than_hot_contexts_all_answer(files: Files, oracle: Oracle) -> None:
    paths = {"a": files.a, "b": files.b, "c": files.c}
    with open_engine(files.model, paths, threads=1, hot=1, parallel=2) as small:
        got: dict[tuple[str, int], str] = {}

        def work(name: str, n: int) -> None:
            got[name, n] = ask(small, QUESTIONS[n], name, 8)[0]

        threads = [threading.Thread(target=work, args=(name, n)) for n in range(3) for name in paths]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert small.stats().contexts == 1
        for (name, n), text in got.items():
            prompt = small.tokens_of(user(QUESTIONS[n]))
            assert oracle.same(paths[name], prompt, text, ask(small, QUESTIONS[n], name, 8)[0])
        assert len(got) == 9


def test_an_adapter_can_be_replaced_and_unloaded_while_it_streams(files: Files, oracle: Oracle) -> None:
    with open_engine(files.model, {"x": files.a, "y": files.b}, threads=1) as live:
        whole, new = ask(live, "Go on", "x", 1500)[0], ask(live, "Go on", "y")[0]
        old = live.adapters()[0].content
        stream = live.chat(user("Go on"), adapter="x", sampling=SamplingOptions(max_tokens=1500))
        text = str(next(stream))
        live.load_adapter("x", files.b)
        assert live.stats().running == 1, "the first answer has to be under way still"
        prompt = live.tokens_of(user("Go on"))
        assert oracle.same(files.b, prompt, ask(live, "Go on", "x")[0], new)
        live.unload_adapter("x")
        with pytest.raises(UnknownNameError):
            ask(live, "Go on", "x")
        text += "".join(piece for piece in stream if isinstance(piece, str))
        assert len(text) == 1500 and oracle.same(files.a, prompt, text, whole)
        assert eventually(lambda: old not in live.stats().adapters)
        live.load_adapter("z", files.c)
        assert ask(live, "Go on", "z")[0][:8] not in (new[:8], whole[:8])


def test_a_reload_under_the_same_name_misses_the_cache_and_the_same_content_hits_it(
    files: Files, oracle: Oracle
) -> None:
    with open_engine(files.model, {"x": files.a}, threads=1) as live:
        cold = ask(live, "Cache me", "x")[1]
        warm = ask(live, "Cache me", "x")[1]
        assert (cold.cached_tokens, warm.cached_tokens) == (0, cold.prompt_tokens - 1)
        live.load_adapter("x", files.b)
        text, finish = ask(live, "Cache me", "x")
        assert finish.cached_tokens == 0
        prompt = live.tokens_of(user("Cache me"), adapter="x")
        assert oracle.same(files.b, prompt, text, oracle.greedy(files.b, prompt))
        live.load_adapter("twin", files.b)
        assert ask(live, "Cache me", "twin")[1].cached_tokens == finish.prompt_tokens - 1
        live.load_adapter("half", files.b, scale=0.5)
        assert ask(live, "Cache me", "half")[1].cached_tokens == 0


def test_a_second_turn_reuses_the_first_and_answers_as_from_cold(engine: Engine, files: Files, oracle: Oracle) -> None:
    first, before = ask(engine, "A conversation begins here", "en")
    turns = [*user("A conversation begins here"), Message(role="assistant", content=first), *user("And then?")]
    second, finish = ask(engine, turns, "en")
    assert finish.cached_tokens >= before.prompt_tokens
    prompt = engine.tokens_of(turns, adapter="en")
    assert oracle.same(files.a, prompt, second, oracle.greedy(files.a, prompt))


def test_loading_and_unloading_many_adapters_leaves_nothing_behind(engine: Engine, files: Files) -> None:
    kept = set(engine.stats().adapters)
    for round_ in range(6):
        engine.load_adapter("guest", files.c, scale=1 + round_ / 10)
        ask(engine, "Hello", "guest", 2)
        engine.unload_adapter("guest")
    assert eventually(lambda: set(engine.stats().adapters) == kept)


# --- bad files and names ----------------------------------------------------------------------------------------


def test_an_unknown_adapter_is_an_error_that_lists_the_names(engine: Engine) -> None:
    with pytest.raises(UnknownNameError, match=r"'fr'; known: auto, base, en, ja, model"):
        ask(engine, "Bonjour", "fr")


def test_damaged_adapter_files_are_refused_and_the_engine_goes_on(engine: Engine, files: Files) -> None:
    pid, good = engine.pid, files.a.read_bytes()
    random = np.random.default_rng(3)
    bad = files.folder / "bad.gguf"
    damaged = [b"", b"GGUF", random.bytes(5000), *(good[:cut] for cut in (37, 200, len(good) // 2, len(good) - 40))]
    damaged.append(good[:-4] + b"\xff\xff\xff\xff")  # not a number
    damaged.append(write_adapter(files.folder / "alpha.gguf", alpha=float("nan")).read_bytes())
    for content in damaged:
        bad.write_bytes(content)
        with pytest.raises(InputError):
            engine.load_adapter("bad", bad)
    for _ in range(40):  # flipped bytes in the header: refused or harmless, never fatal
        mutated = bytearray(good)
        for at in random.integers(0, 1500, 4):
            mutated[at] = random.integers(0, 256)
        bad.write_bytes(mutated)
        try:
            engine.load_adapter("bad", bad)
            engine.unload_adapter("bad")
        except EngineDiedError:
            raise
        except SlmError:
            continue
    with pytest.raises(InputError, match="not a LoRA adapter"):
        engine.load_adapter("bad", files.model)
    assert engine.pid == pid
    assert [a.name for a in engine.adapters()] == ["en", "ja"]
    assert ask(engine, "Still there?", "en")[1].completion_tokens == 24


def test_damaged_model_files_are_refused(files: Files, tmp_path: Path) -> None:
    good, bad = files.model.read_bytes(), tmp_path / "bad.gguf"
    for content in (b"", np.random.default_rng(5).bytes(4000), good[:300], good[: len(good) // 2]):
        bad.write_bytes(content)
        with pytest.raises(DamagedFileError), open_engine(bad, {}):
            pass
    with pytest.raises(InputError, match="is an adapter, not a model"), open_engine(files.a, {}):
        pass


def test_a_model_that_passes_the_header_check_and_fails_in_llama_cpp_is_an_error(files: Files, tmp_path: Path) -> None:
    bad = tmp_path / "renamed.gguf"
    bad.write_bytes(files.model.read_bytes().replace(b"output_norm.weight", b"output_nrom.weight"))
    with pytest.raises((DamagedFileError, EngineError)), open_engine(bad, {}):
        pass


def test_an_adapter_of_another_base_is_refused(engine: Engine, tmp_path: Path) -> None:
    others = {
        "does not fit": write_adapter(tmp_path / "wide.gguf", width=128),
        "trained on other weights": write_adapter(tmp_path / "print.gguf", base_fingerprint="beef" * 16),
        "architecture 'gemma3'": write_adapter(tmp_path / "arch.gguf", architecture="gemma3"),
    }
    for message, path in others.items():
        with pytest.raises(MismatchError, match=message):
            engine.load_adapter("other", path)
    right = write_adapter(tmp_path / "right.gguf", base_fingerprint="f00d" * 16, seed=9)
    engine.load_adapter("other", right)
    engine.unload_adapter("other")


@pytest.mark.parametrize("name", ["auto", "base", "model", "a/b", "", "x" * 65])
def test_a_name_that_could_be_confused_is_refused(engine: Engine, files: Files, name: str) -> None:
    with pytest.raises(InputError, match="cannot be an adapter's name"):
        engine.load_adapter(name, files.c)
