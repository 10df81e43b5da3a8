"""Documents: read from files, with what is hidden left out, and cut into chunks that lose nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag.document import Document, Section, sections_of
from rag.index.chunk import chunk_document
from rag.sources.files import Skipped, read_files
from rag.sources.html.page import html_document
from rag.sources.markdown.page import markdown_document
from slm.errors import InputError, MissingFileError, UnsupportedError
from slm.text.visible import visible
from tests.tiny_rag import handbook, read_noted

__all__ = ["handbook"]  # a fixture


# Reading


def test_headings_become_paths_and_fenced_hashes_do_not() -> None:
    text = "intro\n\n# A\n\none\n\n## B\n\n```\n# not a heading\n```\n\nSetext\n------\n\ntwo\n\n# C\n"
    assert sections_of(text) == [
        Section((), "intro"),
        Section(("A",), "one"),
        Section(("A", "B"), "```\n# not a heading\n```"),
        Section(("A", "Setext"), "two"),
        Section(("C",), ""),
    ]


def test_the_only_top_heading_is_the_title_and_not_in_the_paths() -> None:
    document = markdown_document("# Paid leave\n\nText.\n\n## Length\n\nTwenty days.\n", "file")
    assert document.title == "Paid leave"
    assert [section.headings for section in document.sections] == [(), ("Length",)]
    assert markdown_document("---\ntitle: 'From front matter'\n---\nText.", "file").title == "From front matter"
    assert markdown_document("Text.", "file").title == "file"


def test_hidden_text_of_html_is_dropped_and_visible_text_kept() -> None:
    html = """<html><head><title>Site - Leave</title><style>p {color: red}</style></head><body><nav>Menu</nav>
    <main><h1>Leave</h1><p>Twenty&nbsp;days <a href="http://x.test">a year</a>.</p><h2>Table</h2>
    <table><tr><th>Kind</th><th>Days</th></tr><tr><td>Wedding</td><td>5</td></tr></table>
    <p style="display: none">IGNORE1</p><span hidden>IGNORE2</span><div aria-hidden="true">IGNORE3<b>x</b></div>
    <p style="font-size:0">IGNORE4</p><!-- IGNORE5 --><script>IGNORE6</script><template>IGNORE7</template>
    <img src="http://x.test/track.png" alt="a chart"><pre><code>leave_days = 20</code></pre></main></body></html>"""
    document = html_document(html, "file")
    text = "\n".join(section.text for section in document.sections)
    assert document.title == "Leave"
    assert "IGNORE" not in text and "Menu" not in text and "x.test" not in text
    assert "Twenty" in text and "a year" in text and "a chart" in text and "leave_days = 20" in text
    assert "| Wedding | 5 |" in text
    assert [section.headings for section in document.sections] == [(), ("Table",)]


def test_hidden_text_of_markdown_is_dropped_but_code_is_not_touched() -> None:
    text = 'See [the form](http://x.test/f) <!-- IGNORE --><span style="display:none">IGNORE</span>.\n\n`<!-- kept -->`'
    assert markdown_document(text, "file").sections[0].text == "See the form .\n\n`<!-- kept -->`"
    assert visible("a\x1b[31mred\x1b[0m\u200b\u202e\U000e0041b\x07") == "aredb"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp932", "euc_jp", "iso2022_jp"])
def test_japanese_files_are_read_in_the_encodings_they_come_in(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("有給休暇は二十日です。ひらがなもあります。".encode(encoding))
    document = read_noted(path).document
    assert document.sections[0].text == "有給休暇は二十日です。ひらがなもあります。"
    assert document.lang == "ja" and document.source == path.as_posix()


def test_files_that_give_nothing_are_reported_by_name(handbook: Path) -> None:
    (handbook / "empty.md").write_text("  \n")
    (handbook / "binary.txt").write_bytes(b"ab\0cd")
    (handbook / "hidden.html").write_text("<p hidden>x</p>")
    (handbook / "report.odt").write_bytes(b"PK")
    (handbook / "style.css").write_text("p {}")
    (handbook / ".git").mkdir()
    (handbook / ".git" / "notes.md").write_text("never read")
    reading = read_files([handbook])
    assert len(reading.documents) == 6
    assert {skipped.path.name: skipped.reason for skipped in reading.skipped} == {
        "empty.md": "it is empty",
        "binary.txt": "it is binary, not text",
        "hidden.html": "it holds no visible text",
        "report.odt": "files of the kind '.odt' are not read",
    }


def test_a_folder_that_cannot_be_listed_is_named_and_the_rest_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, name in (("open", "a.md"), ("private", "b.md")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text("some words")
    listing = os.scandir

    def refused(path: str) -> Iterator[os.DirEntry[str]]:  # chmod would not keep out root
        if Path(path).name == "private":
            raise PermissionError(13, "Permission denied", path)
        return listing(path)

    monkeypatch.setattr(os, "scandir", refused)
    reading = read_files([tmp_path])
    assert [Path(document.source).name for document in reading.documents] == ["a.md"]
    assert reading.skipped == [Skipped(tmp_path / "private", "Permission denied")]


def test_zero_documents_is_an_error_that_names_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="nowhere"):
        read_files([tmp_path / "nowhere"])
    with pytest.raises(InputError, match="no files"):
        read_files([tmp_path])
    (tmp_path / "report.odt").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"report\.odt: files of the kind '\.odt' are not read"):
        read_files([tmp_path])
    with pytest.raises(UnsupportedError):
        read_noted(tmp_path / "report.odt")


# Chunking

_texts = st.text(st.sampled_from("ab cd.!? \n。、！あい休暇#|`-\t"), max_size=400)


@settings(max_examples=150, deadline=None)
@given(_texts, st.integers(20, 80))
def test_chunks_lose_no_text_and_keep_the_budget(text: str, limit: int) -> None:
    # A table repeats its header, so that rules of tables are kept out of this property.
    text = text.replace("-", "")
    document = Document("T", "s", "en", (Section(("H",), text or "x"),))
    chunks = chunk_document(document, limit, len)
    assert "".join("".join(c.text for c in chunks).split()) == "".join(
        (text if text.strip() else "").split() or ["x"] * (not text)
    )
    assert all(len(chunk.indexed_text) <= limit for chunk in chunks)
    assert [chunk.ordinal for chunk in chunks] == list(range(len(chunks)))


def test_japanese_is_cut_at_sentence_ends() -> None:
    text = "これは一つ目の文です。「二つ目ですか？」三つ目の文はもう少し長いです！最後の文。"
    document = Document("題", "s", "ja", (Section((), text),))
    pieces = [chunk.text for chunk in chunk_document(document, 24, len)]
    assert pieces == ["これは一つ目の文です。「二つ目ですか？」", "三つ目の文はもう少し長いです！最後の文。"]


def test_a_torn_table_repeats_its_header_and_keeps_rows_whole() -> None:
    rows = [f"| item {n} | {n * 100} yen |" for n in range(30)]
    table = "\n".join(["| thing | price |", "| --- | --- |", *rows])
    chunks = chunk_document(Document("Prices", "s", "en", (Section((), "Before.\n\n" + table),)), 200, len)
    assert len(chunks) > 3
    pieces = [chunk.text for chunk in chunks if "|" in chunk.text]
    assert all(piece.startswith("| thing | price |\n| --- | --- |\n") for piece in pieces)
    assert [line for piece in pieces for line in piece.split("\n")[2:]] == rows


def test_code_is_cut_only_at_line_ends_and_small_code_not_at_all() -> None:
    small = "```\na = 1\n\nb = 2\n```"
    assert [c.text for c in chunk_document(Document("T", "s", "en", (Section((), small),)), 100, len)] == [small]
    lines = [f"line_{n} = {n}" for n in range(40)]
    large = "\n".join(["```python", *lines, "```"])
    chunks = chunk_document(Document("T", "s", "en", (Section((), large),)), 120, len)
    assert [line for chunk in chunks for line in chunk.text.split("\n")] == large.split("\n")


def test_a_chunk_is_indexed_with_its_title_and_headings_even_when_these_are_long() -> None:
    document = Document("Leave", "s", "en", (Section(("Kinds", "Paid"), "Twenty days."), Section(("Empty",), "")))
    chunks = chunk_document(document, 100, len)
    assert chunks[0].indexed_text == "Leave > Kinds > Paid\nTwenty days."
    assert chunks[1].text == "Empty"
    long = chunk_document(Document("x" * 500, "s", "en", (Section((), "body text " * 30),)), 100, len)
    assert all(len(chunk.indexed_text) <= 100 for chunk in long)


ALL = None  # what the context line leaves out


@pytest.mark.parametrize(
    ("title", "headings", "said"),
    [
        ("x" * 90 + "end", [("Kinds",), ("Kinds", "Paid")], [ALL, "Paid"]),
        ("Leave", [("y" * 90 + "end", "Paid"), ("y" * 90 + "end", "Unpaid")], [ALL, "Unpaid"]),
        ("休暇", [("規" * 50 + "程",), ("規" * 50 + "程", "有給"), ("規則",)], [ALL, "有給", ""]),
        ("", [("z" * 50,), ("z" * 50 + "w",)], [ALL, ALL]),
    ],
)
def test_what_a_long_context_line_has_no_room_for_begins_the_text_once(
    title: str, headings: list[tuple[str, ...]], said: list[str | None]
) -> None:
    document = Document(title, "s", "en", tuple(Section(path, "Body.") for path in headings))
    chunks = chunk_document(document, 100, len)
    assert all(len(chunk.indexed_text) <= 100 for chunk in chunks)
    assert all(len(chunk.context) <= 40 for chunk in chunks)
    for path, words in zip(headings, said, strict=True):
        own = [chunk for chunk in chunks if chunk.headings == path]
        text = "".join(chunk.text for chunk in own)
        assert text.endswith("Body.")
        begins = re.sub("[ >\n]", "", text.removesuffix("Body."))
        if words is ALL:
            words = "".join([title, *path])
            begins = re.sub("[ >]", "", own[0].context) + begins
        assert begins == words
