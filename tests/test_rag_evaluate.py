"""Measuring retrieval on one's own pages: figures by leg, misses, the picture, and a first questions file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rag.cli.figures import miss_rows, retrieval_rows
from rag.cli.rag import rag
from rag.document import Document, Section
from rag.evaluate.headings import AskedHeading, questions_of
from rag.evaluate.picture import draw_recall, require_picture
from rag.evaluate.retrieval import evaluate
from rag.index.chunk import Chunk, context_line
from rag.index.names import index_path
from rag.index.retrieve import LEGS
from rag.index.store import Generation, open_generation
from rag.index.update import add_documents
from rag.questions import Question, read_questions
from slm.errors import InputError, MissingExtraError
from tests.path_joints import PathJoints
from tests.tiny_rag import PairEmbedder, handbook, own_home

__all__ = ["handbook", "own_home"]  # fixtures

FRUIT = ("apples", "pears", "plums", "figs", "grapes", "dates", "limes", "melons")


def run(*args: str) -> Result:
    return CliRunner().invoke(rag, list(args), obj=PathJoints())


@pytest.fixture
def orchard(tmp_path: Path) -> Generation:
    """A page a fruit, a copy of one of them, and a page in Japanese."""
    pages = [Document(f.title(), f"{f}.md", "en", (Section(("Harvest",), f"The {f} are picked."),)) for f in FRUIT]
    text = "Apples are picked by hand in September, sorted in the barn and sent to the market on the next morning."
    copies = [Document("Apples", source, "en", (Section(("Market",), text),)) for source in ("new/m.md", "old/m.md")]
    japanese = Document("りんご", "ja.md", "ja", (Section(("収穫",), "りんごは九月に収穫します。"),))
    add_documents(tmp_path / "i", [*pages, *copies, japanese], PairEmbedder(dimension=256))
    return open_generation(tmp_path / "i")


def asked(question: str, *relevant: str, lang: str = "en") -> Question:
    return Question(question, lang, relevant, bool(relevant))


def test_every_leg_is_measured_beside_the_chosen_one_by_language(orchard: Generation) -> None:
    questions = [
        asked("When are the figs picked?", "figs.md"), asked("りんごの収穫", "ja.md", lang="ja"), asked("Who is it?"),
    ]  # fmt: skip
    result = evaluate(orchard, PairEmbedder(dimension=256), questions, beside=LEGS)
    assert list(result["legs"]) == ["fused", "dense", "lexical"] and result["unanswerable"] == 1
    assert {name: result[name] for name in ("by_language", "overall")} == result["legs"]["fused"]
    assert set(result["by_language"]) == {"en", "ja"} and result["overall"]["n"] == 2
    assert result["overall"]["recall_by_k"] == [1.0] * 10 and result["misses"] == []
    alone = evaluate(orchard, PairEmbedder(dimension=256), questions, "lexical")
    assert list(alone["legs"]) == ["lexical"] and alone["overall"] == result["legs"]["lexical"]["overall"]


def test_recall_by_k_is_the_share_found_among_the_first_k(orchard: Generation) -> None:
    questions = [asked("The pears are picked.", "pears.md"), asked("The pears are picked.", "melons.md")]
    figures = evaluate(orchard, PairEmbedder(dimension=256), questions)["overall"]
    rank = 1 + figures["recall_by_k"].index(1.0)
    assert rank > 1 and figures["recall_by_k"] == [0.5] * (rank - 1) + [1.0] * (11 - rank)
    for k in (1, 3, 5, 10):
        assert figures[f"recall_at_{k}"] == figures["recall_by_k"][k - 1]


def test_a_question_is_embedded_once_for_all_legs(orchard: Generation) -> None:
    class Counting(PairEmbedder):
        count = 0

        def queries(self, texts):  # type: ignore[no-untyped-def]
            self.count += sum(text in ("figs", "plums") for text in texts)
            return super().queries(texts)

    embedder = Counting(dimension=256)
    evaluate(orchard, embedder, [asked("figs", "figs.md"), asked("plums", "plums.md")], beside=LEGS)
    assert embedder.count == 2


def test_a_page_that_stands_behind_its_copy_is_found_with_it(orchard: Generation) -> None:
    text = "Apples are picked by hand in September and sorted in the barn"
    for source in ("new/m.md", "old/m.md"):
        result = evaluate(orchard, PairEmbedder(dimension=256), [asked(text, source)], beside=LEGS)
        assert all(part["overall"]["recall_at_1"] == 1 for part in result["legs"].values()), source


def test_a_miss_names_what_stood_in_its_place(orchard: Generation) -> None:
    questions = [asked("The pears are picked.", "pears.md"), asked("The figs are picked.\n\x1b[31m", "ja.md")]
    result = evaluate(orchard, PairEmbedder(dimension=256), questions)
    (miss,) = result["misses"]
    assert (miss["lang"], miss["relevant"]) == ("en", ["ja.md"]) and (miss["rank"] is None or miss["rank"] > 5)
    assert len(miss["instead"]) == 3 and miss["instead"][0] == {"source": "figs.md", "place": "Figs > Harvest"}
    shown = list(miss_rows(result, 5))
    assert shown[0].strip().startswith("1 of 2 questions have no right document among the first five (fused)")
    assert "\x1b" not in "".join(shown) and any("1. Figs > Harvest (figs.md)" in row for row in shown)
    assert list(miss_rows(result, 0)) == []
    two = {**result, "misses": [miss, miss]}
    assert list(miss_rows(two, 1))[-1].strip() == "... and 1 more: --misses 2, or --json"


def test_the_table_has_a_row_a_leg_and_language(orchard: Generation) -> None:
    questions = [asked("When are the figs picked?", "figs.md"), asked("りんごの収穫", "ja.md", lang="ja")]
    rows = list(retrieval_rows(evaluate(orchard, PairEmbedder(dimension=256), questions, beside=LEGS)))
    assert len(rows) == 1 + 3 * 3 and "recall@10" in rows[0]
    assert rows[3].split() == ["fused", "overall", "2", "1.000", "1.000", "1.000", "1.000", "1.000"]


# The picture


def test_the_picture_is_png_or_svg_with_a_panel_a_language_and_a_curve_a_leg(
    orchard: Generation, tmp_path: Path
) -> None:
    questions = [asked("When are the figs picked?", "figs.md"), asked("りんごの収穫", "ja.md", lang="ja")]
    result = evaluate(orchard, PairEmbedder(dimension=256), questions, beside=LEGS)
    draw_recall(result, tmp_path / "r.png", "りんご")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    draw_recall(result, tmp_path / "r.SVG", "orchard")
    drawn = (tmp_path / "r.SVG").read_text(encoding="utf-8")
    for words in ("en, 1 questions", "ja, 1 questions", "overall, 2 questions", "fused (@5 1.00)", "lexical (@5 1.00)"):
        assert f"<!-- {words} -->" in drawn, words
    assert sorted(path.name for path in tmp_path.iterdir()) == ["i", "r.SVG", "r.png"]


def test_a_name_that_is_no_picture_s_and_a_missing_matplotlib_are_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"does not say what to draw.*\.pdf.*\.png or \.svg"):
        require_picture(tmp_path / "r.pdf")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="matplotlib"):
        require_picture(tmp_path / "r.png")


# A first questions file


def chunk(source: str, title: str, headings: str, text: str, lang: str = "en") -> Chunk:
    path = tuple(part for part in headings.split(" > ") if part)
    return Chunk(title, path, text, source, lang, 0, context_line(title, path))


def test_titles_and_headings_with_text_become_questions_with_their_pages() -> None:
    chunks = [
        chunk("a.md", "Paid leave", "", "Twenty days a year."),
        chunk("a.md", "Paid leave", "Carrying over unused days", "Up to five."),
        chunk("a.md", "Paid leave", "2.1 Length", "A day has eight hours."),
        chunk("a.md", "Paid leave", "Only a heading", "Only a heading"),
        chunk("b.md", "有給休暇", "休暇の繰り越しについて", "5日まで。", "ja"),
        chunk("b.md", "有給休暇", "申請", "前日まで。", "ja"),
    ]
    assert questions_of(chunks, 99) == [
        AskedHeading("Paid leave", "en", ("a.md",)),
        AskedHeading("休暇の繰り越しについて", "ja", ("b.md",)),
        AskedHeading("Carrying over unused days", "en", ("a.md",)),
        AskedHeading("有給休暇 申請", "ja", ("b.md",)),
        AskedHeading("Paid leave Length", "en", ("a.md",)),
    ]


def test_what_many_pages_have_is_left_out_and_what_a_few_have_names_them_all() -> None:
    many = [chunk(f"{n}.md", f"Page {n}", "How to contact us", "By mail.") for n in range(4)]
    few = [chunk(f"{n}.md", f"Page {n}", "how to  **Cancel** it", "Ask.") for n in (3, 1)]
    assert questions_of([*many, *few], 9) == [AskedHeading("how to Cancel it", "en", ("1.md", "3.md"))]
    same = [chunk(f"{n}.md", "Notes", "Overview", "Text.") for n in range(4)]
    assert questions_of(same, 9) == []


def test_a_few_questions_are_taken_from_all_documents_in_turns_and_from_all_of_each() -> None:
    chunks = [chunk(f"{d}.md", d, f"How to do number {d}{n}", "So.") for d in "abc" for n in range(8)]
    chosen = questions_of(chunks, 6)
    assert [one.question[-2:] for one in chosen] == ["a0", "b0", "c0", "a4", "b4", "c4"]
    assert len(questions_of(chunks, 99)) == 24


def test_questions_of_an_index_are_what_evaluate_reads(handbook: Path, tmp_path: Path) -> None:
    assert run("add", "handbook", str(handbook)).exit_code == 0
    file, picture = tmp_path / "q.jsonl", tmp_path / "r.png"
    made = run("questions", "handbook", "--out", str(file))
    assert made.exit_code == 0, made.output
    questions = read_questions(file)
    assert {question.question for question in questions} >= {
        "Paid leave",
        "Paid leave Carrying over",
        "有給休暇 繰り越し",
    }
    assert run("questions", "handbook").stdout == file.read_text(encoding="utf-8")
    again = run("questions", "handbook", "--out", str(file))
    assert isinstance(again.exception, InputError) and "there already" in str(again.exception)
    arguments = ["evaluate", "handbook", "--questions", str(file), "--plot", str(picture)]
    result = json.loads(run(*arguments, "--json").stdout)
    assert result["overall"]["n"] == len(questions) and result["overall"]["recall_at_5"] == 1
    assert picture.read_bytes().startswith(b"\x89PNG")
    missed = [{"question": "Where do guests sign in?", "lang": "en", "relevant": ["en/leave.md"]}]
    file.write_text(json.dumps(missed[0]))
    shown = run("evaluate", "handbook", "--questions", str(file), "--leg", "lexical").stdout
    assert "lexical   overall" in shown and "dense" not in shown and "Visitors" in shown
    assert "Visitors" not in run("evaluate", "handbook", "--questions", str(file), "--misses", "0").stdout


def test_an_index_without_headings_says_so(tmp_path: Path) -> None:
    add_documents(index_path("bare"), [Document("", "a.txt", "en", (Section((), "text"),))], PairEmbedder())
    failed = run("questions", "bare")
    assert isinstance(failed.exception, InputError) and "1 documents in 1 chunks" in str(failed.exception)
