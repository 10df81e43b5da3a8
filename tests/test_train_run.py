"""A training run from end to end: killed at any moment, measured, diverging, on a full disk, in two processes."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file
from tiny_training import conversations, write_checkpoint, write_jsonl

from slm.artifacts import read_manifest
from slm.errors import DivergenceError, InputError, MismatchError, MissingExtraError, ResourceError
from train.adapter import load_with_adapter
from train.batch.loss import supervised_loss
from train.checkpoint import load_model
from train.checkpoints import RunState, open_checkpoint, whole_checkpoints
from train.checkpoints import write_checkpoint as write_state
from train.config import TrainOptions
from train.history import draw_curve, read_history, smoothed
from train.lora import TrainResult, train_sft
from train.peft_adapter import add_adapter, initial_factors, return_to_initial
from train.run_folder import folder_of, open_run

ROOT = Path(__file__).parent.parent
ALL_KINDS: list[dict[str, Any]] = [
    {"dropout": 0.1, "neftune": 5.0}, {"dora": True}, {"pissa": True},
    {"lora_plus": 8.0, "rslora": True, "dropout": 0.1},
]  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base") / "llama", "llama")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "d.jsonl", conversations(20) + conversations(20, "ja"))


@pytest.fixture(autouse=True)
def no_picture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes a quarter of a tiny run; those who look at the picture say so."""
    if "picture" not in request.node.name and "packages" not in request.node.name:
        monkeypatch.setattr("train.lora.save_curve", lambda *_: None)


@pytest.fixture(scope="module")
def whole(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter of an unbroken run."""
    output = tmp_path_factory.mktemp("whole") / "a"
    train_sft(asked(base, data, output))
    return output


def asked(base: Path, data: Path, output: Path, **changes: Any) -> TrainOptions:
    quick: dict[str, Any] = {
        "max_steps": 12, "learning_rate": 2e-2, "rank": 4, "threads": 1, "dtype": "float32", "template": "chatml",
        "save_every_s": 1e-9, "eval_every": 4,
    }  # fmt: skip
    return TrainOptions(base=base, data=(data,), output=output, **(quick | changes))


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = load_file(folder / "adapter_model.safetensors")
    return weights


def same(one: Path, two: Path) -> bool:
    """Whether two adapters are equal in every bit."""
    left, right = adapter(one), adapter(two)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def learned(folder: Path) -> list[dict[str, Any]]:
    """The history without what time does to it."""
    timed = ("elapsed_s", "tokens_per_s", "supervised_tokens_per_s")
    return [{k: v for k, v in record.items() if k not in timed} for record in read_history(folder / "history.jsonl")]


class Broken(Exception):
    """Raised by a test in the middle of a run."""


def break_at(monkeypatch: pytest.MonkeyPatch, batch: int, outcome: Any = Broken) -> None:
    """Let the loss of the n-th batch fail, or be what `outcome` makes of it."""
    calls = 0

    def fail(model: Any, inputs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != batch:
            return supervised_loss(model, inputs)
        if isinstance(outcome, type):
            raise outcome
        return outcome(*supervised_loss(model, inputs))

    monkeypatch.setattr("train.trainer.supervised_loss", fail)


# Going on


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
    context.set_forkserver_preload(["train.lora", "tests.test_train_run"])
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


# Measuring on the way


def measured(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Let the measurements after the first one (before training) give these losses for both languages."""
    import train.lora

    real, given = train.lora._measure, iter([None, *losses])

    def measure(*arguments: Any) -> Any:
        sums, loss = real(*arguments), next(given)
        return sums if loss is None else {lang: (loss * tokens, tokens) for lang, (_, tokens) in sums.items()}

    monkeypatch.setattr("train.lora._measure", measure)


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
    from train.history import History

    history = History(tmp_path, 0, tensorboard=False)
    history._out.close()
    history._out = Path("/dev/full").open("w")  # noqa: SIM115
    with pytest.raises(ResourceError, match=r"no disk space left while writing .*history\.jsonl"):
        history.add({"step": 1, "loss": 2.0})


# Kinds of adapters


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(torch.tensor([[5, 6, 7, 8, 9, 10]])).logits
    return result


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("rslora", [False, True])
def test_a_pissa_adapter_fits_the_untouched_base_as_pefts_own_conversion_does(
    family: str, rslora: bool, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import PeftModel

    import train.lora

    base, kept = write_checkpoint(tmp_path / "base", family), []
    real = train.lora.save_adapter

    def save(model: Any, *arguments: Any) -> None:
        kept.append(logits(model))
        real(model, *arguments)

    monkeypatch.setattr("train.lora.save_adapter", save)
    train_sft(asked(base, data, tmp_path / "a", pissa=True, rslora=rslora, max_steps=6))
    loaded = PeftModel.from_pretrained(load_model(base), str(tmp_path / "a")).eval()
    assert (logits(load_model(base).eval()) - kept[0]).abs().max() > 0.1
    assert torch.allclose(logits(loaded), kept[0], atol=1e-4)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["r"] == 8 and config["init_lora_weights"] is True and config["use_rslora"] is rslora


def test_a_fresh_pissa_adapter_is_pefts_and_changes_nothing(base: Path, data: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    options = asked(base, data, tmp_path / "a", pissa=True, targets="qv")
    ours = add_adapter(load_model(base), options).eval()
    set_seed(0)
    settings: Any = {"r": 4, "lora_alpha": 32.0, "init_lora_weights": "pissa_niter_16"}
    theirs = get_peft_model(load_model(base), LoraConfig(target_modules=["q_proj", "v_proj"], **settings)).eval()
    for (name, one), (_, two) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(one, two), name
    assert torch.allclose(logits(ours), logits(load_model(base).eval()), atol=1e-4)


def test_a_pissa_run_goes_on_from_its_own_beginning_where_the_decomposition_comes_out_otherwise(
    base: Path, data: Path, tmp_path: Path
) -> None:
    first = add_adapter(load_model(base), asked(base, data, tmp_path / "a", pissa=True))
    other = add_adapter(load_model(base), asked(base, data, tmp_path / "a", pissa=True, seed=7))
    start = initial_factors(first)
    mine = initial_factors(other)
    assert any(not torch.equal(mine[name], start[name]) for name in start)
    assert return_to_initial(other, start).keys() == start.keys()
    for (name, one), (_, two) in zip(first.named_parameters(), other.named_parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-5), name


def test_dora_equals_pefts_after_reloading_and_has_magnitudes(base: Path, data: Path, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    train_sft(asked(base, data, tmp_path / "a", dora=True))
    assert any("lora_magnitude_vector" in name for name in adapter(tmp_path / "a"))
    theirs = logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "a").eval())
    assert torch.allclose(logits(load_with_adapter(base, tmp_path / "a")), theirs, atol=1e-6)


def test_with_lora_plus_b_learns_faster_than_a_as_in_pefts_optimizer(base: Path, data: Path, tmp_path: Path) -> None:
    steady: dict[str, Any] = {"schedule": "constant", "warmup_fraction": 0.0, "max_steps": 1, "learning_rate": 1e-3}
    moved = {}
    for ratio in (1.0, 16.0):
        train_sft(asked(base, data, tmp_path / f"r{ratio}", lora_plus=ratio, **steady))
        moved[ratio] = adapter(tmp_path / f"r{ratio}")
    for name, plain in moved[1.0].items():
        if "lora_B" in name:  # it starts at zero, and Adam's first step is the learning rate
            assert plain.abs().max() == pytest.approx(1e-3, rel=1e-2)
            assert moved[16.0][name].abs().max() == pytest.approx(16e-3, rel=1e-2), name
        else:
            assert torch.equal(plain, moved[16.0][name])


def test_neftune_changes_training_and_not_the_measuring(base: Path, data: Path, tmp_path: Path) -> None:
    results: list[TrainResult] = []
    for name, alpha in (("plain", 0.0), ("noisy", 10.0)):
        results.append(train_sft(asked(base, data, tmp_path / name, neftune=alpha, eval_every=0, max_steps=3)))
    assert not same(tmp_path / "plain", tmp_path / "noisy")
    assert results[0].held_out_loss_before == results[1].held_out_loss_before
    # What was measured in the run is what the saved adapter gives without any noise.
    again = train_sft(asked(base, data, tmp_path / "measured", neftune=10.0, eval_every=1, max_steps=3))
    assert again.held_out_loss_after <= results[1].held_out_loss_after
    records = read_history(tmp_path / "measured" / "run" / "history.jsonl")
    last = [record["held_out_loss"] for record in records if "held_out" in record][-1]
    assert last == results[1].held_out_loss_after


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
