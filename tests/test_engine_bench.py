"""`slm bench engine`: the turns, what is computed from streams, the table, who is found, and a whole run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from serve.bench.engine import contenders
from serve.bench.engine.contenders import EngineSetup, install, peers
from serve.bench.engine.plan import (
    EnginePlan,
    MadePrompts,
    TimedStream,
    decode_rate,
    figures,
    last_first_token,
    taken,
    turns,
)
from serve.bench.engine.rigs import by_pipe
from serve.bench.engine.run import bench_engines, engine_table, medians, ratios_of
from serve.cli.bench import bench_engine
from slm.errors import EngineError
from tests.path_joints import PathJoints
from tests.tiny_gguf import TOKENS, write_model

TINY = EnginePlan(prefill=8, depth=6, decode=4, streams=(1, 2), short_prompts=2, short=4, long=10, repeat=1)


def setup_of(model: Path, **more: Any) -> EngineSetup:
    return EngineSetup(model, TINY, lambda: model, context=256, threads=1, **more)


# --- the plan -----------------------------------------------------------------------------------------------------


def test_everybody_has_a_turn_before_anybody_has_another() -> None:
    assert list(turns(["a", "b"], 2)) == [(1, "a"), (1, "b"), (2, "a"), (2, "b")]


def test_the_context_holds_the_longest_prompt_with_its_answer() -> None:
    assert EnginePlan().longest == 768 and EnginePlan(prefill=256, depth=8, long=9).longest == 512
    assert EnginePlan().most == 16 and EnginePlan(streams=(1, 32)).most == 32


def test_prompts_are_whole_words_and_none_begins_as_another() -> None:
    tokens = ["<s>", "x", *(f"Ġw{'abcdefghij'[n // 10]}{'abcdefghij'[n % 10]}" for n in range(100)), "Ġ12"]
    prompts = MadePrompts(tokens, [3] + [1] * (len(tokens) - 1))
    made = [prompts.next(7) for _ in range(50)]
    assert len({ids[0] for ids in made}) == 50 and {len(ids) for ids in made} == {7}
    assert {id for ids in made for id in ids} <= set(range(2, 102))
    again = MadePrompts(tokens, [3] + [1] * (len(tokens) - 1))
    assert [again.next(7) for _ in range(50)] == made


def test_a_vocabulary_without_words_or_types_gives_prompts_too() -> None:
    assert set(MadePrompts(["a", "b", "<s>"], [1, 1, 3]).next(40)) == {0, 1}
    assert set(MadePrompts(["a", "b"], None).next(40)) == {0, 1}


# --- streams ------------------------------------------------------------------------------------------------------


def test_the_rate_of_streams_counts_only_while_all_of_them_are_answered() -> None:
    early = TimedStream((1.0, 2.0, 3.0, 4.0), 4)
    late = TimedStream((2.0, 3.0, 4.0, 5.0), 4)
    assert last_first_token([early, late]) == 2.0
    assert decode_rate([early, late]) == pytest.approx(4 / 2)
    assert decode_rate([early]) == pytest.approx(1.0)
    assert decode_rate([early, TimedStream((4.0, 5.0), 2)]) is None
    assert decode_rate([TimedStream((1.0,), 1)]) is None


@given(st.integers(1, 5), st.integers(2, 60), st.floats(0.001, 1.0), st.integers(1, 3))
def test_the_rate_is_that_of_the_tokens_however_many_come_in_a_piece(
    streams: int, pieces: int, gap: float, tokens: int
) -> None:
    one = TimedStream(tuple(gap * (n + 1) for n in range(pieces)), pieces * tokens)
    assert decode_rate([one] * streams) == pytest.approx(streams * tokens / gap)


def test_figures_are_taken_of_prompts_of_the_sizes_that_were_planned() -> None:
    """An engine that reads a token in a millisecond and writes a step in ten, and keeps the prompts it has read."""
    known: set[tuple[int, ...]] = set()
    orders: list[tuple[int, int, int]] = []

    def ask(prompts: Sequence[Sequence[int]], tokens: int) -> list[TimedStream]:
        orders.append((len(prompts), len(prompts[0]), tokens))
        read = sum(1 if tuple(ids) in known else len(ids) for ids in prompts) / 1000
        known.update(tuple(ids) for ids in prompts)
        return [TimedStream(tuple(read + 0.01 * n for n in range(tokens)), tokens) for _ in prompts]

    found, problems = taken(ask, MadePrompts(TOKENS, None), TINY)
    assert problems == []
    assert found == {
        "prefill_tokens_per_s": pytest.approx(1000),
        "decode_1_tokens_per_s": pytest.approx(100),
        "decode_2_tokens_per_s": pytest.approx(200),
        "last_first_token_s": pytest.approx(0.008),
        "ttft_s": pytest.approx(0.01),
    }
    assert orders == [(1, 8, 1), (1, 8, 1), (1, 6, 1), (1, 6, 4), (2, 6, 1), (2, 6, 4), (2, 4, 4), (1, 10, 1)]


def test_an_order_that_fails_leaves_out_its_own_figure_and_says_why() -> None:
    def ask(prompts: Sequence[Sequence[int]], tokens: int) -> list[TimedStream]:
        if len(prompts) > 1:
            raise EngineError("no more than one")
        return [TimedStream(tuple(0.1 * n for n in range(1, tokens + 1)), tokens)]

    found, problems = taken(ask, MadePrompts(TOKENS, None), TINY)
    assert [key for key, value in found.items() if value is None] == ["decode_2_tokens_per_s", "last_first_token_s"]
    assert problems == ["decode_2_tokens_per_s: no more than one", "last_first_token_s: no more than one"]


# --- medians and the table ----------------------------------------------------------------------------------------


def row(name: str, http: bool, value: float | None) -> dict[str, Any]:
    return {"name": name, "http": http, **{figure.key: value for figure in figures(TINY)}}


def test_a_median_is_of_the_turns_that_have_the_figure() -> None:
    assert medians([{"a": 3.0, "b": None}, {"a": 1.0, "b": 5.0}, {"a": 2.0, "b": None}]) == {"a": 2.0, "b": 5.0}
    assert medians([{"a": None}]) == {"a": None} and medians([]) == {}


def test_a_peer_is_compared_with_ours_of_its_own_kind_and_above_one_ours_is_better() -> None:
    own = [row("slm", False, 8.0), row("slm, HTTP", True, 4.0)]
    compared = ratios_of(own, [row("library", False, 4.0), row("server", True, 4.0), row("odd", True, None)], TINY)
    assert compared["library"]["decode_1_tokens_per_s"] == 2.0 and compared["library"]["ttft_s"] == 0.5
    assert compared["server"]["decode_1_tokens_per_s"] == compared["server"]["ttft_s"] == 1.0
    assert set(compared["odd"].values()) == {None}


def test_the_table_has_a_dash_where_a_figure_does_not_exist() -> None:
    engines = [row("slm", False, 8.0), row("slm, HTTP", True, 4.0), row("peer", False, None)]
    result = {"engines": engines, "ratios": ratios_of(engines[:2], engines[2:], TINY)}
    headings, rows = engine_table(result, TINY)
    assert headings[:4] == ["", "prefill 8", "decode 1", "decode 2"]
    assert [line[0] for line in rows] == ["slm", "slm, HTTP", "peer", "ours / it"]
    assert rows[0][1:] == ["8.00"] * 7 and rows[2][1:] == rows[3][1:] == ["-"] * 7


# --- who is measured ----------------------------------------------------------------------------------------------


def test_a_peer_that_is_not_there_is_a_line_that_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLM_HOME", str(tmp_path / "home"))
    found, missing = peers(setup_of(tmp_path / "m.gguf"), contenders.NAMES)
    assert [one.name for one in found] == ["llama.cpp (llama-cpp-python, our kernels off)"]
    assert [line.split()[0] for line in missing] == ["openvino", "ik_llama.cpp", "vllm"]
    assert "--install-peers" in missing[0] and "--program ik_llama.cpp=FILE" in missing[1] and "--program" in missing[2]


def test_a_program_that_is_named_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    program = tmp_path / "llama-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    gone = {"llama.cpp": tmp_path / "gone"}
    places = dict.fromkeys(contenders.NAMES, program)
    found, missing = peers(setup_of(tmp_path / "m.gguf", places=places), contenders.NAMES)
    assert missing == [] and [one.http for one in found] == [True, False, True, True]
    assert found[0].name == "llama.cpp (llama-server, HTTP)"
    found, missing = peers(setup_of(tmp_path / "m.gguf", places=gone), ["llama.cpp"])
    assert found == [] and "there is no program" in missing[0]
    found, missing = peers(setup_of(tmp_path / "m.gguf"), ["llama.cpp"])  # on PATH
    assert found[0].http


def test_only_openvino_is_installed_and_only_where_it_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLM_HOME", str(tmp_path))
    asked: list[Any] = []
    monkeypatch.setattr("venv.create", lambda folder, **_: asked.append(folder))
    failed = subprocess.CompletedProcess([], 1, "", "no such thing\nERROR: no network\n")
    monkeypatch.setattr("subprocess.run", lambda command, **_: asked.append(command[-1]) or failed)
    assert install(["llama.cpp", "vllm"]) == [] and asked == []
    assert install(["openvino"]) == ["pip could not install openvino-genai: ERROR: no network"]
    assert asked == [tmp_path / "peers" / "openvino", "openvino-genai"]
    python = tmp_path / "peers" / "openvino" / "bin" / "python"
    (python.parent.parent / "lib" / "openvino_genai-2026.4.1.dist-info").mkdir(parents=True)
    python.parent.mkdir()
    python.touch()
    assert install(["openvino"]) == [] and len(asked) == 2


# --- engines in processes of their own ----------------------------------------------------------------------------


def test_an_engine_that_ends_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    with (
        by_pipe("no such engine", {}) as (_, ask),
        pytest.raises(EngineError, match=r"ended with code 1.*KeyError: 'no such engine'"),
    ):
        ask([[1]], 1)


def test_a_whole_run_beside_the_library_and_a_peer_that_does_not_start(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.gguf")
    setup = setup_of(model, places={"openvino": Path(sys.executable)})  # a Python without it
    result = bench_engines(setup, ["llama.cpp", "openvino"], ["told before"])
    json.dumps(result)
    assert [one["name"] for one in result["engines"]] == ["slm", "slm, HTTP", contenders.STOCK]
    keys = {figure.key for figure in figures(TINY)}
    for one in result["engines"]:
        known = {key for key in keys if one[key] is not None and one[key] > 0}
        told = {key for key in keys if any(f"{one['name']}, {key}" in line for line in result["missing"])}
        assert known | told == keys and "prefill_tokens_per_s" in known, one
    assert list(result["ratios"]) == [contenders.STOCK]
    assert result["missing"][0] == "told before"
    assert any("openvino (GGUF) is not measured" in line and "No module" in line for line in result["missing"])


def test_the_command_shows_one_table_and_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def measured(setup: EngineSetup, wanted: Sequence[str], missing: Sequence[str]) -> dict[str, Any]:
        asked.append((setup, list(wanted)))
        keys = [figure.key for figure in figures(setup.plan)]
        own = [{"name": n, "http": h, **dict.fromkeys(keys, 4.0)} for n, h in (("slm", False), ("slm, HTTP", True))]
        return {
            "model": "m.gguf", "threads": 2, "cpu": "a processor", "engines": own, "ratios": {},
            "missing": ["vllm is not measured: it is not there"],
        }  # fmt: skip

    monkeypatch.setattr("serve.bench.engine.run.bench_engines", measured)
    shown = CliRunner().invoke(bench_engine, ["m.gguf", "--prefill", "64", "--peer", "vllm"], obj=PathJoints())
    assert shown.exception is None and "prefill" in shown.stdout and "vllm is not measured" in shown.stdout
    assert asked[0][0].plan == EnginePlan(prefill=64) and asked[0][1] == ["vllm"]
    bad = CliRunner().invoke(bench_engine, ["m.gguf", "--program", "llama=x"], obj=PathJoints())
    assert bad.exit_code == 2 and "the peers are llama.cpp" in bad.stderr
    short = CliRunner().invoke(bench_engine, ["m.gguf", "--context", "512"], obj=PathJoints())
    assert short.exit_code == 2 and "need 768" in short.stderr


@pytest.mark.real
def test_a_real_model_is_measured_beside_the_library(
    slm: Callable[..., subprocess.CompletedProcess[str]], pulled_model: Callable[[str], Path]
) -> None:
    model = pulled_model("smollm2-135m-instruct")
    sizes = ["--prefill", "64", "--depth", "16", "--decode", "24", "--long", "70", "--repeat", "1", "--threads", "1"]
    done = slm("bench", "engine", str(model), "--peer", "llama.cpp", *sizes, "--json", timeout=900)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [one["name"] for one in result["engines"]][:2] == ["slm", "slm, HTTP"] and len(result["engines"]) == 3
    for one in result["engines"]:
        assert one["prefill_tokens_per_s"] > 1 and one["decode_16_tokens_per_s"] > 1 and one["memory_mb"] > 50
