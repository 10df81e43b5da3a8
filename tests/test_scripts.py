"""The quick start's own commands, run as a user runs them: from a clone, as processes, on tiny random GPT-2s."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_training import ROOT, conversations, write_checkpoint, write_jsonl, write_sentencepiece_checkpoint

QUICK = ("--max_steps", "3", "--targets", "all", "--threads", "1", "--dtype", "float32")


def script(name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run scripts/<name>.py from another folder, so that only the script itself can find the clone."""
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *arguments],
        capture_output=True, text=True, cwd=cwd, timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """distil: byte-level BPE; rinna: SentencePiece; en_lora and ja_lora: their adapters, made by the quick start."""
    folder = tmp_path_factory.mktemp("quick start")
    write_checkpoint(folder / "distil")
    write_sentencepiece_checkpoint(folder / "rinna")
    for base, lang in (("distil", "en"), ("rinna", "ja")):
        text = str(ROOT / "data" / f"{lang}.txt")
        done = script(
            "train_lora_causal", "--model_path", base, "--train_file", text,
            "--output_dir", f"adapters/{lang}_lora", *QUICK, cwd=folder,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip().endswith(f"adapters/{lang}_lora")
    return folder


@pytest.mark.parametrize(("base", "lang"), [("distil", "en"), ("rinna", "ja")])
def test_train_lora_causal_writes_an_adapter_for_either_kind_of_tokenizer(folder: Path, base: str, lang: str) -> None:
    manifest = json.loads((folder / f"adapters/{lang}_lora/manifest.json").read_text())
    assert manifest["lang"] == lang and manifest["base"]["path"] == str(folder / base)
    assert manifest["figures"]["held_out_loss_after"] < manifest["figures"]["held_out_loss_before"]
    assert [path.name for path in (folder / "adapters").iterdir() if path.name.startswith(".")] == []


def test_generate_prints_a_continuation_and_is_greedy_by_default(folder: Path) -> None:
    prompt = "Write a haiku about teamwork"
    call = ("--base", "distil", "--adapter", "adapters/en_lora", "--prompt", prompt, "--max_new_tokens", "12")
    first, second = (script("generate", *call, cwd=folder) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert len(first.stdout.strip()) > 0 and first.stdout == second.stdout
    assert first.stderr == ""


def test_generate_works_with_the_sentencepiece_base(folder: Path) -> None:
    call = ("--base", "rinna", "--adapter", "adapters/ja_lora", "--prompt", "会議室は", "--max-new-tokens", "8")
    done = script("generate", *call, cwd=folder)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_sft_merge_and_the_merged_checkpoint_work(folder: Path) -> None:
    data = write_jsonl(folder / "i.jsonl", conversations(10) + conversations(10, "ja"))
    done = script(
        "train_sft_lora", "--model-path", "rinna", "--train-file", str(data), "--output-dir", "adapters/sft",
        "--lang", "ja", "--json", *QUICK, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["by_language"]["ja"]["train_examples"] == 9
    merged = script("merge_lora", "--base", "rinna", "--adapter", "adapters/sft", "--output_dir", "m", cwd=folder)
    assert merged.returncode == 0, merged.stderr
    assert merged.stdout.strip() == "m" and (folder / "m/spiece.model").exists()
    ask = ("--prompt", "机3はどこですか。", "--max_new_tokens", "8")
    adapted = script("generate", "--base", "rinna", "--adapter", "adapters/sft", *ask, cwd=folder)
    plain = script("generate", "--base", "m", *ask, cwd=folder)
    assert plain.returncode == 0 and plain.stdout == adapted.stdout, plain.stderr


def test_the_router_chooses_by_language_and_says_so(folder: Path) -> None:
    done = script(
        "train_lora_causal", "--model_path", "distil", "--train_file", str(ROOT / "data/ja.txt"),
        "--output_dir", "adapters/distil_ja", *QUICK, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    adapters = ("--adapters", "english=adapters/en_lora", "--adapters", "japanese=adapters/distil_ja")
    for text, name in (("会議室はどこですか。", "japanese"), ("Where is the meeting room?", "english")):
        routed = script("router", "--base", "distil", *adapters, "-p", text, "--max_new_tokens", "4", cwd=folder)
        assert routed.returncode == 0, routed.stderr
        assert routed.stderr.startswith(f"adapter: {name} (") and routed.stdout.strip()


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("train_lora_causal", ("--model_path", "none", "--train_file", "t", "--output_dir", "o"), "no folder 'none'"),
        ("train_lora_causal", ("--model_path", "distil", "--train_file", "t", "--output_dir", "o"), "no file 't'"),
        ("train_sft_lora", ("--model_path", "distil", "--train_file", "bad.jsonl", "--output_dir", "o"), "line 2"),
        ("merge_lora", ("--base", "rinna", "--adapter", "adapters/en_lora", "--output_dir", "o"), "another base"),
        ("generate", ("--base", "adapters", "--prompt", "x"), "no config.json"),
        ("router", ("--base", "distil", "--adapters", "en=gone", "--prompt", "x"), "no folder 'gone'"),
    ],
)
def test_bad_input_is_one_clear_line_and_leaves_nothing(
    folder: Path, name: str, arguments: tuple[str, ...], text: str
) -> None:
    write_jsonl(folder / "bad.jsonl", conversations(1)).open("a", encoding="utf-8").write('{"messages": [\n')
    done = script(name, *arguments, cwd=folder)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and text in done.stderr
    assert not (folder / "o").exists()


def test_wrong_usage_exits_with_2_and_help_shows_an_example(folder: Path) -> None:
    assert script("generate", "--base", "distil", cwd=folder).returncode == 2
    for name in ("train_lora_causal", "train_sft_lora", "merge_lora", "generate", "router"):
        shown = script(name, "--help", cwd=folder)
        assert shown.returncode == 0 and f"python scripts/{name}.py" in shown.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.stem)
def test_every_script_finds_what_it_imports(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import scripts.{path.stem}"], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
