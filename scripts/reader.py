"""Makes a reader from the reading set: `make reader` and `make second-reader` run this (docs/reader.md).

pull -> an index for each organisation -> examples from its questions and what retrieval brings -> slm train reader ->
thresholds fitted on the development organisations; for a second reader also how much its scores count beside the
first's. The test organisations are not opened.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from convert.output.writer import OutTensor, write_gguf  # noqa: E402
from rag.answer.candidates import Depth, candidates  # noqa: E402
from rag.answer.reader.card import CARD, CONTRAST, RELEASED, SECOND, read_card, write_card  # noqa: E402
from rag.answer.reader.contrast import CausalTokenizer  # noqa: E402
from rag.answer.reader.examples import example_of, require_places, right_lines  # noqa: E402
from rag.answer.reader.form import TextTokenizer, texts_of  # noqa: E402
from rag.answer.reader.judge import open_reader  # noqa: E402
from rag.answer.reader.weights import base_file, base_fingerprint, reader_tokenizer  # noqa: E402
from rag.evaluate.thresholds import MOST_WRONG, PRICE, fitted  # noqa: E402
from rag.evaluate.together import TwiceJudged, fitted_sum, nats  # noqa: E402
from rag.index.embed import DEFAULT_EMBEDDER, Embedder, open_embedder  # noqa: E402
from rag.index.embedders.packed import read_packed, write_checkpoint  # noqa: E402
from rag.index.store import open_generation  # noqa: E402
from rag.index.update import add_documents  # noqa: E402
from rag.questions import Question, read_questions  # noqa: E402
from rag.sources.files import read_files  # noqa: E402
from slm.joints import Passage  # noqa: E402
from slm.native.llama import open_model  # noqa: E402
from slm.terminal.console import note, progress  # noqa: E402
from slm.weights.checkpoint_files import ADAPTER_GGUF  # noqa: E402
from slm.weights.gguf_reader import GgufFile, read_gguf  # noqa: E402
from slm_cli import Roof  # noqa: E402

READING = ROOT / "data/reading"
# All examples once take longer than this on slow processors; the schedule of the rate follows the time that is left.
_BOUNDED = ("--epochs", "1", "--time-limit-s", "5400")
# Deeper than what is read for an answer, so that not all neighbours of a right passage are the same in every example.
_DEPTH = Depth(same=12, other=8, tokens=10_000)
# How many of the first reader's likeliest passages a second one reads.
_AGAIN = 8
# Where training departs from the defaults of slm train reader.
_OPTIONS = {DEFAULT_EMBEDDER: (), "gemma-3-270m": ("--rank", "16", "--lr", "5e-4")}


def index_of(organisation: Path, work: Path, embedder: Embedder) -> Path:
    """The index of an organisation's pages, made once."""
    path = work / f"index-{organisation.name}"
    if not path.exists():
        add_documents(path, read_files([organisation / "en", organisation / "ja"]).documents, embedder)
    return path


def tokenizer_of(base: str, stack: ExitStack) -> TextTokenizer:
    """What cuts texts for a base: the packaged embedder, or a causal model that is pulled."""
    if base == DEFAULT_EMBEDDER:
        return reader_tokenizer(base_file())
    return CausalTokenizer(open_model(stack, Roof().gguf_of(base), vocab_only=True))


def write_examples(
    organisations: list[Path],
    work: Path,
    out: Path,
    tokenizer: TextTokenizer,
    seed: int,
    draws: int = 1,
    most: int | None = None,
) -> int:
    """Examples of each question (of at most so many an organisation), each with other passages, in a file; how many."""
    embedder, draw, rows = open_embedder(DEFAULT_EMBEDDER), random.Random(seed), []
    with progress(f"examples for {out.stem}", total=len(organisations), unit="organisations") as done:
        for number, organisation in enumerate(organisations, 1):
            generation = open_generation(index_of(organisation, work, embedder))
            languages = {source: str(entry["lang"]) for source, entry in generation.documents.items()}
            questions = read_questions(organisation / "questions.jsonl")
            require_places(
                questions, [Passage(one.title, one.heading, one.text, one.source, 0.0) for one in generation.chunks]
            )
            for asked in questions if most is None else draw.sample(questions, min(most, len(questions))):
                passages = candidates(generation, embedder, asked.question, _DEPTH)
                made = (example_of(asked, passages, languages, tokenizer, draw) for _ in range(draws))
                rows += [example for example in made if example]
            done(number)
    out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return len(rows)


def asked_of_development(most: int) -> Iterator[tuple[Path, list[Question]]]:
    """So many questions of each development organisation."""
    for organisation in sorted((READING / "development").iterdir()):
        questions = read_questions(organisation / "questions.jsonl")
        random.Random(0).shuffle(questions)
        yield organisation, questions[:most]


def judged_twice(second: Path, work: Path, most: int) -> list[TwiceJudged]:
    """What the released reader and a second one make of the lines before development questions."""
    embedder = open_embedder(DEFAULT_EMBEDDER)
    one, other = open_reader(RELEASED).judge, open_reader(second, Roof().causal_reader).judge
    made: list[TwiceJudged] = []
    for organisation, questions in asked_of_development(most):
        generation = open_generation(index_of(organisation, work, embedder))
        with progress(f"judging twice for {organisation.name}", total=len(questions), unit="questions") as done:
            for number, asked in enumerate(questions, 1):
                passages = candidates(generation, embedder, asked.question)
                texts = [texts_of(passage) for passage in passages]
                scores = [judge(asked.question, [lines for lines, _ in texts]).scores for judge in (one, other)]
                first, again = ([score for lines in of_judge for score in lines] for of_judge in scores)
                right = [
                    n in set(right_lines(asked, passage))
                    for passage, (_, lines) in zip(passages, texts, strict=True)
                    for n in range(len(lines))
                ]
                if any(right) or not asked.answerable:  # else retrieval did not bring the answer
                    made.append(TwiceJudged(first, again, right, asked.together))
                done(number)
    return made


def fit_sum(second: Path, work: Path, most: int) -> None:
    """Fit how much a second reader's scores count beside the released one's, and keep that in its card."""
    write_card(second, scale=1.0, offset=0.0, before=None)
    judged = judged_twice(second, work, most)
    share, scale, offset = fitted_sum(judged)
    note(
        f"{len(judged)} questions: {nats(judged, 1, 0, 0):.3f} nats by the first reader, "
        f"{nats(judged, 0, 1, 0):.3f} by the second, {nats(judged, share, scale, offset):.3f} by {share} and {scale} "
        f"of them and {offset}"
    )
    write_card(second, scale=scale, offset=offset, before={"passages": _AGAIN, "share": share})


def fit_thresholds(reader: Path, work: Path, price: float, most_wrong: float, most: int) -> dict[str, float]:
    """Answer development questions without ever refusing, fit when to refuse, and keep that in the reader's card."""
    from rag.answer.retriever import open_retriever
    from rag.evaluate.answers import Answered, answered, by_reader

    eager = replace(open_reader(reader, Roof().causal_reader), refuse_at={"": 2.0})
    embedder = open_embedder(DEFAULT_EMBEDDER)
    rows: list[Answered] = []
    for organisation, questions in asked_of_development(most):
        with (
            open_retriever(str(index_of(organisation, work, embedder))) as retriever,
            progress(f"answering for {organisation.name}", total=len(questions), unit="questions") as done,
        ):
            rows += answered(by_reader(retriever, eager), questions, done)
    limits = {language: round(limit, 3) for language, limit in fitted(rows, price, most_wrong).items()}
    write_card(reader, refuse_at=limits)
    return limits


def release(reader: Path, average: bool = False) -> None:
    """Put a reader where it comes with the program, without its run's history. Its README stays as it is.

    average: a second reader's weights are the mean of its own and of those released, which it went on from.
    """
    from slm.artifacts import read_manifest

    second = read_card(reader).kind == CONTRAST
    folder = SECOND if second else RELEASED
    folder.mkdir(parents=True, exist_ok=True)
    if second:  # converted, so that nobody has to restore a checkpoint for it
        adapters = [read_gguf(Roof().adapter_gguf_of(reader, SECOND.name))]
        write_halves([*adapters, read_gguf(folder / ADAPTER_GGUF)] if average else adapters, folder / ADAPTER_GGUF)
    else:
        release_weights(reader, folder)
    shutil.copyfile(reader / CARD, folder / CARD)
    manifest = read_manifest(reader)
    base = manifest["base"] | {"path": folder.name}
    kept = {"kind": manifest["kind"], "base": base, "method": manifest["method"]}
    (folder / "manifest.json").write_text(json.dumps(kept, indent=2) + "\n")
    note(f"released: {folder.relative_to(ROOT)}")


def write_halves(adapters: list[GgufFile], out: Path) -> None:
    """An adapter's GGUF with its matrices in float16: the mean of those of several, with the first one's metadata."""
    tensors = [
        OutTensor(name, info.shape, "F16", [np.mean([one.dequantized(name) for one in adapters], axis=0)])
        for name, info in adapters[0].tensors.items()
    ]
    # What is written may be one of those that are read.
    written = out.with_suffix(".new")
    with written.open("wb") as file:
        for _ in write_gguf(file, adapters[0].metadata | {"general.file_type": 1}, tensors):
            pass
    written.replace(out)


def release_weights(reader: Path, folder: Path) -> None:
    """An adapter's weights in float16, and its settings."""
    import torch
    from safetensors.torch import load_file, save

    from rag.answer.reader.weights import ADAPTER, SETTINGS

    halves = {name: tensor.to(torch.float16) for name, tensor in load_file(reader / ADAPTER).items()}
    (folder / ADAPTER).write_bytes(save(halves, metadata={"format": "pt"}))
    settings = json.loads((reader / SETTINGS).read_text()) | {"base_model_name_or_path": folder.name}
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")


def train(base: str, work: Path, files: dict[str, Path], output: Path, seed: int, options: list[str]) -> None:
    """`slm train reader` on the examples of both splits."""
    if output.exists() and (output / CARD).exists():
        shutil.rmtree(output)
    given = base
    if base == DEFAULT_EMBEDDER:
        checkpoint = work / "base"
        if not checkpoint.exists():
            packaged = base_file()
            write_checkpoint(read_packed(packaged), checkpoint, base_fingerprint(packaged))
        given = str(checkpoint)
    command = [sys.executable, "-m", "slm_cli", "train", "reader", "--base", given, "--data", str(files["train"])]
    command += ["--eval-data", str(files["development"]), "-o", str(output)]
    command += ["--seed", str(seed), *_OPTIONS[base], *_BOUNDED, *options]
    subprocess.run(command, check=True, cwd=ROOT)


def main() -> None:
    """The recipe from beginning to end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", choices=list(_OPTIONS), default=DEFAULT_EMBEDDER, help="a causal one reads second")
    parser.add_argument("-o", "--output", type=Path, help="adapter folder [default: below adapters/]")
    parser.add_argument("--price", type=float, default=PRICE, help="what a wrong answer costs beside one not given")
    parser.add_argument(
        "--most-wrong",
        type=float,
        default=MOST_WRONG,
        help="share of answerable questions answered wrong at most",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--held-out", type=int, default=12, help="questions of each development organisation, for the loss"
    )
    parser.add_argument("--draws", type=int, default=1, help="examples of each question, with other passages each time")
    parser.add_argument("--questions", type=int, default=70, help="of each development organisation, for thresholds")
    parser.add_argument("--only-thresholds", action="store_true", help="fit them anew for the reader that is there")
    parser.add_argument("--release", action="store_true", help="only put the reader that is there into rag/readers")
    parser.add_argument(
        "--average", action="store_true", help="with --release: the mean of a second reader and of the released one"
    )
    parser.add_argument("options", nargs="*", help="after --: options of slm train reader")
    args = parser.parse_args()
    second = args.base != DEFAULT_EMBEDDER
    output = args.output or ROOT / "adapters" / ("second-reader" if second else "reader")
    if args.release:
        release(output, args.average)
        return
    started = time.monotonic()
    work = ROOT / "exports/reader"
    work.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys((DEFAULT_EMBEDDER, args.base)):
        subprocess.run([sys.executable, "-m", "slm_cli", "pull", name], check=True, cwd=ROOT)
    if not args.only_thresholds:
        files = {split: work / f"{args.base}-{split}.jsonl" for split in ("train", "development")}
        with ExitStack() as stack:
            tokenizer = tokenizer_of(args.base, stack)
            for split, file in files.items():
                draws, most = (1, args.held_out) if split == "development" else (args.draws, None)
                organisations = sorted((READING / split).iterdir())
                count = write_examples(organisations, work, file, tokenizer, args.seed, draws, most)
                note(f"{count} examples in {file}")
        train(args.base, work, files, output, args.seed, args.options)
    if second:
        fit_sum(output, work, args.questions)
    limits = fit_thresholds(output, work, args.price, args.most_wrong, args.questions)
    print(f"{output}: refuses at {limits} ({(time.monotonic() - started) / 60:.0f} minutes)")


if __name__ == "__main__":
    main()
