"""A model trained from scratch: its sizes, windows, optimizer and loss are as stated; a killed run ends as an unbroken
one; and the folder it leaves is a checkpoint for every other command."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from slm.artifacts import read_manifest
from slm.errors import DamagedFileError, DivergenceError, InputError, MismatchError
from train.base import load_model, load_tokenizer
from train.run.folder import folder_of
from train.run.schedule import SCHEDULES, learning_rate_share
from train.scratch.config import ScratchOptions
from train.scratch.model import new_model, new_optimizers, window_loss
from train.scratch.muon import Muon, orthogonalized
from train.scratch.run import train_scratch
from train.scratch.sizes import SIZES
from train.scratch.state import restore, state_tensors
from train.scratch.windows import Batches, held_out_windows, pack
from train.tokenizer.balance import sentences
from train.tokenizer.corpus import CorpusPassage, passages
from train.tokenizer.learn import train_pieces, write_tokenizer

ROOT = Path(__file__).parent.parent
TEXTS = {lang: [ROOT / f"data/{lang}.txt"] for lang in ("en", "ja")}
SHAPE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(train_pieces(sentences(passages(TEXTS), {"en": 1.0, "ja": 1.0}, seed=0), 1400), folder)
    return folder


@pytest.fixture
def shape(tmp_path: Path) -> Path:
    path = tmp_path / "shape.json"
    path.write_text(json.dumps(SHAPE))
    return path


def options(tokens: Path | None, shape: Path | None, output: Path, **changes: Any) -> ScratchOptions:
    plain: dict[str, Any] = {
        "data": TEXTS, "output": output, "tokenizer": tokens, "config": shape, "eval_fraction": 0.1, "context": 32,
        "batch_size": 4, "max_tokens": 32 * 4 * 12, "evaluations": 2, "samples": False, "dtype": "float32",
    }  # fmt: skip
    return ScratchOptions(**{**plain, **changes})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.detach() for name, tensor in load_model(folder).named_parameters()}


def same(one: Path, other: Path) -> bool:
    left, right = weights(one), weights(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("name", SIZES)
def test_a_size_has_the_parameters_it_is_named_by(name: str) -> None:
    size, vocabulary = SIZES[name]
    config = LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=True, **vars(size))
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    count = sum(p.numel() for p in model.parameters())
    assert count == size.parameters(vocabulary)
    assert abs(count / (float(name[:-1]) * 1e6) - 1) < 0.1
    assert size.block_parameters() + model.get_input_embeddings().weight.numel() == count


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 24), st.integers(2, 24), st.integers(0, 99))
def test_orthogonalizing_brings_every_singular_value_near_one(rows: int, columns: int, seed: int) -> None:
    # The iteration's first factor is 3.44 at zero: five steps lift what is above 1/300 of the largest.
    left, _, right = torch.linalg.svd(
        torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)), full_matrices=False
    )
    values = torch.linspace(1.0, 0.05, min(rows, columns))
    result = orthogonalized(left @ torch.diag(values) @ right)
    found = torch.linalg.svdvals(result)
    assert float(found.min()) > 0.6 and float(found.max()) < 1.3
    assert float((left.mT @ result @ right.mT - torch.diag(torch.diag(left.mT @ result @ right.mT))).abs().max()) < 1e-3


def test_muon_takes_the_steps_of_torchs_muon_up_to_its_bfloat16() -> None:
    torch.manual_seed(0)
    start = [torch.randn(16, 8), torch.randn(8, 16), torch.randn(16, 8)]
    ours = [torch.nn.Parameter(p.clone()) for p in start]
    theirs = [torch.nn.Parameter(p.clone()) for p in start]
    mine = Muon(ours, lr=0.02, momentum=0.95, weight_decay=0.1)
    reference = torch.optim.Muon(theirs, lr=0.02, momentum=0.95, weight_decay=0.1)
    for _ in range(4):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        mine.step()
        reference.step()
    for one, other, was in zip(ours, theirs, start, strict=True):
        moved = (other - was).norm()
        assert float((one - other).norm() / moved) < 0.02


def test_muon_gets_the_hidden_matrices_and_nothing_else(tokenizer: Path, shape: Path, tmp_path: Path) -> None:
    chosen = options(tokenizer, shape, tmp_path / "out")
    model = new_model(chosen, load_tokenizer(tokenizer))
    optimizers = new_optimizers(model, chosen)
    names = {id(p): name for name, p in model.named_parameters()}
    held = {
        kind: {names[id(p)] for group in one.param_groups for p in group["params"]} for kind, one in optimizers.items()
    }
    assert held["muon"] == {name for name in names.values() if name.endswith("_proj.weight")}
    assert held["muon"] | held["adamw"] == set(names.values()) and not held["muon"] & held["adamw"]
    with pytest.raises(ValueError, match="matrices"):
        Muon([torch.nn.Parameter(torch.ones(3))])


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(st.floats(0.0, 1.0), st.floats(0.0, 0.5))
def test_a_schedule_rises_to_the_peak_and_never_leaves_it(schedule: str, done: float, warmup: float) -> None:
    share = learning_rate_share(schedule, done, warmup)
    assert 0.0 <= share <= 1.0
    assert math.isclose(learning_rate_share(schedule, warmup, warmup), 1.0)
    if done >= warmup:
        assert share >= learning_rate_share(schedule, 1.0, warmup) - 1e-12
    end = {"cosine": 0.1, "wsd": 0.0}[schedule]
    assert math.isclose(learning_rate_share(schedule, 1.0, warmup), end, abs_tol=1e-12)


def test_windows_hold_every_token_once_and_the_end_of_every_document(tokenizer: Path) -> None:
    loaded = load_tokenizer(tokenizer)
    texts = [
        CorpusPassage("en", "The desk. " * 9, True),
        CorpusPassage("en", "A lamp ", False),
        CorpusPassage("en", "is here.", True),
    ]
    stream = pack(loaded, texts, 0.0, 0).train["en"]
    end = loaded.eos_token_id
    expected = [end]
    for passage in texts:
        expected += [*loaded(passage.text).input_ids, *([end] if passage.ends else [])]
    assert list(stream.ids) == expected and stream.utf8_bytes == sum(len(p.text) for p in texts)
    windows = [stream.window(n, 8) for n in range(stream.windows(8))]
    assert [window[1:] for window in windows] == [expected[n + 1 : n + 9] for n in range(0, len(windows) * 8, 8)]
    measured = list(held_out_windows(stream, 8, end))
    asked = [label for _, labels in measured for label in labels]
    assert [label for label in asked if label != -100] == [token for token in expected if token != end]


def test_batches_come_in_the_same_order_from_any_step_and_in_another_each_epoch(tokenizer: Path) -> None:
    streams = pack(load_tokenizer(tokenizer), passages(TEXTS), 0.0, 0).train
    straight = Batches(streams, 32, 4, seed=3)
    steps = [straight.batch(n) for n in range(2 * straight.windows // 4)]
    later = Batches(streams, 32, 4, seed=3)
    assert torch.equal(later.batch(len(steps) - 1), steps[-1]) and torch.equal(later.batch(1), steps[1])
    rows = [tuple(row) for batch in steps for row in batch.tolist()]
    first, second = rows[: straight.windows], rows[straight.windows :]
    assert len(set(first)) == straight.windows and set(second) <= set(first) and first[: len(second)] != second


def test_the_loss_and_its_gradients_are_the_models_own(tokenizer: Path, shape: Path, tmp_path: Path) -> None:
    chosen = options(tokenizer, shape, tmp_path / "out")
    model, reference = (new_model(chosen, load_tokenizer(tokenizer)) for _ in range(2))
    ids = torch.randint(0, 1400, (20, 33), generator=torch.Generator().manual_seed(0))  # more than one slice of logits
    labels = ids[:, 1:].clone()
    labels[:, ::3] = -100
    count = int((labels != -100).sum())
    total = window_loss(model, ids[:, :-1], labels, scale=1.0 / count)
    logits = reference(input_ids=ids[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    loss.backward()
    assert math.isclose(total / count, float(loss.detach()), rel_tol=1e-5)
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-6)


def command(*arguments: str | Path) -> dict[str, Any]:
    """The JSON that an `slm` command prints, run in this process."""
    from slm_cli import cli

    done = CliRunner().invoke(cli, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_a_run_learns_and_its_folder_is_a_checkpoint(tokenizer: Path, shape: Path, tmp_path: Path) -> None:
    out, gguf = tmp_path / "model", tmp_path / "model.gguf"
    texts = [part for lang in TEXTS for part in ("--data", f"{lang}={TEXTS[lang][0]}")]
    figures = command(
        "train", "scratch", "--tokenizer", tokenizer, "--config", shape, *texts, "-o", out, "--context", "32",
        "--batch-size", "4", "--epochs", "1.5", "--eval-fraction", "0.1", "--plot", tmp_path / "loss.png",
        "--dtype", "float32",
    )  # fmt: skip
    assert all(figures["bits_per_byte"][lang] < 0.9 * figures["bits_per_byte_before"][lang] for lang in TEXTS)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    history = read_manifest(out)["history"]
    assert history["held_out"][-1][1] == figures["bits_per_byte"] and history["samples"]
    assert not folder_of(out).exists()
    command("convert", out, "-o", gguf, "--type", "f32")
    text = tmp_path / "text.txt"
    text.write_text(TEXTS["ja"][0].read_text(encoding="utf-8")[:600], encoding="utf-8")
    by_form = [command("evaluate", form, "--text", f"ja={text}")["by_language"]["ja"] for form in (out, gguf)]
    assert by_form[0]["tokens"] == by_form[1]["tokens"]
    assert math.isclose(by_form[0]["loss"], by_form[1]["loss"], rel_tol=1e-4)


def test_bits_per_byte_are_those_of_a_plain_forward_pass(tokenizer: Path, shape: Path, tmp_path: Path) -> None:
    held = tmp_path / "held.txt"
    held.write_text("The desk is by the window.\n", encoding="utf-8")
    result = train_scratch(
        options(tokenizer, shape, tmp_path / "out", eval_data={"en": [held], "ja": TEXTS["ja"]}, max_tokens=128)
    )
    loaded, model = load_tokenizer(tokenizer), load_model(tmp_path / "out")
    ids = torch.tensor([[loaded.eos_token_id, *loaded(held.read_text()).input_ids]])
    with torch.no_grad():
        logs = model(input_ids=ids[:, :-1]).logits.log_softmax(-1)
    nats = -float(logs[0].gather(1, ids[0, 1:, None]).sum())
    assert math.isclose(result.bits_per_byte["en"], nats / math.log(2) / result.held_out_bytes["en"], rel_tol=1e-5)
    assert result.held_out_bytes["en"] == len(held.read_bytes())


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_one_seed_gives_one_model_and_another_seed_another(
    tokenizer: Path, shape: Path, tmp_path: Path, optimizer: str
) -> None:
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        train_scratch(options(tokenizer, shape, tmp_path / name, seed=seed, optimizer=optimizer))
    assert same(tmp_path / "one", tmp_path / "two") and not same(tmp_path / "one", tmp_path / "three")


def test_a_killed_run_resumes_to_the_same_weights(tokenizer: Path, shape: Path, tmp_path: Path) -> None:
    whole = options(tokenizer, shape, tmp_path / "whole", max_tokens=32 * 4 * 60)
    train_scratch(whole)
    texts = [part for lang in TEXTS for part in ("--data", f"{lang}={TEXTS[lang][0]}")]
    arguments = [
        "train", "scratch", "--tokenizer", tokenizer, "--config", shape, *texts, "-o", tmp_path / "broken", "--context",
        "32", "--batch-size", "4", "--max-tokens", 32 * 4 * 60, "--eval-fraction", "0.1", "--evaluations", "2",
        "--no-samples", "--dtype", "float32", "--save-every-s", "0.0001",
    ]  # fmt: skip
    words = [sys.executable, "-m", "slm_cli", *map(str, arguments)]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    kept = folder_of(tmp_path / "broken") / "checkpoints"
    while process.poll() is None and not list(kept.glob("step-*5/manifest.json")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "broken").exists() and folder_of(tmp_path / "broken").exists()
    for changed, said in (([], "--resume"), (["--resume", "--seed", "5"], "seed was 0, is 5")):
        refused = subprocess.run([*words, *changed], cwd=ROOT, capture_output=True, text=True)
        assert refused.returncode == 1 and said in refused.stderr, refused.stderr
    resumed = subprocess.run([*words, "--resume"], cwd=ROOT, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert "going on from step" in resumed.stderr
    assert same(tmp_path / "whole", tmp_path / "broken")
    histories = [read_manifest(tmp_path / name)["history"] for name in ("whole", "broken")]
    assert histories[0]["losses"] == histories[1]["losses"] and histories[0]["held_out"] == histories[1]["held_out"]


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_model_and_optimizers_come_back_from_their_tensors(
    tokenizer: Path, shape: Path, tmp_path: Path, optimizer: str
) -> None:
    chosen = options(tokenizer, shape, tmp_path / "out", optimizer=optimizer)
    pairs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = new_model(replace(chosen, seed=seed), load_tokenizer(tokenizer))
        pairs.append((model, new_optimizers(model, chosen)))
    (model, optimizers), other = pairs
    for _ in range(2):
        window_loss(model, torch.tensor([[5, 6, 7]]), torch.tensor([[6, 7, 8]]), scale=1.0)
        for one in optimizers.values():
            one.step()
    kept = {name: tensor.clone() for name, tensor in state_tensors(model, optimizers).items()}
    assert state_tensors(*other).keys() != kept.keys()  # it has taken no step
    restore(*other, kept)
    found = state_tensors(*other)
    assert found.keys() == kept.keys() and all(torch.equal(found[name], kept[name]) for name in kept)
    lost = next(name for name in kept if name.startswith("model/"))
    with pytest.raises(DamagedFileError, match="does not fit"):
        restore(*other, {name: tensor for name, tensor in kept.items() if name != lost})


def test_resuming_a_run_that_has_ended_gives_its_result(tokenizer: Path, shape: Path, tmp_path: Path) -> None:
    first = train_scratch(options(tokenizer, shape, tmp_path / "out", resume=True))
    assert train_scratch(options(tokenizer, shape, tmp_path / "out", resume=True)) == first
    with pytest.raises(MismatchError, match="seed was 0, is 5"):
        train_scratch(options(tokenizer, shape, tmp_path / "out", resume=True, seed=5))


def test_a_trained_model_goes_on_from_its_weights(tokenizer: Path, shape: Path, tmp_path: Path) -> None:
    train_scratch(options(tokenizer, shape, tmp_path / "first", max_tokens=32 * 4 * 40))
    more = options(None, None, tmp_path / "second", init=tmp_path / "first", optimizer="adamw")
    result = train_scratch(more)
    first = read_manifest(tmp_path / "first")["figures"]["bits_per_byte"]
    assert result.bits_per_byte_before == pytest.approx(first, rel=1e-5)
    assert not same(tmp_path / "first", tmp_path / "second")
    assert read_manifest(tmp_path / "second")["options"]["optimizer"] == "adamw"


def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_nothing(
    tokenizer: Path, shape: Path, tmp_path: Path
) -> None:
    with pytest.raises(DivergenceError, match=r"(loss|gradient) became (nan|inf) at step") as caught:
        train_scratch(options(tokenizer, shape, tmp_path / "out", learning_rate=1e30, warmup_fraction=0.0))
    assert "--lr 5e+29" in caught.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"config": None}, "one of --size"),
        ({"init": Path("x")}, "--init brings its own"),
        ({"tokenizer": None}, "--tokenizer is needed"),
        ({"context": 4, "batch_size": 0}, "--context.*--batch-size"),
        ({"schedule": "none"}, "--schedule"),
    ],
)
def test_options_that_cannot_work_are_listed_together(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ScratchOptions(**{"data": TEXTS, "output": Path("o"), "tokenizer": Path("t"), "config": Path("c"), **changes})


def test_a_configuration_that_makes_no_model_is_named(tokenizer: Path, shape: Path, tmp_path: Path) -> None:
    shape.write_text(json.dumps({**SHAPE, "model_type": "gpt2"}))
    with pytest.raises(InputError, match="llama"):
        train_scratch(options(tokenizer, shape, tmp_path / "out"))
    shape.write_text("{")
    with pytest.raises(DamagedFileError, match="not readable JSON"):
        train_scratch(options(tokenizer, shape, tmp_path / "out"))
    with pytest.raises(InputError, match="windows"):
        train_scratch(options(tokenizer, shape, tmp_path / "out", batch_size=5000))


def test_a_split_shows_every_token_and_is_sound_xml(tmp_path: Path) -> None:
    from xml.etree import ElementTree

    from train.run.pictures import cells, draw_quantization, draw_tokenizers, split_svg

    tokens = ["a<b", " &", "漢字", "\n", *["word"] * 60]
    root = ElementTree.fromstring(split_svg([("first & last", tokens)]))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == ["first & last", "a<b", "␣&", "漢字", "⏎", *["word"] * 60]
    boxes = [element for element in root.iter("{http://www.w3.org/2000/svg}rect") if element.get("rx")]
    assert len(boxes) == len(tokens)
    assert all(float(b.get("x", 0)) + float(b.get("width", 0)) <= float(root.get("width", 0)) for b in boxes)
    assert cells("漢字ab") == 6
    languages = {"en": {"bytes_per_token": 4.0}, "ja": {"bytes_per_token": 5.0}}
    draw_tokenizers(
        {"x": {"by_language": languages, "tokens_per_parallel_sentence": {"en": 3.0, "ja": 4.0}}}, tmp_path / "t.png"
    )
    by_language = {"en": {"bits_per_byte": 1.0, "mean_kl_divergence": 0.1}}
    files = [
        {"type": "q8_0", "size_bytes": 10, "by_language": by_language},
        {"type": "f16", "size_bytes": 20, "by_language": {"en": {"bits_per_byte": 1.0}}},
    ]
    draw_quantization({"m": files}, tmp_path / "q.png")
    for name in ("t.png", "q.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
