"""The training room: data, masks, loss, adapters, merge and evaluation, on tiny random checkpoints."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tiny_training import (
    conversations,
    corpus,
    write_checkpoint,
    write_jsonl,
    write_sentencepiece_checkpoint,
)

from slm.errors import DamagedFileError, InputError, MismatchError, MissingFileError, UnsupportedError
from slm.joints import Joints
from slm.prompt import TEMPLATES
from train.adapter import load_with_adapter
from train.batch.batches import by_length, pad
from train.batch.loss import IGNORE, supervised_loss
from train.batch.plan import Plan
from train.checkpoint import load_model, load_tokenizer, target_modules
from train.config import TrainOptions
from train.data.examples import Example
from train.data.masks import Encoded, Encoder
from train.evaluate import evaluate_texts, held_out_loss
from train.generate import GenerateOptions, end_of_turn_ids, open_generator, route
from train.lora import train_causal, train_sft
from train.merge import merge
from train.peft_adapter import add_adapter
from train.precision import choose_dtype, precision, store_frozen
from train.schedule import decayed

FAMILIES = ["gpt2", "llama", "gemma3"]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    made = {family: write_checkpoint(folder / family, family) for family in FAMILIES}
    made["gemma3"] = write_checkpoint(folder / "gemma3-capped", "gemma3", final_logit_softcapping=3.0)
    made["other"] = write_checkpoint(folder / "other", "gpt2", seed=1)
    made["wider"] = write_checkpoint(folder / "wider", "gpt2", n_embd=48)
    made["sentencepiece"] = write_sentencepiece_checkpoint(folder / "sentencepiece")
    return made


@pytest.fixture(scope="session")
def instruct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "i.jsonl", conversations(20) + conversations(20, "ja"))


def options(base: Path, data: Path, output: Path, **changes: Any) -> TrainOptions:
    quick: dict[str, Any] = {"epochs": 3.0, "learning_rate": 2e-2, "targets": "all", "rank": 4, "threads": 1}
    return TrainOptions(base=base, data=(data,), output=output, **(quick | {"dtype": "float32"} | changes))


@pytest.fixture(scope="session")
def trained(checkpoints: dict[str, Path], instruct: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One SFT adapter for each family."""
    folder = tmp_path_factory.mktemp("adapters")
    for family in FAMILIES:
        train_sft(options(checkpoints[family], instruct, folder / family, template="chatml"))
    return {family: folder / family for family in FAMILIES}


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


# Masks


def example(*turns: str, roles: tuple[str, ...] = ("user", "assistant")) -> Example:
    messages = [{"role": roles[n % len(roles)], "content": text} for n, text in enumerate(turns)]
    return Example(Path("x.jsonl"), 7, "en", messages=tuple(messages))  # type: ignore[arg-type]


# Batches and loss


def test_every_index_comes_once_an_epoch_and_neighbours_have_like_lengths() -> None:
    lengths = [(n * 37) % 100 for n in range(43)]
    plan = Plan(lengths, 4, seed=5)
    first, second = ([i for n in range(start, start + 11) for i in plan.batch(n)] for start in (0, 11))
    assert sorted(first) == sorted(second) == list(range(43)) and first != second
    again = Plan(lengths, 4, seed=5)
    assert first == [i for n in range(11) for i in again.batch(n)]
    spread = [max(part) - min(part) for part in ([lengths[i] for i in first[n : n + 4]] for n in range(0, 40, 4))]
    assert sum(spread) / len(spread) < 20  # 59 for random batches of this set


def batch_of(folder: Path) -> tuple[list[Encoded], dict[str, torch.Tensor]]:
    tokenizer = load_tokenizer(folder)
    encoder = Encoder(tokenizer, TEMPLATES["chatml"])
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
    sums = held_out_loss(model, items, lambda some: pad(some, 0), torch.float32)
    assert sums["ja"].loss == pytest.approx(float(model(**pad(items[1:2], 0)).loss), abs=1e-5)
    assert sums["en"].tokens == items[0].supervised + items[2].supervised
    assert [len(group) for group in by_length(items, 1)] == [1, 1, 1]


def test_a_step_over_accumulated_batches_equals_one_over_the_whole(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = ["Yes.", "No, it is not there; please look on the other desk of the room.", "Maybe.", "Here it is. " * 4]
    records = [{"prompt": f"Question {n}?", "completion": answers[n % 4], "lang": "en"} for n in range(9)]
    data = write_jsonl(tmp_path / "d.jsonl", records)
    seen: list[dict[str, torch.Tensor]] = []

    def look(self: Any, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        seen.append({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})

    monkeypatch.setattr("train.trainer.Monitor.on_pre_optimizer_step", look, raising=False)
    for batch_size, accumulate in ((8, 1), (2, 4)):
        changes = {"batch_size": batch_size, "accumulate": accumulate, "max_steps": 1}
        train_sft(options(checkpoints["llama"], data, tmp_path / f"a{accumulate}", **changes))
    whole, parts = seen
    assert any(gradient.abs().max() > 1e-3 for gradient in whole.values())
    for name, gradient in whole.items():
        assert torch.allclose(gradient, parts[name], atol=1e-5, rtol=1e-4), (name, gradient, parts[name])


def test_the_dtype_follows_the_probe_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for seconds, expected in ((0.4, torch.bfloat16), (0.9, torch.float32), (300.0, torch.float32)):
        monkeypatch.setattr(
            "train.precision._matmul_seconds", lambda dtype, s=seconds: 1.0 if dtype == torch.float32 else s
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


def test_the_learning_rate_falls_to_a_tenth() -> None:
    for schedule in ("cosine", "linear"):
        values = [decayed(schedule, step / 10) for step in range(11)]
        assert values[0] == 1.0 and values[-1] == pytest.approx(0.1) and values == sorted(values, reverse=True)
    assert decayed("constant", 1.0) == 1.0


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

    monkeypatch.setattr("train.trainer.supervised_loss", fail)
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
            for target in target_modules(model.config.model_type, preset):
                assert sum(name.endswith("." + target) for name in names) == 2, (family, target)


# Merge


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_checkpoint_equals_pefts_merge_and_the_adapter_on_its_base(
    family: str, checkpoints: dict[str, Path], trained: dict[str, Path], tmp_path: Path
) -> None:
    result = merge(checkpoints[family], trained[family], tmp_path / "merged")
    expected = load_with_adapter(checkpoints[family], trained[family]).merge_and_unload().state_dict()
    merged = load_model(result.output)  # strict: raises when a weight is missing or left over
    for name, tensor in merged.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, expected[name]), name
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        adapted = load_with_adapter(checkpoints[family], trained[family])(ids).logits
        assert torch.allclose(merged.eval()(ids).logits, adapted, atol=1e-4)
    manifest = json.loads((result.output / "manifest.json").read_text())
    assert manifest["kind"] == "checkpoint" and manifest["made_by"] == "merge"
    assert manifest["fingerprint"] == result.fingerprint != manifest["base"]["fingerprint"]
    assert load_tokenizer(result.output).chat_template == TEMPLATES["chatml"]
    names = {path.name for path in result.output.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    eos = json.loads((result.output / "generation_config.json").read_text())["eos_token_id"]
    assert load_tokenizer(result.output).convert_tokens_to_ids("<|im_end|>") in eos


def test_an_adapter_of_another_base_or_of_other_shapes_is_refused(
    checkpoints: dict[str, Path], trained: dict[str, Path], tmp_path: Path
) -> None:
    import shutil

    with pytest.raises(MismatchError, match="trained on another base"):
        merge(checkpoints["other"], trained["gpt2"], tmp_path / "m")
    foreign = shutil.copytree(trained["gpt2"], tmp_path / "foreign")
    (foreign / "manifest.json").unlink()  # as any PEFT adapter: only its shapes tell
    with pytest.raises(MismatchError, match="does not fit"):
        merge(checkpoints["wider"], foreign, tmp_path / "m")
    with pytest.raises(MismatchError, match="does not fit"):
        merge(checkpoints["llama"], foreign, tmp_path / "m")
    with pytest.raises(MissingFileError, match=r"adapter_config\.json"):
        merge(checkpoints["gpt2"], checkpoints["gpt2"], tmp_path / "m")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foreign"]


# Evaluation and generation


def test_evaluation_of_a_checkpoint_equals_the_models_own_loss(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("会議室の予約は、共有カレンダーでします。", encoding="utf-8")
    tokenizer = load_tokenizer(checkpoints["llama"])
    ids = torch.tensor([tokenizer(text.read_text(encoding="utf-8")).input_ids])
    own = float(load_model(checkpoints["llama"]).eval()(ids, labels=ids).loss)
    figures = evaluate_texts(checkpoints["llama"], {"ja": [text]})["ja"]
    assert figures.tokens == ids.shape[1] - 1
    assert figures.loss == pytest.approx(own, abs=1e-5) and figures.perplexity == pytest.approx(math.exp(own), rel=1e-4)
    size = len(text.read_bytes())
    assert figures.bits_per_byte == pytest.approx(own * figures.tokens / math.log(2) / size, rel=1e-4)


def test_evaluation_of_a_gguf_file_gives_a_loss_for_each_language(tmp_path: Path) -> None:
    from tiny_gguf import write_model

    model = write_model(tmp_path / "tiny.gguf")
    text = tmp_path / "t.txt"
    text.write_text("plain ascii text for a tiny model " * 40)
    figures = evaluate_texts(model, {"en": [text], "ja": [text, text]})
    assert figures["ja"].tokens == 2 * figures["en"].tokens > 1000
    assert figures["en"].loss == pytest.approx(figures["ja"].loss, rel=1e-6)
    assert 0 < figures["en"].loss < 30
    empty = tmp_path / "empty.txt"
    empty.write_text(" ")
    with pytest.raises(InputError, match="is empty"):
        evaluate_texts(model, {"en": [empty]})


def test_greedy_generation_equals_transformers_own(checkpoints: dict[str, Path], trained: dict[str, Path]) -> None:
    generator = open_generator(checkpoints["llama"], trained["llama"])
    text = "".join(generator.stream("Where is desk 3?", GenerateOptions(max_new_tokens=12), chat=True))
    tokenizer = load_tokenizer(trained["llama"])
    ids = Encoder(tokenizer, TEMPLATES["chatml"]).prompt([{"role": "user", "content": "Where is desk 3?"}])
    model = load_with_adapter(checkpoints["llama"], trained["llama"])
    expected = model.generate(
        input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False,
        max_new_tokens=12, eos_token_id=end_of_turn_ids(tokenizer), pad_token_id=0,
    )  # fmt: skip
    assert text == tokenizer.decode(expected[0, len(ids) :], skip_special_tokens=True)


def test_generation_stops_at_the_learned_end_marker_and_sampling_is_seeded(
    checkpoints: dict[str, Path], instruct: Path, tmp_path: Path
) -> None:
    learned: dict[str, Any] = {"epochs": 30.0, "learning_rate": 1e-2, "rank": 8, "template": "chatml", "lang": "en"}
    train_sft(options(checkpoints["llama"], instruct, tmp_path / "a", **learned))
    generator = open_generator(checkpoints["llama"], tmp_path / "a")
    answer = "".join(generator.stream("Where is desk 4?", GenerateOptions(max_new_tokens=64)))
    assert answer.startswith("Desk ") and answer.endswith(" is here.")
    warm = GenerateOptions(max_new_tokens=20, temperature=5.0, seed=3)
    assert list(generator.stream("x", warm)) == list(generator.stream("x", warm))
    other = dataclasses.replace(warm, seed=4)
    assert "".join(generator.stream("x", other)) != "".join(generator.stream("x", warm))


def test_the_router_follows_the_manifests_language_then_the_name(tmp_path: Path) -> None:
    for name, lang in (("a", "ja"), ("b", "en")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(json.dumps({"kind": "adapter", "lang": lang}))
    adapters = {"one": [tmp_path / "a"], "two": [tmp_path / "b"]}
    assert route("会議室はどこですか", adapters).name == "one"
    assert route("Where is the meeting room?", adapters).name == "two"
    assert route("42", adapters, "two").name == "two"
    with pytest.raises(InputError, match="known: one, two"):
        route("42", adapters, "three")


# Commands


def test_the_commands_train_merge_and_evaluate_with_figures_as_json(
    checkpoints: dict[str, Path], instruct: Path, tmp_path: Path
) -> None:
    from train.cli import evaluate, train
    from train.cli import merge as merge_command

    joints = Joints(checkpoint_of=Path)
    base, adapter, merged = (str(p) for p in (checkpoints["gpt2"], tmp_path / "a", tmp_path / "m"))

    def call(command: Any, *arguments: str) -> dict[str, Any]:
        result = CliRunner().invoke(command, [*arguments, "--json"], obj=joints, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        value = json.loads(result.stdout)
        assert isinstance(value, dict)
        return value

    shared = ("--lang", "ja", "--max-steps", "4", "--threads", "1", "--dtype", "float32")
    figures = call(train, "sft", "--base", base, "--data", str(instruct), "-o", adapter, *shared)
    assert figures["by_language"]["ja"]["held_out_loss_after"] > 0 and figures["steps"] == 4
    made = call(merge_command, "--base", base, "--adapter", adapter, "-o", merged)
    assert made["output"] == merged and made["size_bytes"] > 0
    text = tmp_path / "t.txt"
    text.write_text("机はどこですか。\n", encoding="utf-8")
    losses = call(evaluate, merged, "--text", f"ja={text}")["by_language"]["ja"]
    assert set(losses) == {"loss", "perplexity", "bits_per_byte", "tokens"}
