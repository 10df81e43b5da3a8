"""The whole road on Gemma 3 270m: train per language, convert, hot-load, and the same words as PEFT.

One run of training serves every test here. It takes some minutes; everything else in the tests is fast.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from slm.joints import Finish, Message, SamplingOptions

ROOT = Path(__file__).parent.parent
LANGUAGES = ("en", "ja")
TOKENS = 16
# Two logits closer than this are a tie for 16-bit weights: f16 keeps 11 bits, and Gemma's logits reach about 30.
NEAR_TIE = 0.1

pytestmark = pytest.mark.real


def slm(*args: str | Path) -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, "-m", "slm_cli", *map(str, args)], capture_output=True, text=True, cwd=ROOT, timeout=900
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout) if run.stdout.startswith("{") else {}


@dataclass(frozen=True)
class Road:
    """What the road has made: checkpoint and base GGUF, and by language adapter folder, GGUF and figures."""

    checkpoint: Path
    base: Path
    adapters: dict[str, Path]
    files: dict[str, Path]
    figures: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory, pulled_model: Callable[[str], Path]) -> Road:
    work = tmp_path_factory.mktemp("road")
    checkpoint, base = work / "checkpoint", work / "base.f16.gguf"
    slm("restore", pulled_model("gemma-3-270m"), "-o", checkpoint)
    slm("convert", checkpoint, "-o", base, "--type", "f16")
    adapters, files, figures = {}, {}, {}
    for lang in LANGUAGES:
        adapters[lang], files[lang] = work / lang, work / f"{lang}.gguf"
        data = ["--data", "data/instruct.jsonl", "--lang", lang]
        # Less than the default; what it learns must already be plain.
        figures[lang] = slm(
            "train", "sft", "--base", checkpoint, *data, "-o", adapters[lang], "--epochs", "0.35", "--json"
        )
        slm("convert", adapters[lang], "-o", files[lang], "--base", checkpoint)
    return Road(checkpoint, base, adapters, files, figures)


def prompts(lang: str) -> list[str]:
    lines = (ROOT / "data/handbook/questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [q["question"] for q in map(json.loads, lines) if q["lang"] == lang][:20]


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_held_out_loss_falls_by_15_percent_in_each_language(road: Road, lang: str) -> None:
    figures = road.figures[lang]
    assert figures["held_out_loss_after"] < 0.85 * figures["held_out_loss_before"], figures
    manifest = json.loads((road.adapters[lang] / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["figures"]["held_out_loss_after"] == figures["held_out_loss_after"]


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_adapter_gguf_on_the_f16_base_says_what_peft_says(road: Road, lang: str) -> None:
    """20 greedy answers; where a token differs, both candidates must be a near tie in PEFT's own logits."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from serve.engine.engine import open_engine

    tokenizer = AutoTokenizer.from_pretrained(road.adapters[lang])
    model = AutoModelForCausalLM.from_pretrained(road.checkpoint, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, str(road.adapters[lang])).eval()
    sampling = SamplingOptions(max_tokens=TOKENS)
    asked = prompts(lang)
    assert len(asked) == 20
    same = 0
    with open_engine(road.base, {lang: road.files[lang]}) as engine, torch.no_grad():
        for question in asked:
            messages = [Message(role="user", content=question)]
            ours = "".join(p for p in engine.chat(messages, adapter=lang, sampling=sampling) if isinstance(p, str))
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            ids = tokenizer(text, add_special_tokens=not text.startswith(tokenizer.bos_token))["input_ids"]
            assert engine.tokens_of(messages, adapter=lang) == ids
            output = model.generate(
                torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                do_sample=False, max_new_tokens=TOKENS, output_logits=True, return_dict_in_generate=True,
            )  # fmt: skip
            answer = output.sequences[0][len(ids) :].tolist()
            theirs = tokenizer.decode(answer, skip_special_tokens=True)
            if ours == theirs:
                same += 1
                continue
            our_ids = tokenizer(ours, add_special_tokens=False)["input_ids"]
            at = next(
                (i for i, (a, b) in enumerate(zip(our_ids, answer, strict=False)) if a != b),
                min(len(our_ids), len(answer) - 1),
            )
            logits = output.logits[at][0]
            rival = our_ids[at] if at < len(our_ids) else tokenizer.eos_token_id
            gap = float(logits.max() - logits[rival])
            print(f"\n{question}\n  ours: {ours!r}\n  PEFT: {theirs!r}\n  first differing token: {at}, {gap:.4f} apart")
            assert gap < NEAR_TIE, f"not a tie: {ours!r} against {theirs!r}"
    assert same >= 15, f"only {same} of 20 answers were the same word for word"


def test_auto_sends_each_language_to_its_adapter_on_one_loaded_base(road: Road) -> None:
    from serve.engine.engine import open_engine

    with open_engine(road.base, road.files) as engine:
        for lang in LANGUAGES:
            *pieces, finish = engine.chat(
                [Message(role="user", content=prompts(lang)[0])], adapter="auto", sampling=SamplingOptions(max_tokens=8)
            )
            assert isinstance(finish, Finish)
            assert finish.adapter == lang
            assert "".join(map(str, pieces)).strip()


def test_the_adapter_is_refused_on_another_base(
    road: Road, tmp_path: Path, pulled_model: Callable[[str], Path]
) -> None:
    from serve.engine.engine import open_engine
    from slm.errors import MismatchError

    with (
        pytest.raises(MismatchError, match="gemma3"),
        open_engine(pulled_model("smollm2-135m-instruct"), {"en": road.files["en"]}),
    ):
        pass
