"""A text that stands in two places is shown once, what differs in one word is not folded, no page fills the list."""

from __future__ import annotations

from pathlib import Path

import pytest

from rag.document import Document, Section
from rag.index.retrieve import search
from rag.index.same.once import Shown, once_each, plain
from rag.index.store import open_generation
from rag.index.update import add_documents
from tests.tiny_rag import PairEmbedder, own_home

__all__ = ["own_home"]  # a fixture

LONG = "Travel costs are paid back when the receipts are handed in within thirty days of the journey, in one envelope."
LONG_JA = "出張費は、出張から30日以内に領収書を一つの封筒に入れて提出した場合に、翌月の給与とあわせて支払われます。" * 2


def folded(texts: list[str], headings: list[str] | None = None, count: int = 9, a_page: int = 9) -> list[list[int]]:
    """The rows that are shown, each with those it stands for."""
    headings = headings or ["Costs"] * len(texts)
    shown = once_each(range(len(texts)), lambda row: (headings[row], texts[row]), str, count, a_page)
    return [[one.row, *one.also] for one in shown]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (LONG, LONG), (LONG, LONG.upper()), (LONG, "**" + LONG.replace("receipts", "`receipts`") + "**"),
        (LONG, LONG.replace(" ", "\n")), (LONG, "- " + LONG), (LONG_JA, LONG_JA.replace("30", "３０")),
        (LONG_JA, LONG_JA[:30] + "\n" + LONG_JA[30:]), ("8 people.", "8 people."),
        ("| a | b |\n|---|---|\n| 1 | 2 |", "a b\n1 2"),
    ],
)  # fmt: skip
def test_the_same_text_is_shown_once_and_stands_for_the_other(one: str, other: str) -> None:
    assert folded([one, "something else", other]) == [[0, 2], [1]]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (LONG, LONG.replace("thirty", "forty")), (LONG, LONG.replace("are paid", "are not paid")),
        (LONG_JA, LONG_JA.replace("30日", "20日")), (LONG_JA, LONG_JA.replace("支払われます", "支払われません")),
        (LONG + " Up to 2", LONG + " Up to 20"), ("2" + LONG, "12" + LONG), (LONG, LONG + LONG_JA), ("3*5", "35"),
        ("1.5 days", "15 days"), ("-5 degrees", "5 degrees"), ("in C#", "in C"), ("8 people", "8 people, 9 chairs"),
    ],
)  # fmt: skip
def test_what_differs_in_a_word_or_a_number_is_shown_twice(one: str, other: str) -> None:
    assert folded([one, other]) == [[0], [1]]


def test_of_a_text_and_the_same_one_with_a_sentence_more_the_longer_is_shown_at_the_better_place() -> None:
    more = LONG + " Ask Ueda."
    assert folded([LONG, "else", more]) == [[2, 0], [1]]
    assert folded([more, "else", LONG]) == [[0, 2], [1]]
    assert folded([LONG, "else", "Note: " + LONG]) == [[2, 0], [1]]
    assert once_each([7, 5], lambda row: ("", LONG if row == 7 else more), str, 5, 3) == [Shown(5, 0, (7,))]


def test_a_short_text_says_the_same_only_under_the_same_heading() -> None:
    assert folded(["8 people"] * 3, ["Room A", "Room B", "room  A"]) == [[0, 2], [1]]
    assert folded([LONG] * 2, ["Room A", "Room B"]) == [[0, 1]]


def test_a_page_has_no_more_than_its_share_as_long_as_others_are_left() -> None:
    pages = "aaaaabbc"

    def rows(count: int, a_page: int) -> list[int]:
        texts = once_each(range(8), lambda row: ("", str(row)), lambda row: pages[row], count, a_page)
        return [shown.row for shown in texts]

    assert rows(5, 2) == [0, 1, 5, 6, 7]
    assert rows(7, 2) == [0, 1, 5, 6, 7, 2, 3]
    assert rows(8, 1) == [0, 5, 7, 1, 2, 3, 4, 6]
    assert rows(3, 3) == [0, 1, 2]


def test_a_search_counts_a_copy_once_and_names_where_else_it_stands(tmp_path: Path) -> None:
    embedder = PairEmbedder()
    section = Section(("Costs",), LONG)
    many = tuple(Section((f"Step {n}",), f"Receipts of journey number {n} go into envelope {n}.") for n in range(8))
    documents = [
        Document("Travel", "en/travel.md", "en", (section,)), Document("Travel", "old/travel.md", "en", (section,)),
        Document("Envelopes", "en/envelopes.md", "en", many),
        Document("Journeys", "en/journeys.md", "en", (Section((), "A journey is told to the office beforehand."),)),
        Document("Receipts", "en/receipts.md", "en", (Section((), "Receipts are kept for seven years."),)),
    ]  # fmt: skip
    add_documents(tmp_path / "i", documents, embedder)
    generation = open_generation(tmp_path / "i")
    for leg in ("dense", "lexical", "fused"):
        hits = search(generation, embedder, "travel costs, receipts and journeys in an envelope", 6, leg)
        sources = [generation.chunks[hit.row].source for hit in hits]
        assert sum(source.endswith("travel.md") for source in sources) == 1, leg
        assert sources.count("en/envelopes.md") <= 3 and len(hits) == 6, leg
        copies = next(hit for hit in hits if generation.chunks[hit.row].source.endswith("travel.md"))
        places = {generation.chunks[row].source for row in (copies.row, *copies.also)}
        assert places == {"en/travel.md", "old/travel.md"}


def test_markup_and_line_breaks_are_none_of_the_text() -> None:
    assert plain("# **Ａ**  b\n| c | `d` |\n|---|---|") == "a b c d"
    assert plain("有給\n休暇 は PDF で") == "有給休暇は pdf で"
