"""Batches, the supervised loss, its precision and the learning rate, on tiny random checkpoints."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from slm.chat.prompt import TEMPLATES
from tests.tiny_adapters import FAMILIES, checkpoints, options
from tests.tiny_training import write_jsonl
from train.adapter.fresh import add_adapter
from train.base import load_model, load_tokenizer
from train.batch.loss import supervised_loss
from train.batch.plan import BatchPlan
from train.batch.precision import choose_dtype, in_float32, precision, store_frozen
from train.batch.tensors import by_length, pad
from train.data.examples import Example
from train.data.masks import IGNORE, Encoded, ExampleEncoder
from train.measure.evaluate import held_out_loss
from train.run.lora import train_sft
from train.run.schedule import decayed

__all__ = ["checkpoints"]  # a fixture


def example(*turns: str, roles: tuple[str, ...] = ("user", "assistant")) -> Example:
    messages = [{"role": roles[n % len(roles)], "content": text} for n, text in enumerate(turns)]
    return Example(Path("x.jsonl"), 7, "en", messages=tuple(messages))  # type: ignore[arg-type]


def test_every_index_comes_once_an_epoch_and_neighbours_have_like_lengths() -> None:
    lengths = [(n * 37) % 100 for n in range(43)]
    plan = BatchPlan(lengths, 4, seed=5)
    first, second = ([i for n in range(start, start + 11) for i in plan.batch(n)] for start in (0, 11))
    assert sorted(first) == sorted(second) == list(range(43)) and first != second
    again = BatchPlan(lengths, 4, seed=5)
    assert first == [i for n in range(11) for i in again.batch(n)]
    spread = [max(part) - min(part) for part in ([lengths[i] for i in first[n : n + 4]] for n in range(0, 40, 4))]
    assert sum(spread) / len(spread) < 20  # 59 for random batches of this set


def batch_of(folder: Path) -> tuple[list[Encoded], dict[str, torch.Tensor]]:
    tokenizer = load_tokenizer(folder)
    encoder = ExampleEncoder(tokenizer, TEMPLATES["chatml"])
    talks = [
        example("Where?", "It is here, on the desk."),
        example("なぜですか。", "分かりません。"),
        example("A", "b"),
    ]
    items = [item for talk in talks for item in encoder.conversation(talk)]
    return items, pad(items, tokenizer.pad_token_id)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_supervised_loss_and_its_gradients_equal_the_models_own(
    family: str, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("train.batch.loss._BLOCK", 100)  # several chunks
    model = add_adapter(load_model(checkpoints[family]), options(checkpoints[family], tmp_path, tmp_path / "o"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    _, batch = batch_of(checkpoints[family])
    own = model(**batch).loss
    own.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    total, count = supervised_loss(model, batch)
    (total / count).backward()
    assert count == int((batch["labels"][:, 1:] != IGNORE).sum())
    assert float(total / count) == pytest.approx(float(own), abs=1e-5)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert torch.allclose(parameter.grad, expected[name], atol=1e-5), name


def test_the_loss_of_a_batch_does_not_depend_on_its_padding(checkpoints: dict[str, Path]) -> None:
    model = load_model(checkpoints["gemma3"]).eval()
    items, batch = batch_of(checkpoints["gemma3"])
    together, _ = supervised_loss(model, batch)
    alone = sum(float(supervised_loss(model, pad([item], 0))[0]) for item in items)
    assert float(together) == pytest.approx(alone, rel=1e-5)


def test_held_out_loss_is_weighted_by_tokens_and_apart_by_language(checkpoints: dict[str, Path]) -> None:
    model = load_model(checkpoints["llama"]).eval()
    items, _ = batch_of(checkpoints["llama"])
    items[1] = dataclasses.replace(items[1], example=dataclasses.replace(items[1].example, lang="ja"))
    sums = held_out_loss(model, items, lambda some: pad(some, 0))
    assert sums["ja"].loss == pytest.approx(float(model(**pad(items[1:2], 0)).loss), abs=1e-5)
    assert sums["en"].tokens == items[0].supervised + items[2].supervised
    assert [len(group) for group in by_length(items, 1)] == [1, 1, 1]


def test_a_step_over_accumulated_batches_equals_one_over_the_whole(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = ["Yes.", "No, it is not there; please look on the other desk of the room.", "Maybe.", "Here it is. " * 4]
    records = [{"prompt": f"Question {n}?", "completion": answers[n % 4], "lang": "en"} for n in range(9)]
    data = write_jsonl(tmp_path / "d.jsonl", records)
    seen: list[list[torch.Tensor]] = []

    real = torch.optim.AdamW.step

    def look(self: torch.optim.AdamW, *arguments: Any) -> Any:
        seen.append([p.grad.clone() for p in self.param_groups[0]["params"]])
        return real(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", look)
    for batch_size, accumulate in ((8, 1), (2, 4)):
        changes = {"batch_size": batch_size, "accumulate": accumulate, "max_steps": 1}
        train_sft(options(checkpoints["llama"], data, tmp_path / f"a{accumulate}", **changes))
    whole, parts = seen
    assert any(gradient.abs().max() > 1e-3 for gradient in whole)
    for one, sum_of_parts in zip(whole, parts, strict=True):
        assert torch.allclose(one, sum_of_parts, atol=1e-5, rtol=1e-4), (one, sum_of_parts)


def test_the_dtype_follows_the_probe_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for seconds, expected in ((0.4, torch.bfloat16), (0.9, torch.float32), (300.0, torch.float32)):
        monkeypatch.setattr(
            "train.batch.precision._matmul_seconds", lambda dtype, s=seconds: 1.0 if dtype == torch.float32 else s
        )
        assert choose_dtype("auto")[0] == expected
    assert choose_dtype("bfloat16")[0] == torch.bfloat16


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_products_change_the_loss_little_and_storing_weights_so_changes_nothing(
    family: str, checkpoints: dict[str, Path]
) -> None:
    model = load_model(checkpoints[family]).eval()
    _, batch = batch_of(checkpoints[family])
    exact = float(supervised_loss(model, batch)[0])
    for parameter in model.parameters():
        parameter.requires_grad = False
    with precision(torch.bfloat16):
        rounded = float(supervised_loss(model, batch)[0])
        store_frozen(model, torch.bfloat16)
        stored = float(supervised_loss(model, batch)[0])
    assert rounded == pytest.approx(exact, rel=0.02) and stored == pytest.approx(rounded, rel=1e-6)
    weights = {name: weight.clone() for name, weight in model.named_parameters()}
    with precision(torch.bfloat16), in_float32(model):
        measured = float(supervised_loss(model, batch)[0])
    # Only the weights are rounded there, as they are in a model whose weights were rounded in float32.
    reference = load_model(checkpoints[family]).eval()
    tied = reference.get_input_embeddings().weight
    for module in reference.modules():
        if type(module) is torch.nn.Linear and module.weight is not tied:
            for parameter in module.parameters():
                parameter.data = parameter.data.bfloat16().float()
    assert measured == pytest.approx(float(supervised_loss(reference, batch)[0]), rel=1e-6)
    assert all(weight.equal(weights[name]) for name, weight in model.named_parameters())


def test_the_learning_rate_falls_to_a_tenth() -> None:
    for schedule in ("cosine", "linear"):
        values = [decayed(schedule, step / 10) for step in range(11)]
        assert values[0] == 1.0 and values[-1] == pytest.approx(0.1) and values == sorted(values, reverse=True)
    assert decayed("constant", 1.0) == 1.0
