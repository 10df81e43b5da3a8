"""`slm generate --batch` as a command: its options, a kill in the middle, real adapters, and its benchmark."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from serve.batch.journal import partial_of
from serve.bench import batch as bench
from serve.bench.adapters import write_random_adapter
from serve.bench.servers.run import ServeBenchOptions
from serve.bench.servers.scenarios import LoadPlan
from serve.cli import bench as cli_bench
from serve.cli.serve import generate
from tests.path_joints import PathJoints
from tests.tiny_gguf import write_adapter, write_model

ROOT = Path(__file__).parent.parent
CHAT = "/v1/chat/completions"


def write_batch(path: Path, count: int, models: list[str], tokens: int) -> Path:
    rows = [
        {
            "custom_id": f"q{n}", "method": "POST", "url": CHAT,
            "body": {
                "model": models[n % len(models)], "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
                "messages": [{"role": "user", "content": f"Count to {n}."}],
            },
        }
        for n in range(count)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(model: Path, batch: Path, output: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "slm_cli", "generate", str(model), "--batch", str(batch), "-o", str(output), *more
    ]  # fmt: skip


def ran(model: Path, batch: Path, output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(model, batch, output, *more), capture_output=True, text=True, cwd=ROOT, timeout=600)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(row) for row in path.read_text(encoding="utf-8").splitlines()]


def asked(*words: str) -> Result:
    return CliRunner().invoke(generate, list(words), obj=PathJoints())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("m -o x", "--output goes with --batch"), ("m --parallel 2 -p x", "--parallel goes with --batch"),
        ("m --batch b -p x -o x", "--prompt is for one prompt"), ("m --batch b --seed 3 -o x", "--seed is for"),
        ("m --batch b -m en -o x", "-m is for one prompt"), ("m --batch b", "needs -o FILE"),
        ("m --batch b -o x --resume --fresh", "exclude each other"), ("m --batch b -o ./b", "names the batch itself"),
    ],
)  # fmt: skip
def test_what_would_have_no_effect_is_refused(words: str, said: str) -> None:
    done = asked(*words.split())
    assert done.exit_code == 2 and said in done.output


def test_a_batch_that_is_none_is_told_before_a_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text("\n")
    done = asked("no-such.gguf", "--batch", str(tmp_path / "b.jsonl"), "-o", str(tmp_path / "o"))
    assert "holds no request" in str(done.exception)
    done = asked("no-such.gguf", "--batch", str(tmp_path / "gone"), "-o", str(tmp_path / "o"))
    assert "there is no file" in str(done.exception)


def test_a_batch_is_answered_by_the_command_and_is_not_answered_twice(tmp_path: Path) -> None:
    model, en = write_model(tmp_path / "m.gguf"), write_adapter(tmp_path / "en.gguf", seed=1)
    batch, output = write_batch(tmp_path / "b.jsonl", 5, ["en", "base"], 3), tmp_path / "new" / "out.jsonl"
    with batch.open("a") as file:
        file.write('{"custom_id": "q0"}\n')
    done = ran(model, batch, output, "--adapter", f"en={en}", "--json", "--threads", "1")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {name: told[name] for name in ("lines", "answered", "failed", "kept", "completion_tokens")} == {
        "lines": 6, "answered": 5, "failed": 1, "kept": 0, "completion_tokens": 15,
    }  # fmt: skip
    assert "warning: line 6: method: has to be POST" in done.stderr
    rows = rows_of(output)
    assert [row["custom_id"] for row in rows] == ["q0", "q1", "q2", "q3", "q4", "q0"]
    assert [row["response"]["body"]["slm"]["adapter"] for row in rows[:5]] == ["en", None, "en", None, "en"]
    assert [path.name for path in output.parent.iterdir()] == ["out.jsonl"]
    before = output.read_bytes()
    again = ran(model, batch, output, "--adapter", f"en={en}", "--resume", "--json")
    assert (json.loads(again.stdout)["kept"], json.loads(again.stdout)["failed"]) == (5, 1)
    assert again.returncode == 0 and "had already been answered" in again.stderr and output.read_bytes() == before
    write_batch(batch, 4, ["en"], 3)
    other = ran(model, batch, output, "--resume")
    assert other.returncode == 1 and "does not hold the answers of" in other.stderr


def killed_in_the_middle(arguments: list[str], output: Path, how: int, answers: int) -> subprocess.Popen[str]:
    """A run that was ended once it had so many answers."""
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True)
    try:
        end = time.monotonic() + 300
        while time.monotonic() < end and process.poll() is None:
            partial = partial_of(output)
            if partial.exists() and partial.read_bytes().count(b"\n") > answers:
                process.send_signal(how)
                break
            time.sleep(0.02)
        process.wait(60)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    return process


def kept_rows(output: Path) -> dict[str, dict[str, Any]]:
    rows = [json.loads(row.partition(b" ")[2]) for row in partial_of(output).read_bytes().splitlines()[1:]]
    return {row["custom_id"]: row for row in rows}


@pytest.mark.real
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_batch_on_a_real_model_goes_on_after_it_was_ended(
    pulled_model: Callable[[str], Path], tmp_path: Path, how: int
) -> None:
    model = pulled_model("smollm2-135m-instruct")
    files = [tmp_path / "en.gguf", tmp_path / "ja.gguf"]
    for seed, file in enumerate(files):
        write_random_adapter(model, file, seed=seed)
    more = [word for file in files for word in ("--adapter", f"{file.stem}={file}")]
    more += ["--parallel", "2", "--context", "512"]
    batch, output = write_batch(tmp_path / "b.jsonl", 24, ["en", "ja", "base", "auto"], 12), tmp_path / "out.jsonl"
    ended = killed_in_the_middle(command(model, batch, output, *more), output, how, answers=5)
    said = ended.stderr.read() if ended.stderr else ""
    assert ended.returncode == (-signal.SIGKILL if how == signal.SIGKILL else 130), said
    kept = kept_rows(output)
    assert 5 <= len(kept) < 24 and not output.exists()
    if how == signal.SIGINT:
        assert "with --resume goes on from there" in said
    else:
        without = ran(model, batch, output, *more)
        assert without.returncode == 1 and "--resume" in without.stderr and "--fresh" in without.stderr
    done = ran(model, batch, output, *more, "--resume", "--json")
    assert done.returncode == 0, done.stderr
    told, rows = json.loads(done.stdout), rows_of(output)
    assert (told["kept"], told["answered"], told["failed"]) == (len(kept), 24 - len(kept), 0)
    assert [row["custom_id"] for row in rows] == [f"q{n}" for n in range(24)]
    assert [row for row in rows if row["custom_id"] in kept] == [
        kept[r["custom_id"]] for r in rows if r["custom_id"] in kept
    ]
    bodies = [row["response"]["body"] for row in rows]
    assert {body["usage"]["completion_tokens"] for body in bodies} == {12}
    assert [body["slm"]["adapter"] for body in bodies] == ["en", "ja", None, "en"] * 6
    assert not partial_of(output).exists()


# --- slm bench batch -------------------------------------------------------------------------------------------------


def test_a_batch_is_measured_beside_the_server_on_the_same_requests(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.gguf", fingerprint="f00d" * 16)
    plan = LoadPlan(clients=1, tokens=4, seconds=0.5)
    found = bench.bench_batch(model, {}, plan, ServeBenchOptions(rounds=1, context=1024, threads=1))
    assert [row["clients"] for row in found["server"]] == [1, 2, 4]
    assert found["best_tokens_per_s"] == max(row["tokens_per_s"] for row in found["server"]) > 0
    assert found["batch"]["lines"] >= 8 and found["batch"]["failed"] == 0
    assert found["ratio"] == round(found["batch"]["tokens_per_s"] / found["best_tokens_per_s"], 3)
    assert found["goal"] == 0.95


def test_its_figures_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {
        "model": "m", "adapters": ["a"], "server": [{"clients": 8, "tokens_per_s": 40.0}], "ratio": 1.1, "goal": 0.95,
        "batch": {"tokens_per_s": 44.0, "lines": 9, "failed": 2},
    }  # fmt: skip
    monkeypatch.setattr(bench, "bench_batch", lambda *_: shown)
    done = CliRunner().invoke(cli_bench.bench_batch, ["m.gguf"], obj=PathJoints())
    assert "slm serve, 8 clients" in done.output and "44.0" in done.output
    assert "a batch has 1.1 of the server's best; the goal is 0.95; 2 of 9 lines failed" in done.output
