"""The estimate before a run: what autograd keeps is counted exactly, and the run's figures are foreseen."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from tests.path_joints import PathJoints
from tests.tiny_training import conversations, write_checkpoint, write_jsonl
from train.adapter.fresh import add_adapter
from train.base import load_model
from train.batch import feed as feeding
from train.batch import memory
from train.batch.feed import feed, largest, plan_of, settle_checkpointing, use_gradient_checkpointing
from train.batch.loss import supervised_loss
from train.batch.memory import needs_checkpointing, predict, saved_for_backward
from train.batch.tensors import Batch
from train.config import TrainOptions
from train.data.prepare import Prepared, prepare_conversations
from train.measure.estimate import estimate
from train.run.lora import train_sft

ROOT = Path(__file__).parent.parent
FAMILIES = ["gpt2", "llama", "gemma3"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {family: write_checkpoint(folder / family, family) for family in FAMILIES}


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "talks.jsonl", conversations(20) + conversations(20, "ja"))


def asked(base: Path, data: Path, tmp_path: Path, **changes: Any) -> TrainOptions:
    settings: dict[str, Any] = {"batch_size": 4, "epochs": 1.0, "dtype": "float32", "rank": 4, **changes}
    return TrainOptions(base, (data,), tmp_path / "adapter", **settings)


def ready(options: TrainOptions) -> tuple[Any, Prepared]:
    model = add_adapter(load_model(options.base), options)
    return model.train(), prepare_conversations(options)


def kept_in_truth(model: Any, batch: Batch) -> int:
    """Bytes of the distinct storages that a graph holds while it is alive, found by keeping all of them."""
    alive: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        total, _ = supervised_loss(model, batch)
    fixed = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in alive}
    assert total.requires_grad
    return sum(size for pointer, size in storages.items() if pointer not in fixed)


@pytest.mark.parametrize("pack", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_autograd_keeps_is_counted_to_the_byte(
    family: str, pack: bool, bases: dict[str, Path], talks: Path, tmp_path: Path
) -> None:
    options = asked(bases[family], talks, tmp_path, pack=pack)
    model, prepared = ready(options)
    with feed(model, options, (prepared.train,), pad_id=0, dtype=torch.float32) as collate:
        batch = collate(prepared.train[:5])
        counted = saved_for_backward(model, batch, torch.float32)
        assert counted.total == kept_in_truth(model, batch) > 0
        assert counted.total == saved_for_backward(model, batch, torch.float32).total


def test_counting_keeps_no_tensor_and_draws_no_random_number(
    bases: dict[str, Path], talks: Path, tmp_path: Path
) -> None:
    options = asked(bases["llama"], talks, tmp_path, dropout=0.5)
    model, prepared = ready(options)
    with feed(model, options, (prepared.train,), pad_id=0, dtype=torch.float32) as collate:
        before = torch.get_rng_state()
        saved_for_backward(model, collate(prepared.train[:2]), torch.float32)
        assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_prediction_for_checkpointing_lies_between_what_it_keeps_and_what_is_kept_without(
    bases: dict[str, Path], talks: Path, tmp_path: Path
) -> None:
    options = asked(write_checkpoint(tmp_path / "deep", "llama", num_hidden_layers=8), talks, tmp_path)
    model, prepared = ready(options)
    with feed(model, options, (prepared.train,), pad_id=0, dtype=torch.float32) as collate:
        batch = collate(prepared.train[:8])
        without = saved_for_backward(model, batch, torch.float32)
        use_gradient_checkpointing(model)
        held = saved_for_backward(model, batch, torch.float32).total  # the layers' own tensors are computed again
    assert held < without.with_checkpointing() < without.total / 2
    plain, thrifty = (predict(model, without, process=1000, loading=0, checkpointing=on).peak for on in (False, True))
    assert plain - thrifty == without.total - without.with_checkpointing()
    assert predict(model, without, process=0, loading=10**12, checkpointing=False).peak == 10**12


def test_checkpointing_is_turned_on_when_the_free_memory_asks_for_it(
    bases: dict[str, Path], talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = asked(bases["llama"], talks, tmp_path)
    model, prepared = ready(options)
    train, plan = prepared.train, plan_of(options, prepared)
    looked: list[object] = []
    count = memory.saved_for_backward

    def counting(model: Any, batch: Batch, dtype: torch.dtype) -> Any:
        looked.append(batch["input_ids"].numel())
        return count(model, batch, dtype)

    monkeypatch.setattr(memory, "saved_for_backward", counting)
    with feed(model, options, (train,), pad_id=0, dtype=torch.float32) as collate:
        small, large = collate(train[:1]), collate(largest(plan, train, range(plan.batches_per_epoch)))
        need = count(model, large, torch.float32).total
        for free, expected, looks in [(need * 100, False, 1), (round(need / 0.85), False, 2), (need, True, 2)]:
            looked.clear()
            monkeypatch.setattr(memory, "available_bytes", lambda free=free: free)
            on, why = needs_checkpointing(model, small, large, torch.float32)
            assert (on, len(looked)) == (expected, looks) and "MB are free" in why
        for choice, on in [("off", False), ("auto", True), ("on", True)]:
            monkeypatch.setattr(feeding, "use_gradient_checkpointing", lambda _, choice=choice: looked.append(choice))
            looked.clear()
            wanted = asked(bases["llama"], talks, tmp_path, checkpointing=choice)
            settle_checkpointing(model, wanted, plan, train, collate, torch.float32)
            assert (choice in looked) == on


def test_the_limit_of_a_container_counts(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 600\ninactive_file 50\n")
    assert list(memory._left_in_group(tmp_path)) == [350]
    (tmp_path / "memory.max").write_text("max\n")
    assert list(memory._left_in_group(tmp_path)) == []
    assert memory.available_bytes() > 0 and memory.resident_bytes() > 0


@pytest.mark.parametrize("changes", [{}, {"pack": False}, {"top_layers": 1}, {"checkpointing": "on"}], ids=str)
def test_the_estimate_foresees_the_runs_counts_and_writes_nothing(
    changes: dict[str, Any], bases: dict[str, Path], talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLM_HOME", str(tmp_path / "home"))
    options = asked(bases["llama"], talks, tmp_path, accumulate=2, eval_fraction=0.2, **changes)
    figures = estimate(options, prepare_conversations(options))
    assert list(tmp_path.iterdir()) == []
    run = train_sft(options).run
    assert (figures.steps, figures.dtype) == (run.steps, run.dtype)
    assert figures.trainable_parameters == run.trainable_parameters
    assert figures.supervised_tokens == run.supervised_tokens  # of one epoch
    assert figures.checkpointing == (changes.get("checkpointing") == "on")
    assert 0 < figures.supervised_share < 1 and figures.seconds_per_step > 0
    assert figures.computed_tokens < figures.tokens or not options.pack
    assert figures.train_seconds == pytest.approx(figures.steps * figures.seconds_per_step, abs=0.1)
    assert figures.total_seconds >= figures.train_seconds
    states = [*(tmp_path / "home" / "states").glob("*/states.f32")] if options.top_layers else []
    assert figures.frozen_states_mb == pytest.approx(sum(file.stat().st_size for file in states) / 1e6, abs=0.05)


def test_the_command_takes_the_options_of_either_kind_of_run(
    bases: dict[str, Path], talks: Path, tmp_path: Path
) -> None:
    from train.cli.estimate import estimate as command

    text = tmp_path / "text.txt"
    text.write_text("".join(f"Desk {n} stands by the window of the office.\n" for n in range(80)), encoding="utf-8")

    def call(*arguments: str) -> Any:
        joints = PathJoints()
        base = ["--base", str(bases["gpt2"]), "--dtype", "float32", "--max-length", "64"]
        return CliRunner().invoke(command, [*base, *arguments], obj=joints)

    as_json = call("--data", str(text), "--method", "lora", "--epochs", "2", "--json")
    assert as_json.exit_code == 0, as_json.output
    figures = json.loads(as_json.stdout)
    per_epoch = -(-figures["examples"] // 8)  # the batch size of running text; epochs as asked
    assert figures["steps"] == 2 * per_epoch and figures["fits"]
    shown = call("--data", str(talks), "--max-steps", "3")
    assert shown.exit_code == 0, shown.output
    assert "3 steps" in shown.stdout and "supervised" in shown.stdout and "MB available" in shown.stdout


_RUN = """
import json, sys
from pathlib import Path
from train.config import TrainOptions
from train.data.prepare import prepare_conversations
what, base, data, output = sys.argv[1:]
options = TrainOptions(Path(base), (Path(data),), Path(output), targets="qv", rank=8, batch_size=4, max_steps=1,
                       max_length=128, drop_long=True, dtype="float32", checkpointing="off", eval_fraction=0.02)
if what == "estimate":
    from train.measure.estimate import estimate
    print(estimate(options, prepare_conversations(options)).peak_rss_mb)
else:
    from train.run.lora import train_sft
    print(train_sft(options).run.peak_rss_mb)
"""


@pytest.mark.real
def test_the_memory_of_a_real_run_is_foreseen(pulled_model: Callable[[str], Path], tmp_path: Path) -> None:
    import slm_cli

    base = slm_cli.Roof().checkpoint_of(str(pulled_model("smollm2-135m-instruct")))
    peaks = {}
    for what in ("estimate", "run"):
        command = [sys.executable, "-c", _RUN, what, str(base), str(ROOT / "data/instruct.jsonl"), str(tmp_path / what)]
        said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
        peaks[what] = float(said.stdout.splitlines()[-1])
    assert peaks["estimate"] == pytest.approx(peaks["run"], rel=0.15)
