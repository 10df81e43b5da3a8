"""Makes a reader from the reading set: `make reader` runs this (docs/reader.md).

pull -> an index for each organisation -> examples from its questions and what retrieval brings -> slm train reader ->
thresholds fitted on the development organisations. The test organisations are not opened.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rag.answer.candidates import Depth, candidates  # noqa: E402
from rag.answer.reader.examples import example_of, require_places  # noqa: E402
from rag.answer.reader.weights import base_file, base_fingerprint, reader_tokenizer  # noqa: E402
from rag.index.embed import DEFAULT_EMBEDDER, Embedder, open_embedder  # noqa: E402
from rag.index.embedders.packed import read_packed, write_checkpoint  # noqa: E402
from rag.index.store import open_generation  # noqa: E402
from rag.index.update import add_documents  # noqa: E402
from rag.questions import read_questions  # noqa: E402
from rag.sources.files import read_files  # noqa: E402
from slm.joints import Passage  # noqa: E402
from slm.terminal.console import note, progress  # noqa: E402

READING = ROOT / "data/reading"
# All examples once take longer than this on slow processors; the schedule of the rate follows the time that is left.
_BOUNDED = ("--epochs", "1", "--time-limit-s", "5400")
# Deeper than what is read for an answer, so that not all neighbours of a right passage are the same in every example.
_DEPTH = Depth(same=12, other=8, tokens=10_000)


def index_of(organisation: Path, work: Path, embedder: Embedder) -> Path:
    """The index of an organisation's pages, made once."""
    path = work / f"index-{organisation.name}"
    if not path.exists():
        add_documents(path, read_files([organisation / "en", organisation / "ja"]).documents, embedder)
    return path


def write_examples(
    organisations: list[Path], work: Path, out: Path, seed: int, draws: int = 1, most: int | None = None
) -> int:
    """Examples of each question (of at most so many an organisation), each with other passages, in a file; how many."""
    embedder, draw, rows = open_embedder(DEFAULT_EMBEDDER), random.Random(seed), []
    tokenizer = reader_tokenizer(base_file())
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


def fit_thresholds(reader: Path, work: Path, price: float, most: int) -> dict[str, float]:
    """Answer development questions without ever refusing, fit when to refuse, and keep that in the reader's card."""
    from dataclasses import replace

    from rag.answer.reader.card import write_thresholds
    from rag.answer.reader.judge import open_reader
    from rag.answer.retriever import open_retriever
    from rag.evaluate.answers import Answered, answered, by_reader
    from rag.evaluate.thresholds import fitted

    eager = replace(open_reader(reader), refuse_at={"": 2.0})
    rows: list[Answered] = []
    for organisation in sorted((READING / "development").iterdir()):
        questions = read_questions(organisation / "questions.jsonl")
        random.Random(0).shuffle(questions)
        with (
            open_retriever(str(work / f"index-{organisation.name}")) as retriever,
            progress(f"answering for {organisation.name}", total=len(questions[:most]), unit="questions") as done,
        ):
            rows += answered(by_reader(retriever, eager), questions[:most], done)
    limits = {language: round(limit, 3) for language, limit in fitted(rows, price).items()}
    write_thresholds(reader, limits)
    return limits


def release(reader: Path) -> None:
    """Put a reader where it comes with the program: float16, without its run's history. Its README stays as it is."""
    import torch
    from safetensors.torch import load_file, save

    from rag.answer.reader.card import CARD, RELEASED
    from rag.answer.reader.weights import ADAPTER, SETTINGS
    from slm.artifacts import read_manifest

    RELEASED.mkdir(parents=True, exist_ok=True)
    halves = {name: tensor.to(torch.float16) for name, tensor in load_file(reader / ADAPTER).items()}
    (RELEASED / ADAPTER).write_bytes(save(halves, metadata={"format": "pt"}))
    settings = json.loads((reader / SETTINGS).read_text()) | {"base_model_name_or_path": DEFAULT_EMBEDDER}
    (RELEASED / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
    shutil.copyfile(reader / CARD, RELEASED / CARD)
    manifest = read_manifest(reader)
    base = manifest["base"] | {"path": DEFAULT_EMBEDDER}
    kept = {"kind": manifest["kind"], "base": base, "method": manifest["method"]}
    (RELEASED / "manifest.json").write_text(json.dumps(kept, indent=2) + "\n")
    note(f"released: {RELEASED.relative_to(ROOT)}")


def main() -> None:
    """The recipe from beginning to end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "adapters/reader", help="adapter folder")
    parser.add_argument("--price", type=float, default=1.2, help="what a wrong answer costs beside one not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--held-out", type=int, default=12, help="questions of each development organisation, for the loss"
    )
    parser.add_argument("--draws", type=int, default=1, help="examples of each question, with other passages each time")
    parser.add_argument("--questions", type=int, default=70, help="of each development organisation, for thresholds")
    parser.add_argument("--only-thresholds", action="store_true", help="fit them anew for the reader that is there")
    parser.add_argument("--release", action="store_true", help="only put the reader that is there into rag/readers")
    parser.add_argument("options", nargs="*", help="after --: options of slm train reader")
    args = parser.parse_args()
    if args.release:
        release(args.output)
        return
    started = time.monotonic()
    work = ROOT / "exports/reader"
    work.mkdir(parents=True, exist_ok=True)
    slm = [sys.executable, "-m", "slm_cli"]
    subprocess.run([*slm, "pull", DEFAULT_EMBEDDER], check=True, cwd=ROOT)
    splits = ("development",) if args.only_thresholds else ("train", "development")
    files = {split: work / f"{split}.jsonl" for split in splits}
    for split, file in files.items():
        draws, most = (1, args.held_out) if split == "development" else (args.draws, None)
        count = write_examples(sorted((READING / split).iterdir()), work, file, args.seed, draws, most)
        note(f"{count} examples in {file}")
    if not args.only_thresholds:
        if args.output.exists() and (args.output / "reader.json").exists():
            shutil.rmtree(args.output)
        base = work / "base"
        if not base.exists():
            packaged = base_file()
            write_checkpoint(read_packed(packaged), base, base_fingerprint(packaged))
        command = [*slm, "train", "reader", "--base", str(base), "--data", str(files["train"])]
        command += ["--eval-data", str(files["development"]), "-o", str(args.output)]
        command += ["--seed", str(args.seed), *_BOUNDED, *args.options]
        subprocess.run(command, check=True, cwd=ROOT)
    limits = fit_thresholds(args.output, work, args.price, args.questions)
    print(f"{args.output}: refuses at {limits} ({(time.monotonic() - started) / 60:.0f} minutes)")


if __name__ == "__main__":
    main()
