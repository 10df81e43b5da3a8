"""Training runs that were broken off or killed at any moment: what is told of them and how they go on."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from slm.artifacts import read_manifest
from slm.errors import InputError, MismatchError, ResourceError
from tests.tiny_runs import Broken, asked, base, break_at, data, learned, no_picture, same, whole
from tests.tiny_training import conversations, write_checkpoint, write_jsonl
from train.config import TrainOptions
from train.run.folder import folder_of, open_run
from train.run.history import read_history
from train.run.job import RunState
from train.run.lora import train_sft
from train.run.saved_states import open_checkpoint, whole_checkpoints
from train.run.saved_states import write_checkpoint as write_state

__all__ = ["base", "data", "no_picture", "whole"]  # fixtures

ALL_KINDS: list[dict[str, Any]] = [
    {"dropout": 0.1, "neftune": 5.0}, {"dora": True}, {"pissa": True},
    {"lora_plus": 8.0, "rslora": True, "dropout": 0.1},
]  # fmt: skip


@pytest.mark.parametrize("kind", ALL_KINDS, ids="-".join)
def test_a_run_that_goes_on_ends_with_the_same_bits_and_history_as_an_unbroken_one(
    kind: dict[str, Any], base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_sft(asked(base, data, tmp_path / "whole", **kind))
    with monkeypatch.context() as patch, pytest.raises(Broken):
        break_at(patch, 7)
        train_sft(asked(base, data, tmp_path / "broken", **kind))
    assert whole_checkpoints(tmp_path / "broken.run" / "checkpoints")[0].step == 6
    again = train_sft(asked(base, data, tmp_path / "broken", resume=True, **kind))
    assert same(tmp_path / "whole", tmp_path / "broken")
    assert learned(tmp_path / "whole" / "run") == learned(tmp_path / "broken" / "run")
    assert again.by_language == whole.by_language and again.run.tokens == whole.run.tokens
    assert not (tmp_path / "broken.run").exists()
    config = json.loads((tmp_path / "broken" / "run" / "config.json").read_text())
    assert config["resumed_at_steps"] == [6] and torch.__version__.startswith(config["environment"]["torch"])


def die_at_event(options: TrainOptions, number: int) -> None:
    """Train in this process and kill it with SIGKILL right before the `number`-th change of the output's folder."""
    root, seen = str(options.output.parent), 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"):
            return
        writing = event != "open" or (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if writing and isinstance(arguments[0], str | os.PathLike) and str(arguments[0]).startswith(root):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    train_sft(options)
    (options.output.parent / "events").write_text(str(seen))


def in_a_process(target: Any, *arguments: Any) -> int | None:
    """Run a function in a process of its own, forked from a server that has imported torch; its exit code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train.run.lora", "tests.test_train_resume"])
    process = context.Process(target=target, args=arguments)
    process.start()
    process.join(120)
    return process.exitcode


def test_a_run_killed_at_any_moment_of_its_writing_goes_on_to_the_same_adapter(
    base: Path, data: Path, tmp_path: Path
) -> None:
    """Checkpoints, their removal, the history, the final folder, its swap over an older one, the run folder's end."""
    folder = tmp_path / "whole"
    folder.mkdir()
    options = asked(base, data, folder / "ja", max_steps=6, eval_every=3)
    assert in_a_process(die_at_event, options, 0) == 0
    events = int((folder / "events").read_text())
    assert events > 60
    moments = [events // 3, events - 45, *range(events - 24, events, 8), events]
    for number, moment in enumerate(moments):
        broken = tmp_path / str(moment)
        if number % 2:  # over an adapter that is there already
            shutil.copytree(folder / "ja", broken / "ja")
        broken.mkdir(exist_ok=True)
        one = asked(base, data, broken / "ja", max_steps=6, eval_every=3)
        assert in_a_process(die_at_event, one, moment) == -signal.SIGKILL, moment
        if (broken / "ja").exists():
            assert same(broken / "ja", folder / "ja") and read_manifest(broken / "ja")["kind"] == "adapter"
        resumed = asked(base, data, broken / "ja", max_steps=6, eval_every=3, resume=True)
        assert in_a_process(die_at_event, resumed, 0) == 0, moment
        assert same(broken / "ja", folder / "ja"), moment
        assert {path.name for path in broken.iterdir()} == {"ja", "events"}, moment


def test_a_broken_off_run_is_told_and_neither_thrown_away_nor_continued_otherwise(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Broken):
        break_at(patch, 6)
        train_sft(asked(base, data, tmp_path / "a"))
    with pytest.raises(InputError, match=r"broken off.*step 5.*--fresh.*--resume"):
        train_sft(asked(base, data, tmp_path / "a"))
    with pytest.raises(InputError, match=r"rank was 4, is 8.*--fresh"):
        train_sft(asked(base, data, tmp_path / "a", rank=8))
    other = write_jsonl(tmp_path / "other.jsonl", conversations(20) + conversations(21, "ja"))
    with pytest.raises(MismatchError, match=r"the data was .*d\.jsonl.*rank was 4, is 8"):
        train_sft(asked(base, other, tmp_path / "a", rank=8, resume=True))
    elsewhere = write_checkpoint(tmp_path / "elsewhere", "llama", seed=1)
    with pytest.raises(MismatchError, match=r"the base was .*other weights"):
        train_sft(asked(elsewhere, data, tmp_path / "a", resume=True))
    with pytest.raises(InputError, match="exclude each other"):
        asked(base, data, tmp_path / "a", resume=True, fresh=True)
    result = train_sft(asked(base, data, tmp_path / "a", fresh=True))
    steps = [record["step"] for record in read_history(tmp_path / "a" / "run" / "history.jsonl") if "loss" in record]
    assert result.run.steps == 12 and steps == list(range(1, 13))


def test_a_damaged_checkpoint_is_never_taken(
    base: Path,
    data: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Broken):
        break_at(patch, 9)
        train_sft(asked(base, data, tmp_path / "a"))
    folder = tmp_path / "a.run" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000007", "step-00000008"]  # 8 is the best as well
    state = folder / "step-00000008" / "state.safetensors"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    train_sft(asked(base, data, tmp_path / "a", resume=True))
    told = capsys.readouterr().err
    assert "step-00000008/state.safetensors' is damaged" in told and "going on from step 7" in told
    assert same(whole, tmp_path / "a")


def test_what_goes_wrong_with_a_checkpoint_folder_is_found(tmp_path: Path) -> None:
    state = RunState(step=5, best_step=5, best={"en": (1.5, 3)})
    path = write_state(tmp_path, asdict(state), {"model/x": torch.ones(3)})
    assert RunState.from_json(open_checkpoint(path).counters) == state
    assert torch.equal(open_checkpoint(path).tensors()["model/x"], torch.ones(3))
    for step in range(6, 10):
        state.step = step
        write_state(tmp_path, asdict(state), {"model/x": torch.ones(3)}, stays=5)
    assert [one.step for one in whole_checkpoints(tmp_path)] == [9, 8, 5]
    (tmp_path / "step-00000009" / "manifest.json").unlink()
    manifest = tmp_path / "step-00000008" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"step": 8', '"steps": 8'))
    assert [one.step for one in whole_checkpoints(tmp_path)] == [5]
    (path / "state.safetensors").unlink()
    assert whole_checkpoints(tmp_path) == []


def test_two_runs_into_one_folder_and_a_foreign_folder_are_refused(base: Path, data: Path, tmp_path: Path) -> None:
    with (
        open_run(tmp_path / "a", {"method": "sft"}, resume=False, fresh=False),
        pytest.raises(ResourceError, match="another process"),
    ):
        train_sft(asked(base, data, tmp_path / "a"))
    foreign = folder_of(tmp_path / "b")
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="something else"):
        train_sft(asked(base, data, tmp_path / "b", fresh=True))
    assert (foreign / "thesis.txt").read_text() == "years of work"


def test_resuming_a_run_that_has_ended_gives_its_result_and_one_that_never_began_begins(
    base: Path, data: Path, tmp_path: Path
) -> None:
    first = train_sft(asked(base, data, tmp_path / "a", resume=True))
    changed = (tmp_path / "a" / "adapter_model.safetensors").stat().st_mtime_ns
    assert train_sft(asked(base, data, tmp_path / "a", resume=True)) == first
    assert (tmp_path / "a" / "adapter_model.safetensors").stat().st_mtime_ns == changed
    with pytest.raises(MismatchError, match="seed was 0, is 1"):
        train_sft(asked(base, data, tmp_path / "a", resume=True, seed=1))


def test_the_time_limit_counts_what_was_before_the_break(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = {"time_limit_s": 1e6, "eval_every": 0}
    with monkeypatch.context() as patch, pytest.raises(Broken):
        break_at(patch, 4)
        train_sft(asked(base, data, tmp_path / "a", **limit))
    newest = whole_checkpoints(tmp_path / "a.run" / "checkpoints")[0]
    write_state(newest.path.parent, {**newest.counters, "elapsed_s": 2e6}, newest.tensors())
    result = train_sft(asked(base, data, tmp_path / "a", resume=True, **limit))
    assert (result.run.steps, result.run.best_step, result.run.stopped_by) == (4, 4, "time limit")
    assert result.run.seconds > 2e6


def test_two_runs_with_the_same_seed_are_equal_in_every_bit(base: Path, data: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        train_sft(asked(base, data, tmp_path / name, dropout=0.2, neftune=5.0, accumulate=2, max_steps=5))
    assert same(tmp_path / "one", tmp_path / "two")
