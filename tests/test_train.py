"""The training room: options, tokenizers, checkpoints and runs, on tiny random checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from slm.errors import DamagedFileError, InputError, MissingFileError, UnsupportedError
from tests.tiny_adapters import FAMILIES, checkpoints, instruct, options, trained
from tests.tiny_training import corpus
from train.adapter.opened import load_with_adapter
from train.base import load_model, load_tokenizer, target_modules
from train.batch.loss import supervised_loss
from train.config import TrainOptions
from train.run.lora import train_causal, train_sft

__all__ = ["checkpoints", "instruct", "trained"]  # fixtures


# Options and data


def test_every_fault_of_the_options_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        TrainOptions(base=tmp_path, data=(), output=tmp_path, rank=0, learning_rate=-1, dtype="int4", epochs=0)
    for word in ("--data", "--rank", "--lr", "--dtype", "--epochs", "is the base itself"):
        assert word in str(caught.value)


# Tokenizers


def test_a_sentencepiece_folder_splits_exactly_as_sentencepiece_does(checkpoints: dict[str, Path]) -> None:
    import sentencepiece

    folder = checkpoints["sentencepiece"]
    reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    tokenizer = load_tokenizer(folder)
    for text in [*corpus()[::9], "Hello  World、会議室の予約は\nＡＢＣ😀鬱 ", "  １２３㍿ﾃｽﾄ", ""]:
        assert tokenizer(text, add_special_tokens=False).input_ids == reference.encode(text.lower())
    assert tokenizer.unk_token_id == 0 and tokenizer.eos_token_id == 2 and tokenizer.pad_token_id == 3
    assert tokenizer.convert_tokens_to_ids("[SEP]") == reference.piece_to_id("[SEP]")


def test_a_saved_sentencepiece_tokenizer_reloads_the_same(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = load_tokenizer(checkpoints["sentencepiece"])
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    for text in [*corpus()[::29], "Mixed 日本語 Text</s>次"]:
        assert again(text).input_ids == tokenizer(text).input_ids


# Runs


@pytest.mark.parametrize("family", FAMILIES)
def test_training_lowers_the_held_out_loss_of_each_language_and_the_manifest_is_complete(
    family: str, checkpoints: dict[str, Path], trained: dict[str, Path], instruct: Path
) -> None:
    folder = trained[family]
    manifest = json.loads((folder / "manifest.json").read_text())
    figures = manifest["figures"]
    assert set(figures["by_language"]) == {"en", "ja"}
    for language in figures["by_language"].values():
        assert language["held_out_loss_after"] < 0.85 * language["held_out_loss_before"]
        assert (language["train_examples"], language["held_out_examples"]) == (18, 2)
    for key in ("steps", "seconds", "tokens_per_s", "supervised_tokens_per_s", "peak_rss_mb"):
        assert figures[key] > 0
    assert figures["dtype"] == "float32" and figures["held_out_loss_after"] < figures["held_out_loss_before"]
    assert manifest["kind"] == "adapter" and manifest["template"] == "chatml" and manifest["lang"] is None
    assert manifest["base"]["path"] == str(checkpoints[family]) and len(manifest["base"]["fingerprint"]) == 64
    assert manifest["data"][0]["file"] == str(instruct) and len(manifest["data"][0]["sha256"]) == 64
    assert manifest["options"]["rank"] == 4
    names = {path.name for path in folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert not any(name.startswith("checkpoint") or name == "README.md" for name in names)


def test_an_adapter_reloads_in_peft_with_the_same_outputs_and_is_not_the_base(
    checkpoints: dict[str, Path], trained: dict[str, Path]
) -> None:
    from peft import AutoPeftModelForCausalLM

    ids = torch.tensor([[5, 6, 7, 8]])
    ours = load_with_adapter(checkpoints["llama"], trained["llama"])(ids).logits
    theirs = AutoPeftModelForCausalLM.from_pretrained(trained["llama"]).eval()(ids).logits
    base = load_model(checkpoints["llama"]).eval()(ids).logits
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert (ours - base).abs().max() > 0.1


def test_the_same_seed_gives_the_same_adapter_and_another_seed_another(
    checkpoints: dict[str, Path], instruct: Path, tmp_path: Path
) -> None:
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        train_sft(options(checkpoints["gpt2"], instruct, tmp_path / name, seed=seed, max_steps=4, dropout=0.1))
    one, two, three = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("one", "two", "three"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not all(torch.equal(one[key], three[key]) for key in one)


def test_running_text_is_learned_with_either_tokenizer(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    text = tmp_path / "ja.txt"
    text.write_text("".join(f"会議室{n}の予約は共有カレンダーでします。\n" for n in range(150)), encoding="utf-8")
    for base in ("gpt2", "sentencepiece"):
        output = tmp_path / base
        result = train_causal(options(checkpoints[base], text, output, max_length=48, epochs=10.0))
        assert result.held_out_loss_after < 0.8 * result.held_out_loss_before
        assert json.loads((output / "manifest.json").read_text())["lang"] == "ja"


def test_a_time_limit_ends_the_run_cleanly_and_keeps_what_was_learned(
    checkpoints: dict[str, Path], instruct: Path, tmp_path: Path
) -> None:
    result = train_sft(options(checkpoints["gpt2"], instruct, tmp_path / "a", time_limit_s=1e-9))
    assert result.run.steps == 1 and result.run.stopped_by == "time limit"
    assert (tmp_path / "a" / "manifest.json").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_run_that_is_interrupted_or_fails_leaves_nothing_behind(
    error: type[BaseException], checkpoints: dict[str, Path], instruct: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    calls = 0

    def fail(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise error()
        return supervised_loss(*args, **kwargs)

    monkeypatch.setattr("train.run.job.supervised_loss", fail)
    with pytest.raises(error):
        train_sft(options(checkpoints["gpt2"], instruct, tmp_path / "out" / "a"))
    assert calls == 3 and list((tmp_path / "out").iterdir()) == []


def test_a_wrong_folder_an_unknown_architecture_and_an_unknown_target_are_named(
    checkpoints: dict[str, Path], trained: dict[str, Path], instruct: Path, tmp_path: Path
) -> None:
    for base, kind, text in (
        (tmp_path / "none", MissingFileError, "no folder"),
        (instruct, InputError, "is a file"),
        (trained["gpt2"], InputError, "is an adapter"),
        (instruct.parent, MissingFileError, "no config.json"),
    ):
        with pytest.raises(kind, match=text):
            train_sft(options(base, instruct, tmp_path / "o"))
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(UnsupportedError, match=r"'mamba'.*gemma3_text, gpt2, gpt_neox, llama"):
        train_sft(options(strange, instruct, tmp_path / "o"))
    with pytest.raises(InputError, match="c_attn"):
        train_sft(options(checkpoints["gpt2"], instruct, tmp_path / "o", targets="q_proj"))
    assert not (tmp_path / "o").exists()


def test_a_checkpoint_with_a_missing_or_truncated_weight_is_refused(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    import shutil

    broken = shutil.copytree(checkpoints["llama"], tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DamagedFileError, match="up_proj"):
        load_model(broken)
    raw = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(DamagedFileError):
        load_model(broken)


def test_target_presets_name_layers_of_each_family(checkpoints: dict[str, Path]) -> None:
    for family in FAMILIES:
        model = load_model(checkpoints[family])
        names = [name for name, _ in model.named_modules()]
        for preset in ("qv", "attention", "all"):
            for target in target_modules(model.config, preset):
                assert sum(name.endswith("." + target) for name in names) == 2, (family, target)
