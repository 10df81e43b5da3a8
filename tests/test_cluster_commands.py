"""The commands of a cluster without one: what they write, refuse and measure."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from click.testing import CliRunner, Result

from rag.bench.spread import figures_of
from rag.cli.bench import shown_of_spread
from serve.bench.simulated import machines
from serve.bench.simulated.kills import outcome_of
from serve.bench.simulated.machines import ClusterPlan, bench_cluster_runs, times_of_file
from serve.cli.fleet import _show_kills, _show_runs
from slm.errors import DamagedFileError, EngineError, InputError, MissingExtraError
from slm_cli import cli
from tests.tiny_gguf import write_model
from tests.tiny_rag import own_home

__all__ = ["own_home"]  # a fixture

MEASURED = {
    "engine": [
        {"clients": 8, "answers_per_s": 4.0, "first_share": 0.5},
        {"clients": 1, "answers_per_s": 1.0, "first_share": 0.2},
    ],
    "entrance_s": 0.01, "tokens": 64,
}  # fmt: skip


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, list(words), default_map={})


# --- the file of `serve deploy` -----------------------------------------------------------------------------------


def test_no_password_of_a_database_is_written_into_the_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    done = run("cluster", "config", "m", "--rag", "postgresql://u:s3cret@h/d?index=i", "-o", str(file), "--json")
    assert isinstance(done.exception, InputError) and "PGPASSWORD" in str(done.exception)
    assert "postgresql://u@h/d?index=i" in str(done.exception) and not file.exists()
    assert "s3cret" not in done.output + str(done.exception)
    url = "postgresql://u@h/d?index=i"
    assert run("cluster", "config", "m", "--rag", url, "-o", str(file)).exit_code == 0
    assert yaml.safe_load(file.read_text())["applications"][0]["args"]["documents"]["index"] == url


def test_what_is_spelled_as_a_path_is_written_whole_and_names_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other machines do not have the working folder of whoever wrote the file."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "tiny.gguf")
    (tmp_path / "gemma-3-270m").mkdir()  # no model, only called like one
    here = tmp_path.resolve()

    def args(*words: str) -> Any:
        assert run("cluster", "config", *words, "-o", "serve.yaml").exit_code == 0
        return yaml.safe_load((tmp_path / "serve.yaml").read_text())["applications"][0]["args"]

    paths = args("tiny.gguf", "--rag", "./books", "--reader", "readers/mine", "--adapters-dir", "adapters")
    assert paths["model"]["model"] == str(here / "tiny.gguf")
    assert paths["model"]["adapters_dir"] == str(here / "adapters")
    assert paths["documents"]["index"] == str(here / "books")
    assert paths["documents"]["reader"] == str(here / "readers/mine")
    names = args("gemma-3-270m", "--rag", "books", "--reader", "point")
    assert names["model"]["model"] == "gemma-3-270m"
    assert (names["documents"]["index"], names["documents"]["reader"]) == ("books", "point")


# --- no Ray -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "cluster serve M", "rag add i M --on ray", "rag add i M --on ray://h", "bench cluster M",
        "bench cluster M --kills 1", "bench rag M --on ray", "generate M --batch B -o O --on ray",
    ],
)  # fmt: skip
def test_without_ray_every_command_names_the_extra_and_leaves_nothing(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    batch = tmp_path / "b.jsonl"
    batch.write_text('{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}\n')
    places = {"M": str(write_model(tmp_path / "m.gguf")), "B": str(batch), "O": str(tmp_path / "o.jsonl")}
    done = run(*(places.get(word, word) for word in words.split()))
    assert isinstance(done.exception, MissingExtraError) and ".[cluster]" in str(done.exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.jsonl", "m.gguf"]


def test_a_batch_is_not_begun_on_what_is_no_address(tmp_path: Path) -> None:
    done = run("generate", "m", "--batch", "gone", "-o", str(tmp_path / "o"), "--on", "http://x")
    assert isinstance(done.exception, InputError) and "is no address of Ray" in str(done.exception)
    assert "--on goes with --batch" in run("generate", "m", "-p", "x", "--on", "ray").output


# --- slm bench cluster --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--simulate F --kills 2", "Give one of them"), ("--simulate F --seconds 3", "--seconds does nothing"),
        ("m --simulate F", "MODEL does nothing for --simulate"), ("--ingresses 3", "--ingresses does nothing"),
        ("--kills 2 --seconds 3", "--seconds does nothing for --kills"),
    ],
)  # fmt: skip
def test_an_option_that_would_do_nothing_is_refused(words: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "times.json"
    file.write_text(json.dumps({"times": MEASURED}))
    done = run("bench", "cluster", *(str(file) if word == "F" else word for word in words.split()))
    assert done.exit_code == 2 and said in done.output


def test_the_simulation_says_where_the_entrance_is_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "times.json"
    file.write_text(json.dumps({"times": MEASURED}))
    done = run("bench", "cluster", "--simulate", str(file), "--ingresses", "1", "--json")
    result = json.loads(done.stdout)
    assert [load["machines"] for load in result["loads"]] == list(machines.SIZES)
    assert all(load["ttft_p95_s"] > 0 and load["tokens_per_s"] > 0 for load in result["loads"])
    assert result["most_machines"] == {"1": 25.0}  # 4 answers a second of each, 100 of the entrance


@pytest.mark.parametrize(
    "change",
    [
        {"entrance_s": float("nan")}, {"entrance_s": 0}, {"tokens": float("inf")}, {"engine": []}, {"engine": 5},
        {"engine": [{"clients": 0, "answers_per_s": 1.0, "first_share": 0.2}]},
        {"engine": [{"clients": "x", "answers_per_s": 1.0, "first_share": 0.2}]},
        {"engine": [{"clients": 1, "answers_per_s": "many", "first_share": 0.2}]}, {"engine": [[1, 2, 3]]},
    ],
)  # fmt: skip
def test_times_that_cannot_be_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "times.json"
    file.write_text(json.dumps({"times": {**MEASURED, **change}}))
    with pytest.raises(DamagedFileError, match="service times"):
        times_of_file(file)


def test_measured_times_are_read_by_rising_clients_and_written_as_they_are_read(tmp_path: Path) -> None:
    file = tmp_path / "times.json"
    file.write_text(json.dumps({"times": MEASURED}))
    assert [row.clients for row in times_of_file(file).engine] == [1, 8]


def test_the_runs_are_measured_and_stand_beside_their_simulation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Servers of one machine stand in for those on Ray (`tests/test_cluster.py` has Ray itself)."""
    asked: list[tuple[int, int]] = []

    def alone(replicas: int, cores: int) -> list[str]:
        asked.append((replicas, cores))
        return ["serve", "--threads", str(cores)]

    monkeypatch.setattr(machines, "on_cluster", alone)
    monkeypatch.setattr(machines, "_entrance_seconds", iter([n / 10 for n in range(99)]).__next__)
    model = write_model(tmp_path / "m.gguf", fingerprint="f00d" * 16)
    result = bench_cluster_runs(model, {}, ClusterPlan(clients=2, tokens=2, seconds=1.5, cores=2, context=512))
    assert asked == [(1, 2), (1, 1), (2, 1)]
    names = ["slm serve", "ray, 1 replica", *["ray, 1 replica of 1 core"] * 2]
    names += [*["ray, 1 replica of 1 core, 1 adapter"] * 2, *["ray, 2 replicas of 1 core"] * 2]
    assert [one["name"] for one in result["runs"]] == names
    assert [one["clients"] for one in result["runs"]] == [2, 2, 1, 2, 1, 2, 2, 4]
    assert all(one["failed"] == 0 and one["tokens_per_s"] > 0 for one in result["runs"])
    single, one, pair = result["runs"][0], result["runs"][1], result["runs"][6]
    assert result["costs"]["throughput"] == pytest.approx(one["tokens_per_s"] / single["tokens_per_s"], abs=1e-3)
    assert result["costs"]["halves"] == pytest.approx(pair["tokens_per_s"] / one["tokens_per_s"], abs=1e-3)
    assert result["costs"]["ttft_more_ms"] == pytest.approx(1000 * (one["ttft_p50_s"] - single["ttft_p50_s"]), abs=0.1)
    _show_runs(result)
    assert "of slm serve's throughput (goal 0.85)" in capsys.readouterr().out
    assert [check["machines"] for check in result["checks"]] == [1, 2]
    assert all(check["simulated_tokens_per_s"] > 0 for check in result["checks"])
    file = tmp_path / "times.json"
    file.write_text(json.dumps(result))
    times = times_of_file(file)
    assert [row.clients for row in times.engine] == [row.clients for row in times.one_adapter] == [1, 2]


def test_a_run_too_short_for_an_answer_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "tokens_per_second", lambda outcomes, begin, end: 0.0)
    model = write_model(tmp_path / "m.gguf", fingerprint="f00d" * 16)
    with pytest.raises(EngineError, match=r"answered nothing within 0\.1 s.*Give more --seconds"):
        bench_cluster_runs(model, {}, ClusterPlan(clients=1, tokens=2, seconds=0.1, cores=1, context=512))


@pytest.mark.parametrize(
    ("reply", "stream", "expected"),
    [
        (httpx.Response(200, json={"choices": [{"finish_reason": "length"}]}), False, "answered"),
        (httpx.Response(200, text="data: {}\n\ndata: [DONE]\n\n"), True, "answered"),
        (httpx.Response(200, text="data: {}\n\n"), True, "an answer without its end: data: {}\n\n"),
        (httpx.Response(503, json={"error": {"code": "engine_died"}}), False, "clear error"),
        (httpx.Response(200, text='data: {"error": {"code": "engine_died"}}\n\ndata: [DONE]\n\n'), True, "clear error"),
        (httpx.Response(200, text='data: {"error": {"code": "engine_died"}}\n\n'), True, None),
        (httpx.Response(500, text="no"), False, "HTTP 500: no"),
        (httpx.ReadError("cut"), True, "ReadError: cut"),
    ],
)  # fmt: skip
def test_what_a_request_came_to_is_told_apart(
    reply: httpx.Response | Exception, stream: bool, expected: str | None
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def asked() -> str:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://x") as client:
            return await outcome_of(client, {"stream": stream})

    found = asyncio.run(asked())
    assert found == expected if expected else found not in ("answered", "clear error")


def test_what_came_of_the_kills_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    _show_kills({"kills": 2, "requests": 9, "answered": 7, "clear_errors": 1, "others": {"HTTP 500: no": 1},
                 "back_s": [4.25, 6.0], "worst_s": 6.0, "goal_s": 10.0})  # fmt: skip
    assert capsys.readouterr().out.splitlines() == [
        "2 kills: 9 requests, 7 answered, 1 ended with a clear error, 1 otherwise", "  1 x HTTP 500: no",
        "two replicas again after 4.2, 6.0 s; the goal is 10 s at most",
    ]  # fmt: skip


# --- slm bench rag --on -------------------------------------------------------------------------------------------


def test_embedding_on_ray_is_counted_with_and_without_its_start() -> None:
    batches = [["a"] * 50, ["b"] * 50, ["c"] * 50]
    figures = figures_of(batches, here=[10.0, 9.0, 11.0], there=[20.0, 22.0, 21.0], firsts=[10.0, 12.0, 11.0])
    assert figures["chunks"] == 150 and figures["here"]["chunks_per_s"] == 15.0
    assert figures["ratio"] == pytest.approx(10 / 21, abs=1e-3)
    assert figures["there"]["later_per_s"] == 10.0 and figures["ratio_later"] == pytest.approx(10 / 15, abs=1e-3)
    lines = shown_of_spread({**figures, "embedder": "e", "machines": 1, "cores": 2, "same": True, "goal": 0.9})
    assert "15.0 a second" in lines[0] and "0.48 times" in lines[1] and "the same to the bit" in lines[2]
    one = figures_of([["a"]], [1.0], [2.0], [2.0])
    assert one["ratio_later"] is None and one["there"]["later_per_s"] is None


@pytest.mark.parametrize("words", ["--store x", "--only edit", "--chunks 20000", "--seconds 3"])
def test_what_embedding_on_ray_is_not_measured_by_is_refused(words: str) -> None:
    done = run("bench", "rag", "--on", "ray", *words.split())
    assert done.exit_code == 2 and "is nothing that --on measures by" in done.output
