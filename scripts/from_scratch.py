"""From raw text to a model that can be chatted with, in one sitting: docs/from-scratch.md walks through it.

corpus -> tokenizer -> models -> GGUF, quantized -> measured -> taught to answer -> asked. Every step that has a command
is that command, printed before it runs, so that it can be repeated by hand. `make from-scratch` runs this.

    python scripts/from_scratch.py corpus --work exports/from-scratch

`corpus` holds en.jsonl, ja.jsonl and the parallel lines parallel-en.txt, parallel-ja.txt (scripts/manuals.py makes it).
A model that an earlier run has finished is kept, one that was broken off goes on.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from slm.artifacts import MANIFEST, new_file, require_file  # noqa: E402
from slm.errors import SlmError  # noqa: E402
from slm.terminal import console  # noqa: E402

LANGUAGES = ("en", "ja")
TYPES = ("f16", "q8_0", "q4_k_m", "q4_0")
SENTENCES = {
    "en": "The package manager installs 25 programs; see the manual page apt(8).",
    "ja": "パッケージマネージャは25個のプログラムをインストールします。",
}
QUESTIONS = {"en": "Where do I report a broken lamp?", "ja": "ランプが壊れたら、どこに連絡すればいいですか。"}
spent: list[tuple[str, float]] = []


def slm(*args: str | Path) -> dict[str, Any]:
    """Run one `slm` command with its progress on the terminal; its JSON result, if it prints one."""
    words = [str(a) for a in args]
    print(f"\n$ slm {shlex.join(word for word in words if word != '--json')}", flush=True)
    started = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-m", "slm_cli", *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    spent.append((" ".join(words[:2]), time.monotonic() - started))
    if run.returncode:
        sys.exit(run.returncode)
    if run.stdout.startswith("{"):
        result: dict[str, Any] = json.loads(run.stdout)
        return result
    print(run.stdout, end="", flush=True)
    return {}


def headline(text: str) -> None:
    """A step's title."""
    console.out().rule(f"[bold]{text}", align="left")


def named(option: str, corpus: Path, pattern: str) -> list[str | Path]:
    """`option LANG=FILE` for each language."""
    return [word for lang in LANGUAGES for word in (option, f"{lang}={corpus / pattern.format(lang)}")]


def teach_tokenizer(corpus: Path, work: Path, pictures: Path, beside: list[Path], vocabulary: int) -> None:
    """The tokenizer, its figures and its splits."""
    from train.base import load_tokenizer
    from train.run.pictures import draw_tokenizers, split_svg

    headline("1. A tokenizer for both languages")
    others = [word for folder in beside for word in ("--beside", folder)]
    size = ["--vocab-size", str(vocabulary)]
    texts = [*named("--text", corpus, "{}.jsonl"), *named("--parallel", corpus, "parallel-{}.txt")]
    figures = slm("train", "tokenizer", *texts, *size, *others, "-o", work / "tokenizer", "--json")
    draw_tokenizers(figures["tokenizers"], pictures / "tokenizers.png")
    rows = []
    for folder in [work / "tokenizer", *beside]:
        tokenizer = load_tokenizer(folder)
        for lang in LANGUAGES:
            ids = tokenizer(SENTENCES[lang], add_special_tokens=False).input_ids
            tokens = [tokenizer.decode([number]) for number in ids]
            rows.append((f"{folder.name}, {lang}: {len(ids)} tokens", tokens))
    with new_file(pictures / "split.svg") as path:
        path.write_text(split_svg(rows), encoding="utf-8")


def convert(work: Path, corpus: Path, name: str) -> list[dict[str, Any]]:
    """The GGUF files of a model and what each is worth on text that it has never seen."""
    types = [word for kind in TYPES for word in ("--type", kind)]
    slm("convert", work / name, "-o", work / f"{name}-gguf", *types, "--json")
    held_out = named("--text", corpus, "parallel-{}.txt")
    files = []
    for kind in TYPES:
        (path,) = (work / f"{name}-gguf").glob(f"*{kind}.gguf")
        by_language = slm("evaluate", path, *held_out, "--json")["by_language"]
        if kind != "f16":
            (reference,) = (work / f"{name}-gguf").glob("*f16.gguf")
            free = ["--max-kl", "9", "--min-top1", "0", "--max-relative", "9"]  # measured here, not judged
            found = slm("verify", path, "--against", reference, *held_out, *free, "--json")
            for lang in LANGUAGES:
                by_language[lang]["mean_kl_divergence"] = found["by_language"][lang]["mean_kl_divergence"]
        files.append({"type": kind, "size_bytes": path.stat().st_size, "by_language": by_language})
    return files


def teach_answers(work: Path, name: str, steps: int) -> None:
    """A LoRA adapter on conversations, merged and converted, and what it says. steps: 0 for two epochs."""
    headline("4. Taught to answer, and asked")
    base, chat = work / name, work / f"{name}-chat"
    long = ["--max-steps", str(steps)] if steps else ["--epochs", "2"]
    slm("train", "sft", "--base", base, "--data", ROOT / "data/instruct.jsonl", "--drop-long", "--max-length", "512",
        "--rank", "32", "--lr", "0.002", *long, "--batch-size", "8", "-o", work / "answers")  # fmt: skip
    slm("merge", "--base", base, "--adapter", work / "answers", "-o", chat)
    slm("convert", chat, "-o", work / f"{name}-chat.q8_0.gguf", "--type", "q8_0")
    for lang in LANGUAGES:
        slm("generate", work / f"{name}-chat.q8_0.gguf", "--context", "512", "--max-tokens", "80", "--repeat-penalty",
            "1.1", "-p", QUESTIONS[lang])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--work", type=Path, default=ROOT / "exports/from-scratch")
    parser.add_argument("--pictures", type=Path, help="folder for the pictures  [default: WORK/pictures]")
    parser.add_argument("--beside", type=Path, action="append", default=[], help="tokenizer folder to compare with")
    parser.add_argument("--sizes", nargs="+", default=["1m", "5m"], help="the last one is taught to answer")
    parser.add_argument("--tokens", type=int, default=1_300_000, help="tokens each model is trained on")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--answer-steps", type=int, default=0, help="steps of the last training  [default: two epochs]")
    arguments = parser.parse_args()
    corpus, work = arguments.corpus.resolve(), arguments.work.resolve()
    pictures = (arguments.pictures or work / "pictures").resolve()
    for lang in LANGUAGES:
        require_file(corpus / f"{lang}.jsonl", hint="scripts/manuals.py makes a corpus of Debian's manuals.")
    from train.run.pictures import draw_quantization, require_matplotlib

    require_matplotlib()
    beside = [folder.resolve() for folder in arguments.beside]
    teach_tokenizer(corpus, work, pictures, beside, arguments.vocab_size)
    headline("2. Models")
    for name in arguments.sizes:
        plot = ["--plot", pictures / f"loss-{name}.png"]
        data = [*named("--data", corpus, "{}.jsonl"), "--max-tokens", str(arguments.tokens)]
        if (work / name / MANIFEST).exists():
            print(f"'{work / name}' is there already and is kept")
            continue
        again = ["--resume"] if (work / f"{name}.run").exists() else []
        shape = ["--tokenizer", work / "tokenizer", "--size", name]
        slm("train", "scratch", *shape, *data, *plot, *again, "-o", work / name)
    headline("3. GGUF, quantized")
    files = {name: convert(work, corpus, name) for name in arguments.sizes}
    draw_quantization(files, pictures / "quantization.png")
    with new_file(work / "figures.json") as path:
        path.write_text(json.dumps(files, indent=2) + "\n", encoding="utf-8")
    teach_answers(work, arguments.sizes[-1], arguments.answer_steps)
    headline("What it took")
    for name, seconds in spent:
        print(f"{seconds:7.1f} s  slm {name}")
    print(f"{sum(seconds for _, seconds in spent):7.1f} s  in all; pictures in {pictures}")
    print(f"chat: slm chat {work / f'{arguments.sizes[-1]}-chat.q8_0.gguf'} --context 512")


if __name__ == "__main__":
    try:
        main()
    except SlmError as error:
        sys.exit(f"error: {error}")
