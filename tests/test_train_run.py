"""A training run from end to end: measured, diverging, on a full disk, shown in pictures, in two processes."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from slm.errors import DivergenceError, MissingExtraError, ResourceError
from tests.tiny_runs import Broken, adapter, asked, base, break_at, data, learned, no_picture, same, whole
from train.run.history import draw_curve, read_history, smoothed
from train.run.lora import train_sft

__all__ = ["base", "data", "no_picture", "whole"]  # fixtures

ROOT = Path(__file__).parent.parent


# Measuring on the way


def measured(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Let the measurements after the first one (before training) give these losses for both languages."""
    import train.run.lora

    real, given = train.run.lora._measure, iter([None, *losses])

    def measure(*arguments: Any) -> Any:
        sums, loss = real(*arguments), next(given)
        return sums if loss is None else {lang: (loss * tokens, tokens) for lang, (_, tokens) in sums.items()}

    monkeypatch.setattr("train.run.lora._measure", measure)


def test_the_best_adapter_is_the_result_not_the_last(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_sft(asked(base, data, tmp_path / "four", max_steps=4, schedule="constant", warmup_fraction=0.0, eval_every=0))
    with monkeypatch.context() as patch:
        measured(patch, [2.0, 3.0, 2.5])
        changes: dict[str, Any] = {"schedule": "constant", "warmup_fraction": 0.0, "save_every_s": 0.0}
        result = train_sft(asked(base, data, tmp_path / "best", **changes))
    assert result.run.steps == 12 and result.run.best_step == 4 and result.run.stopped_by == "last step"
    assert result.held_out_loss_after == pytest.approx(2.0)
    assert same(tmp_path / "best", tmp_path / "four")
    records = read_history(tmp_path / "best" / "run" / "history.jsonl")
    held_out = [(record["step"], record["held_out_loss"]) for record in records if "held_out" in record]
    assert held_out[0] == (0, pytest.approx(result.held_out_loss_before))
    assert held_out[1:] == [(4, pytest.approx(2.0)), (8, pytest.approx(3.0)), (12, pytest.approx(2.5))]
    assert all(set(record["held_out"]) == {"en", "ja"} for record in records if "held_out" in record)


def test_a_run_without_a_better_loss_for_so_long_ends_early(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        measured(patch, [3.0, 2.0, 2.5, 2.1, 1.0])
        result = train_sft(asked(base, data, tmp_path / "a", eval_every=2, patience=2))
    assert (result.run.steps, result.run.best_step, result.run.stopped_by) == (8, 4, "patience")


def test_measuring_and_saving_change_nothing_of_what_is_learned(base: Path, data: Path, tmp_path: Path) -> None:
    train_sft(asked(base, data, tmp_path / "seldom", eval_every=0, save_every_s=0.0, dropout=0.1))
    result = train_sft(asked(base, data, tmp_path / "often", eval_every=12, dropout=0.1))
    assert result.run.best_step == 12 and same(tmp_path / "seldom", tmp_path / "often")


# What goes wrong


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run_names_the_examples_and_keeps_the_last_good_state(
    value: float, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"save_every_s": 1e9, "eval_every": 0, "dropout": 0.1}
    train_sft(asked(base, data, tmp_path / "whole", **changes))
    with monkeypatch.context() as patch:
        break_at(patch, 6, lambda total, count: (total * value, count))
        with pytest.raises(DivergenceError) as caught:
            train_sft(asked(base, data, tmp_path / "a", **changes))
    told = str(caught.value)
    assert f"the loss became {value} at step 6" in told and "--resume --lr 0.01" in told
    assert "d.jsonl', line " in told
    train_sft(asked(base, data, tmp_path / "a", resume=True, **changes))
    assert same(tmp_path / "whole", tmp_path / "a")


def test_a_diverged_run_goes_on_with_a_lower_learning_rate_and_from_its_moments(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steady: dict[str, Any] = {"schedule": "constant", "warmup_fraction": 0.0}
    with monkeypatch.context() as patch, pytest.raises(DivergenceError, match="gradient became nan at step 3"):
        break_at(patch, 3, lambda total, count: (total + 0.0 * (total - total.detach()).sqrt(), count))
        train_sft(asked(base, data, tmp_path / "a", save_every_s=1e9, **steady))
    train_sft(asked(base, data, tmp_path / "a", resume=True, learning_rate=1e-3, save_every_s=1e9, **steady))
    rates = {r["step"]: r["learning_rate"] for r in read_history(tmp_path / "a/run/history.jsonl") if "loss" in r}
    assert rates[2] == pytest.approx(2e-2) and rates[3] == pytest.approx(1e-3) and len(rates) == 12


@pytest.mark.parametrize("save_every_s", [0.0, 60.0])
def test_weights_that_are_no_numbers_after_the_last_step_are_not_written(
    base: Path, data: Path, tmp_path: Path, save_every_s: float
) -> None:
    too_fast = asked(base, data, tmp_path / "a", learning_rate=1e300, max_steps=1, save_every_s=save_every_s)
    with pytest.raises(DivergenceError, match="weights became NaN or infinite at step 1"):
        train_sft(too_fast)
    assert not (tmp_path / "a").exists() and not list(tmp_path.rglob("*.safetensors"))


def test_a_full_disk_ends_the_run_in_words_and_harms_no_earlier_checkpoint(
    base: Path, data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, save = Path.write_bytes, safetensors.torch.save_file

    def write_half(self: Path, content: bytes) -> int:
        if self.name == "adapter_model.safetensors":
            write(self, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, content)

    def save_half(tensors: dict[str, torch.Tensor], file: Path) -> None:
        save(tensors, file)
        if "step-00000006" in str(file):
            write(file, file.read_bytes()[:-100])
            raise safetensors.SafetensorError("Error while serializing: I/O error: No space left (os error 28)")

    for name in ("a", "b"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", write_half)
            if name == "a":
                patch.setattr(safetensors.torch, "save_file", save_half)
            with pytest.raises(ResourceError, match="no disk space left"):
                train_sft(asked(base, data, tmp_path / name))
        assert not (tmp_path / name).exists()
        assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".part")]
        train_sft(asked(base, data, tmp_path / name, resume=True))
        assert same(whole, tmp_path / name)


def test_a_full_disk_under_the_history_is_told_the_same_way(base: Path, data: Path, tmp_path: Path) -> None:
    from train.run.history import History

    history = History(tmp_path, 0, tensorboard=False)
    history._out.close()
    history._out = Path("/dev/full").open("w")  # noqa: SIM115
    with pytest.raises(ResourceError, match=r"no disk space left while writing .*history\.jsonl"):
        history.add({"step": 1, "loss": 2.0})


# What is shown


def test_the_curve_shows_the_training_loss_and_each_language(tmp_path: Path) -> None:
    steps = [{"step": n, "loss": 3.0 / n} for n in range(1, 9)]
    measurements = [{"step": n, "held_out": {"en": 2.0 / n, "ja": 3.0 / n}, "held_out_loss": 2.5 / n} for n in (1, 8)]
    figure = draw_curve([*steps, *measurements], best_step=8)
    lines = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert lines["held out, ja"] == [[1.0, 3.0], [8.0, 0.375]]
    assert lines["training, each step"][-1] == [8.0, 0.375] and "best: step 8" in lines
    assert figure.axes[0].get_ylabel() == "loss (nats per supervised token)"
    assert smoothed([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
    assert smoothed([4.0, 0.0])[1] == pytest.approx(0.95 * 4.0 / 1.95)


def test_the_run_folder_keeps_a_picture_the_figures_and_tensorboards_events(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with monkeypatch.context() as patch, pytest.raises(Broken):
        break_at(patch, 6)
        train_sft(asked(base, data, tmp_path / "a", tensorboard=True))
    result = train_sft(asked(base, data, tmp_path / "a", tensorboard=True, resume=True))
    run = tmp_path / "a" / "run"
    assert (run / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert json.loads((run / "figures.json").read_text()) == result.as_json()
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    written = {event.step: event.value for event in events.Scalars("train/loss")}
    assert written == pytest.approx(
        {r["step"]: r["loss"] for r in read_history(run / "history.jsonl") if "loss" in r}, rel=1e-6
    )
    assert [event.step for event in events.Scalars("held_out/ja")] == [0, 4, 8, 12]


def test_without_the_packages_a_run_says_which_are_missing(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *rest: None if name in ("tensorboard", "matplotlib") else real(name, *rest),
    )
    with pytest.raises(MissingExtraError, match=r"tensorboard.*\[tensorboard\]"):
        train_sft(asked(base, data, tmp_path / "a", tensorboard=True))
    assert list(tmp_path.iterdir()) == []
    train_sft(asked(base, data, tmp_path / "a", max_steps=1))
    assert "matplotlib" in capsys.readouterr().err and not (tmp_path / "a" / "run" / "loss.png").exists()


def test_a_history_cut_off_by_a_kill_is_read_up_to_there(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    file.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_history(file) == [{"step": 1, "loss": 2.0}]


# Several processes


def test_two_processes_learn_what_one_with_twice_the_accumulated_batches_does(
    base: Path, data: Path, tmp_path: Path
) -> None:
    shared = [
        "train", "sft", "--base", str(base), "--data", str(data), "--max-steps", "6", "--rank", "4", "--lr", "2e-2",
        "--threads", "1", "--dtype", "float32", "--template", "chatml", "--eval-every", "3", "--json",
    ]  # fmt: skip
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    together = subprocess.run(
        [*launcher, "-m", "slm_cli", *shared, "-o", str(tmp_path / "two"), "--batch-size", "3"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert together.returncode == 0, together.stderr[-3000:]
    figures = json.loads(together.stdout)  # one process reports
    one = asked(base, data, tmp_path / "one", batch_size=3, accumulate=2, max_steps=6, eval_every=3)
    result = train_sft(one)
    assert figures["steps"] == 6 and figures["tokens"] == result.run.tokens
    ours, theirs = learned(tmp_path / "one" / "run"), learned(tmp_path / "two" / "run")
    for mine, other in zip(ours, theirs, strict=True):
        key = "loss" if "loss" in mine else "held_out_loss"
        assert mine["step"] == other["step"] and mine[key] == pytest.approx(other[key], rel=1e-5)
    difference = max(
        float((a - b).abs().max())
        for a, b in zip(adapter(tmp_path / "one").values(), adapter(tmp_path / "two").values(), strict=True)
    )
    assert difference < 1e-5
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}
