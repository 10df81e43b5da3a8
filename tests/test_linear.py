"""Everything that reads text of strangers takes time in proportion to it, whatever the text is made of."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from rag.answer.cite import Citations
from rag.answer.marks import without_marks
from rag.answer.prompt import defused
from rag.answer.reader.lines import lines_of
from rag.document import Document, Section, is_table_rule, sections_of
from rag.index.chunk import chunk_document
from rag.index.lexical.pairs import terms_of
from rag.index.same.codes import names_in
from rag.index.same.once import plain
from rag.index.variants import comparable
from slm.text.language import detect, is_name_only
from slm.text.normal_form import nfkc
from slm.text.visible import one_line, visible
from tests.tiny_rag import passage

# Each is repeated: what regular expressions begin to read, and then have to give up.
JUNK = [
    *" \tx1_@-|#=[>!.\n`\\\x1b", "あ", "a@", "A1 ", "1あ", "| ", "|-", ":-", "-:|", "# ", "=\n", "- ", "1.", "``` ",
    "` `` ", "```\n", "~~~", "[1", "[1,", "[1]", " [1]", "【", "（", "「", "「『", "\x1b]", "\x1b[0", "\x1b[0 ", "。」",
    '."', ". ", "'a", "a'", "\n\n", "a\n", "e\u0301\u0323", "\u0301\u0323", "令和", "令和 ", "R6", "平成3", "http://",
    "ﾊﾟ", "々", "ー", "アー", "a1-", "1/", "1,000", "第三", "May 1 ", "2024-", "4月", "c+",
]  # fmt: skip


def chunked(text: str) -> None:
    chunk_document(Document("T", "s", "en", (Section(("H",), text),)), 240, len)


def chunked_under_it(text: str) -> None:
    chunk_document(Document("T", "s", "en", (Section((text,), "a"), Section((text, "b"), "b"))), 240, len)


def cited(text: str) -> None:
    citations = Citations([passage("alpha"), passage("beta")])
    citations.feed(text)
    citations.end()


READERS: list[Callable[[str], object]] = [
    chunked, chunked_under_it, cited, defused, visible, one_line, sections_of, lines_of, is_table_rule, terms_of,
    comparable, nfkc, names_in, plain, without_marks, detect, is_name_only,
]  # fmt: skip


def seconds(read: Callable[[str], object], text: str) -> float:
    """The shortest of three runs, in time of this process alone."""
    taken = []
    for _ in range(3):
        begun = time.process_time()
        read(text)
        taken.append(time.process_time() - begun)
    return min(taken)


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_four_times_the_text_takes_about_four_times_as_long(read: Callable[[str], object]) -> None:
    slow = {}
    for junk in JUNK:
        for ending in ("", "!x@あ"):
            short, long = (junk * (length // len(junk)) + ending for length in (2_000, 8_000))
            once, four_times = seconds(read, short), seconds(read, long)
            # Quadratic work takes sixteen times as long.
            if four_times > 9 * once + 0.02:
                slow[junk + ending] = (once, four_times)
    assert not slow


@pytest.mark.parametrize(
    "unit", ["word ", "x", "語", "語句。", "a. ", "a\n\n", "| a | b |\n", "line\n", "```\na\n```\n", " "]
)
@pytest.mark.parametrize("head", ["", "```\n", "| a | b |\n|---|---|\n"])
def test_chunking_measures_each_character_a_few_times_however_long_the_text(unit: str, head: str) -> None:
    measured: list[float] = []
    for length in (4_000, 32_000):
        text, seen = head + unit * (length // len(unit)) + "end", 0

        def measure(piece: str) -> int:
            nonlocal seen
            seen += len(piece)
            return len(piece)

        chunk_document(Document("T", "s", "en", (Section(("H",), text),)), 240, measure)
        measured.append(seen / len(text))
    assert max(measured) < 8


def test_a_text_whose_characters_cost_nothing_is_still_cut_and_not_measured_whole() -> None:
    longest = 0

    def blanks_are_free(piece: str) -> int:
        nonlocal longest
        longest = max(longest, len(piece))
        return len(piece.split())

    text = "word" + " " * 500_000 + "end"
    chunks = chunk_document(Document("", "s", "en", (Section((), text),)), 100, blanks_are_free)
    assert "".join(chunk.text for chunk in chunks).split() == ["word", "end"] and longest <= 1600


def test_normal_form_in_windows_is_the_normal_form() -> None:
    import unicodedata

    letters = "aé e\u0301 ガ カ\u3099 ｶﾞ ㍿ 각 \u1100\u1161\u11a8 ﷺ 神 x\u0323\u0301"
    for shift in range(40):
        text = "漢" * shift + letters * 200
        assert nfkc(text) == unicodedata.normalize("NFKC", text)
