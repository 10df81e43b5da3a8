"""A trained adapter in use: merged, evaluated, generated with, chosen by its language, and the commands for it."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from slm.chat.prompt import TEMPLATES
from slm.errors import InputError, MismatchError, MissingFileError
from tests.path_joints import PathJoints
from tests.tiny_adapters import FAMILIES, checkpoints, instruct, options, trained
from train.adapter.merge import merge
from train.adapter.opened import load_with_adapter
from train.adapter.sample import GenerateOptions, end_of_turn_ids, open_generator, route
from train.base import load_model, load_tokenizer
from train.data.masks import ExampleEncoder
from train.measure.evaluate import evaluate_texts
from train.run.lora import train_sft

__all__ = ["checkpoints", "instruct", "trained"]  # fixtures


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
    from tests.tiny_gguf import write_model

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
    ids = ExampleEncoder(tokenizer, TEMPLATES["chatml"]).prompt([{"role": "user", "content": "Where is desk 3?"}])
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
    from train.cli.evaluate import evaluate
    from train.cli.train import merge as merge_command
    from train.cli.train import train

    joints = PathJoints()
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
