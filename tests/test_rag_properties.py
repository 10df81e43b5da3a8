"""What files say of themselves (front matter, document properties, <meta>) narrows a search as what sites say does."""

from __future__ import annotations

import datetime
import io
from collections.abc import Callable
from pathlib import Path

import docx
import openpyxl
import pytest
from pptx import Presentation
from reportlab.pdfgen.canvas import Canvas

from rag.document import Meta
from rag.index.store import open_generation
from rag.index.update import add_documents
from rag.sources.files import read_bytes, read_files
from rag.sources.properties import iso_date, told_meta
from rag.sync.look import seen
from slm.joints import Filters
from tests.office_files import saved
from tests.tiny_rag import PairEmbedder, own_home

__all__ = ["own_home"]  # a fixture

_DAY = datetime.datetime(2024, 5, 1, 9, 30)


def word() -> bytes:
    file = docx.Document()
    file.add_paragraph("Rooms are booked at the desk.")
    file.core_properties.keywords, file.core_properties.author = "rooms; desk", "Aiko Mori"
    file.core_properties.modified = _DAY
    return saved(file)


def slides() -> bytes:
    deck = Presentation()
    deck.slides.add_slide(deck.slide_layouts[0]).shapes.title.text = "Plan"
    deck.core_properties.keywords, deck.core_properties.author = "rooms, desk", "Aiko Mori"
    deck.core_properties.modified = _DAY
    return saved(deck)


def workbook() -> bytes:
    book, out = openpyxl.Workbook(), io.BytesIO()
    book.active.append(["Room", "Fee"])
    book.properties.keywords, book.properties.creator = "rooms、desk", "Aiko Mori"
    book.save(out)
    return out.getvalue()


def pdf() -> bytes:
    out = io.BytesIO()
    canvas = Canvas(out)
    canvas.setKeywords(["rooms", "desk"])
    canvas.setAuthor("Aiko Mori")
    canvas.drawString(72, 700, "Rooms are booked at the desk.")
    canvas.save()
    return out.getvalue()


def html() -> bytes:
    return (b'<html><head><meta name="keywords" content="rooms, desk"><meta name="author" content="Aiko Mori">'
            b'<meta property="article:modified_time" content="2024-05-01T09:30:00Z"></head><body><p>Text.')  # fmt: skip


def markdown() -> bytes:
    return b"---\ntags: [rooms, desk]\nauthor: Aiko Mori\nupdated: 2024-05-01 09:30:00\n---\nText."


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.docx", word), ("a.pptx", slides), ("a.xlsx", workbook), ("a.pdf", pdf), ("a.html", html),
        ("a.md", markdown),
    ],
)  # fmt: skip
def test_every_kind_of_file_gives_its_labels_its_author_and_its_date(name: str, make: Callable[[], bytes]) -> None:
    meta = read_bytes(make(), name).document.meta
    assert (meta.labels, meta.author) == (("desk", "rooms"), "Aiko Mori")
    today = str(datetime.datetime.now(tz=datetime.timezone.utc).year)
    assert meta.modified[:4] == (today if name in ("a.xlsx", "a.pdf") else "2024")
    if name not in ("a.xlsx", "a.pdf"):
        assert meta.modified[:16].replace(" ", "T") == "2024-05-01T09:30"


@pytest.mark.parametrize(
    ("said", "date"),
    [
        ("2024-05-01", "2024-05-01"), ("2024/5/1", "2024-05-01"), ("2024年5月1日", "2024-05-01"),
        ("2024.05.01", "2024-05-01"), ("D:20240501093000+09'00'", "2024-05-01T09:30:00+09:00"),
        ("D:20240501", "2024-05-01"), ("Wed, 01 May 2024 09:30:00 +0900", "2024-05-01T09:30:00+09:00"),
        ("2024-05-01 09:30:00 +0900", "2024-05-01 09:30:00+0900"), (datetime.date(2024, 5, 1), "2024-05-01"),
        ("2024-13-41", ""), ("D:20249999", ""), ("yesterday", ""), ("", ""), (20240501, ""), (None, ""),
        ("12024-05-01", ""), ("2024-05-011", ""),
    ],
)  # fmt: skip
def test_dates_are_read_in_the_forms_that_people_and_programs_write(said: object, date: str) -> None:
    assert iso_date(said) == date


def test_what_a_program_put_down_for_an_author_is_nobody() -> None:
    for name in ("python-docx", "openpyxl", "Windows User", "Unknown", "anonymous", "(unspecified)", ""):
        assert told_meta({"author": name}) == Meta()
    assert told_meta({"authors": [{"name": "Aiko"}, "Ben", 7]}).author == "Aiko, Ben"
    assert told_meta({"tags": {"a": 1}, "date": [1], "author": 5}) == Meta()
    assert told_meta({"タグ": "規程、旅費", "更新日": "2024年5月1日"}) == Meta(
        labels=("旅費", "規程"), modified="2024-05-01"
    )


def test_files_are_found_by_tag_and_date_and_still_move_as_files(tmp_path: Path) -> None:
    folder, embedder = tmp_path / "docs", PairEmbedder()
    folder.mkdir()
    for name, tag, day in (("old", "travel", "2021-02-03"), ("new", "rooms", "2024-05-01")):
        (folder / f"{name}.md").write_text(f"---\ntags: {tag}\nupdated: {day}\n---\n# {name}\n\nText of {name}.\n")
    (folder / "plain.md").write_text("# plain\n\nText without a date.\n")

    def add(path: Path) -> None:
        reading = read_files([path])
        add_documents(tmp_path / "i", reading.documents, embedder, seen=seen([path], reading))

    def found(filters: Filters) -> list[str]:
        index = open_generation(tmp_path / "i")
        allowed = index.facets.allowed(filters)
        assert allowed is not None
        return sorted({chunk.title for chunk, through in zip(index.chunks, allowed, strict=True) if through})

    add(folder)
    assert found(Filters(labels=("Rooms",))) == found(Filters(since="2022-01-01")) == ["new"]
    assert found(Filters(until="2022-01-01")) == ["old"]
    embedder.embedded.clear()
    moved = tmp_path / "moved"
    folder.rename(moved)
    add(moved)
    documents = open_generation(tmp_path / "i").documents
    assert sorted(documents) == [f"{moved}/{name}.md" for name in ("new", "old", "plain")]
    assert embedder.embedded == []
