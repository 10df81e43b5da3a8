"""A page in another language is found by what it is about, however near each other a language's texts are put."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from rag.index.generation.centres import centres_of, summed
from rag.index.retrieve import nearest, search
from rag.index.store import open_generation
from rag.index.update import add_documents
from tests.tiny_rag import PairEmbedder, own_home, page

__all__ = ["own_home"]  # fixtures
SUBJECTS = ("parking", "lunch", "leave", "keys", "visitors", "mail", "travel", "badges")


class BiasedEmbedder(PairEmbedder):
    """Vectors that say the language louder than the subject, a word of SUBJECTS."""

    def __init__(self) -> None:
        super().__init__("biased", len(SUBJECTS) + 2)

    def queries(self, texts: Sequence[str]) -> Any:
        vectors = np.zeros((len(texts), len(SUBJECTS) + 2), dtype=np.float32)
        for row, text in enumerate(texts):
            vectors[row, int(not text.isascii())] = 1.5
            for number, subject in enumerate(SUBJECTS):
                vectors[row, 2 + number] = float(subject in text)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """The subjects' first half in English, the second in Japanese."""
    pages = [
        page(f"{subject}-{part}.md", f"All about {subject}, part {part}.")
        if n < 4 else page(f"{subject}-{part}.md", f"{subject} のすべて、その{part}。", lang="ja")
        for n, subject in enumerate(SUBJECTS) for part in range(10)
    ]  # fmt: skip
    add_documents(tmp_path / "i", pages, BiasedEmbedder())
    return tmp_path / "i"


@pytest.mark.parametrize("question", ["What about {}?", "{} について教えてください。"])
def test_every_subject_is_found_first_in_whatever_language_it_is_asked_for(mixed: Path, question: str) -> None:
    generation, embedder = open_generation(mixed), BiasedEmbedder()
    found = [search(generation, embedder, question.format(subject), 1, "dense")[0].row for subject in SUBJECTS]
    assert [generation.chunks[row].source for row in found] == [f"{subject}-0.md" for subject in SUBJECTS]
    # By nearness alone half of them are not: this is what the embedder says.
    vectors = embedder.queries([question.format(subject) for subject in SUBJECTS])
    plain = [generation.dense_top(vector, 1)[0][0] for vector in vectors]
    assert sum(a == b for a, b in zip(plain, found, strict=True)) == 4


def test_a_filter_holds_and_one_language_is_ranked_as_it_stands(mixed: Path, tmp_path: Path) -> None:
    generation = open_generation(mixed)
    vector = BiasedEmbedder().queries(["What about visitors?"])[0]
    allowed = np.asarray([chunk.lang == "en" for chunk in generation.chunks])
    assert all(allowed[row] for row, _ in nearest(generation, vector, 8, allowed))
    add_documents(tmp_path / "one", [page(f"{s}.md", f"All about {s}.") for s in SUBJECTS], BiasedEmbedder())
    one = open_generation(tmp_path / "one")
    assert nearest(one, vector, 8, None) == one.dense_top(vector, 8)


def test_centres_are_means_and_a_language_of_few_chunks_leans_on_all() -> None:
    vectors = np.asarray([[1.0, 0.0]] * 195 + [[0.0, 1.0]] * 5, dtype=np.float32)
    language_of = np.asarray([-1] + [0] * 194 + [1] * 5, dtype=np.int16)  # one that does not count any more
    centres = centres_of(("en", "ja"), [summed(vectors, ("en", "ja"), language_of)], 2)
    en, ja = centres.means
    assert en == pytest.approx([1.0, 0.0], abs=0.01)
    assert ja == pytest.approx([0.5 * 194 / 199, 0.5 + 0.5 * 5 / 199], abs=0.01)
    assert centres.nearness(np.asarray([0.0, 1.0], dtype=np.float32))[1] == pytest.approx(float(ja[1]))


class Watched(np.ndarray):
    """An array that tells which of its rows were taken."""

    taken: ClassVar[list[int]] = []

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        Watched.taken.append(len(found))
        return np.asarray(found)


@pytest.mark.parametrize("languages", [("en", "ja"), ("de", "en"), ("de", "en", "ja")])
def test_sums_that_are_known_are_brought_up_to_date_by_reading_what_changed(languages: tuple[str, ...]) -> None:
    chance = np.random.default_rng(4)
    vectors = chance.standard_normal((1000, 6)).astype(np.float32)
    first = chance.integers(-1, 2, 1000).astype(np.int16)
    before = summed(vectors, ("en", "ja"), first)
    number = {-1: -1, 0: languages.index("en"), 1: languages.index("ja") if "ja" in languages else -1}
    now = np.asarray([number[int(code)] for code in first], dtype=np.int16)
    now[[3, 400, 999]] = [-1, 0, 1]
    right = summed(vectors, languages, now)
    expected = [vectors[now == number].sum(axis=0) for number in range(len(languages))]
    assert np.allclose(right.sums, expected, atol=1e-3)
    assert right.counts.tolist() == [int((now == number).sum()) for number in range(len(languages))]
    Watched.taken.clear()
    found = summed(vectors.view(Watched), languages, now, before)
    assert np.allclose(found.sums, right.sums, atol=1e-3) and (found.counts == right.counts).all()
    assert sum(Watched.taken) <= 3 + (first == 1).sum() * ("ja" not in languages)


def test_an_edited_index_has_the_centres_of_one_that_is_opened_anew(mixed: Path) -> None:
    before = open_generation(mixed)
    for change in (page("keys-3.md", "Keys are at the desk."), page("mail-1.md", "郵便 は受付。", lang="ja")):
        add_documents(mixed, [change], BiasedEmbedder())
        after, anew = open_generation(mixed, before), open_generation(mixed)
        assert after.loaded[0] is before.loaded[0]
        assert after.centres.languages == anew.centres.languages == ("en", "ja")
        assert np.allclose(after.centres.means, anew.centres.means, atol=1e-6)
        assert not np.allclose(after.centres.means, before.centres.means, atol=1e-6)
        before = after
