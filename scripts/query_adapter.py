"""Learns the linear query adapter of the packaged embedder: `make query-adapter` runs this (docs/evaluation.md).

pull -> an index for each training organisation of data/reading -> its questions, and its headings beside texts without
them -> a matrix that brings a question's vector nearer to the passages that answer it -> rag/index/embedders/learned.
The passages' vectors stay as they are. What the development organisations' questions gain is printed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from rag.answer.reader.examples import right_lines  # noqa: E402
from rag.index.chunk import Chunk  # noqa: E402
from rag.index.embed import DEFAULT_EMBEDDER, Embedder, Vectors, open_embedder  # noqa: E402
from rag.index.embedders.asked import LEARNED, centred  # noqa: E402
from rag.index.generation.arrays import Mask  # noqa: E402
from rag.index.store import open_generation  # noqa: E402
from rag.index.variants import comparable  # noqa: E402
from rag.questions import read_questions  # noqa: E402
from scripts.reader import READING, index_of  # noqa: E402
from slm.joints import Passage  # noqa: E402
from slm.terminal.console import note, progress  # noqa: E402


@dataclass(frozen=True)
class Group:
    """What is asked of an organisation, what it could be answered with, and what does.

    asked: (questions, dimension), without what questions share; passages: (chunks, dimension); right: (questions,
    chunks); japanese: (chunks,).
    """

    asked: Vectors
    passages: Vectors
    right: Mask
    japanese: Mask

    def in_one_language(self, japanese: bool) -> Group:
        """As if there were pages in one language only."""
        side = self.japanese == japanese
        return Group(self.asked, self.passages[side], self.right[:, side], self.japanese[side])

    def answered(self) -> Group:
        """The questions that a passage answers."""
        kept = self.right.any(axis=1)
        return Group(self.asked[kept], self.passages, self.right[kept], self.japanese)


@dataclass(frozen=True)
class Recipe:
    """Chosen on twelve of the training organisations, held out, and on titles of a manual (decision 92)."""

    epochs: int = 20
    rate: float = 1e-3
    temperature: float = 1 / 50
    decay: float = 3e-3  # of the squares of the matrix, so that it stays near nothing
    noise: float = 1.0  # beside a question's vector, as a share of its length
    headings: float = 0.3  # how much the headings count beside the questions
    one_language: float = 0.3  # how often there are pages in one language only
    others: int = 5  # organisations whose passages answer nothing of this one's
    seeds: int = 3  # the mean of so many matrices is kept
    share: float = 0.6  # and so much of it: all of it is best for questions, none for titles of technical manuals


def questions_of(organisation: Path, chunks: Sequence[Chunk], passages: Vectors, embedder: Embedder) -> Group:
    """The questions of an organisation that its pages answer, and all its chunks."""
    bare = [Passage(one.title, one.heading, one.text, one.source, 0.0) for one in chunks]
    asked = [one for one in read_questions(organisation / "questions.jsonl") if one.answerable]
    right = np.array([[bool(right_lines(one, passage)) for passage in bare] for one in asked])
    return Group(vectors_of([one.question for one in asked], embedder), passages, right, japanese_of(chunks)).answered()


def headings_of(chunks: Sequence[Chunk], embedder: Embedder) -> Group:
    """The headings and titles of an organisation's pages, and what stands below them, without them."""
    twin = twins(chunks)
    names = list(dict.fromkeys(name for one in chunks for name in (one.heading, one.title) if name))

    def below(name: str, one: Chunk) -> bool:
        page, heading = twin.get(name, ("", ""))
        return name in (one.heading, one.title) or (one.source == page and heading in ("", one.heading))

    right = np.array([[below(name, one) for one in chunks] for name in names])
    bodies = embedder.passages([one.text for one in chunks])
    return Group(vectors_of(names, embedder), bodies, right, japanese_of(chunks))


def twins(chunks: Sequence[Chunk]) -> dict[str, tuple[str, str]]:
    """The page and heading in the other language that a heading has; of a title the page, and "".

    Pages are written in pairs, en/NAME and ja/NAME. Only those with as many headings are taken for translations.
    """
    headings: dict[str, list[str]] = {}
    titles: dict[str, str] = {}
    for one in chunks:
        titles[one.source] = one.title
        below = headings.setdefault(one.source, [])
        if one.heading and one.heading not in below:
            below.append(one.heading)
    found: dict[str, tuple[str, str]] = {}
    for source, below in headings.items():
        folder, _, name = source.rpartition("/")
        other = f"{folder[:-2]}{'ja' if folder.endswith('en') else 'en'}/{name}"
        if other in headings and len(headings[other]) == len(below):
            found[titles[source]] = other, ""
            found.update((one, (other, two)) for one, two in zip(below, headings[other], strict=True))
    return found


def chunks_of(organisation: Path, work: Path, embedder: Embedder) -> tuple[list[Chunk], Vectors]:
    """The chunks of an organisation's index and their vectors, (chunks, dimension)."""
    generation = open_generation(index_of(organisation, work, embedder))
    return list(generation.chunks), generation.vectors(range(len(generation.chunks)))


def vectors_of(questions: Sequence[str], embedder: Embedder) -> Vectors:
    """Questions as they are searched, but for what is learned here."""
    texts = [comparable(one) for one in questions]
    return centred(embedder, texts, embedder.queries(texts))


def japanese_of(chunks: Sequence[Chunk]) -> Mask:
    return np.array([one.lang == "ja" for one in chunks])


def shares(scores: Vectors, kept: Mask) -> Vectors:
    """Softmax over each row's kept columns; 0 elsewhere."""
    masked = np.where(kept, scores, -np.inf)
    powers = np.exp(masked - masked.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)


def slope(asked: Vectors, right: Mask, passages: Vectors, matrix: Vectors, sharpness: float) -> tuple[Vectors, float]:
    """How the loss changes with the matrix and with the logarithm of the sharpness.

    The loss is the mean of -log P(a right passage | question), P a softmax over (q + q matrix) passage * sharpness.
    """
    scores = (asked + asked @ matrix) @ passages.T * sharpness
    change = (shares(scores, np.ones_like(right)) - shares(scores, right)) / len(asked)
    return asked.T @ (change @ passages) * sharpness, float((change * scores).sum())


class Adam:
    """Kingma and Ba, https://arxiv.org/abs/1412.6980, with their defaults."""

    def __init__(self, shape: tuple[int, ...]):
        self._mean, self._square, self._step = np.zeros(shape, np.float32), np.zeros(shape, np.float32), 0

    def step(self, slope: Any, rate: float) -> Any:
        """What is added to the parameters."""
        self._step += 1
        self._mean += 0.1 * (slope - self._mean)
        self._square += 0.001 * (slope * slope - self._square)
        mean, square = self._mean / (1 - 0.9**self._step), self._square / (1 - 0.999**self._step)
        return -rate * mean / (np.sqrt(square) + 1e-8)


def learn(questions: Sequence[Group], headings: Sequence[Group], recipe: Recipe, seed: int) -> Vectors:
    """The matrix, (dimension, dimension), that is added to each question times its vector."""
    draw = np.random.default_rng(seed)
    dimension = questions[0].asked.shape[1]
    matrix, sharpness = np.zeros((dimension, dimension), np.float32), np.log(1 / recipe.temperature)
    of_matrix, of_sharpness = Adam(matrix.shape), Adam(())

    def drawn(groups: Sequence[Group], number: int) -> tuple[Vectors, float]:
        group = groups[number]
        if draw.random() < recipe.one_language:
            group = group.in_one_language(bool(draw.integers(2))).answered()
        if not len(group.asked):
            return np.zeros_like(matrix), 0.0
        asked, length = group.asked, np.linalg.norm(group.asked, axis=1, keepdims=True)
        asked = asked + recipe.noise * length * draw.standard_normal(asked.shape, np.float32) / dimension**0.5
        others = [groups[one].passages for one in draw.integers(len(groups), size=recipe.others) if one != number]
        passages = np.concatenate([group.passages, *others])
        right = np.pad(group.right, ((0, 0), (0, len(passages) - len(group.passages))))
        return slope(asked, right, passages, matrix, float(np.exp(sharpness)))

    steps = recipe.epochs * len(questions)
    order = np.concatenate([draw.permutation(len(questions)) for _ in range(recipe.epochs)])
    for step, number in enumerate(order):
        rate = recipe.rate * (1 - step / steps)
        by_matrix, by_sharpness = drawn(questions, int(number))
        if headings:
            also, also_sharper = drawn(headings, int(draw.integers(len(headings))))
            by_matrix, by_sharpness = by_matrix + recipe.headings * also, by_sharpness + recipe.headings * also_sharper
        matrix += of_matrix.step(by_matrix + 2 * recipe.decay * matrix, rate)
        sharpness += of_sharpness.step(np.float32(by_sharpness), rate)
    return matrix


def found_first(groups: Sequence[Group], matrix: Vectors) -> tuple[float, float]:
    """The shares of questions that a right passage is nearest to, and among the nearest five."""
    best = []
    for group in groups:
        scores = (group.asked + group.asked @ matrix) @ group.passages.T
        best += list((scores > np.where(group.right, scores, -np.inf).max(axis=1, keepdims=True)).sum(axis=1))
    return float(np.mean(np.array(best) < 1)), float(np.mean(np.array(best) < 5))


def taught(work: Path, embedder: Embedder) -> Iterator[tuple[Group, Group]]:
    """The questions and the headings of each training organisation."""
    organisations = sorted((READING / "train").iterdir())
    with progress("vectors for train", total=len(organisations), unit="organisations") as done:
        for number, organisation in enumerate(organisations, 1):
            chunks, passages = chunks_of(organisation, work, embedder)
            yield questions_of(organisation, chunks, passages, embedder), headings_of(chunks, embedder)
            done(number)


def main() -> None:
    """The recipe from beginning to end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=LEARNED / f"{DEFAULT_EMBEDDER}.npy")
    args = parser.parse_args()
    started = time.monotonic()
    work = ROOT / "exports/reader"
    work.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "slm_cli", "pull", DEFAULT_EMBEDDER], check=True, cwd=ROOT)
    embedder, recipe = open_embedder(DEFAULT_EMBEDDER), Recipe()
    questions, headings = zip(*taught(work, embedder), strict=True)
    held = [
        questions_of(one, *chunks_of(one, work, embedder), embedder)
        for one in sorted((READING / "development").iterdir())
    ]
    learned = [learn(questions, headings, recipe, seed) for seed in range(recipe.seeds)]
    matrix = (recipe.share * np.mean(learned, axis=0)).astype(np.float16)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    np.save(args.output, matrix)
    for name, of in (("without", np.zeros_like(matrix)), ("with", matrix)):
        first, five = found_first(held, of.astype(np.float32))
        note(f"{name}: a right passage first {first:.3f}, among five {five:.3f}")
    print(f"{args.output}: {sum(len(one.asked) for one in questions)} questions ({time.monotonic() - started:.0f} s)")


if __name__ == "__main__":
    main()
