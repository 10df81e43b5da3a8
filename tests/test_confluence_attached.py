"""Files that are attached to pages of an export: documents under their page, for whoever may see that."""

from __future__ import annotations

from pathlib import Path

import openpyxl
import pytest

from rag.document import Document
from rag.index.store import open_generation
from rag.index.update import add_documents
from rag.sources.confluence import xml_export
from rag.sources.files import Reading, read_files
from rag.sources.reader import ReadOptions, markdown_of
from rag.sync.look import seen
from tests.tiny_confluence import SPACE, entities, entity, html_index, html_page, page, zipped
from tests.tiny_rag import PairEmbedder, own_home

__all__ = ["own_home"]  # a fixture


def by_id(reading: Reading) -> dict[str, Document]:
    return {document.meta.id: document for document in reading.documents}


def file(number: str, on: str, title: str, **more: str) -> str:
    fields = {"contentStatus": "current", "version": "1", **more}
    return entity("Attachment", number, {"containerContent": ("Page", on)}, title=title, **fields)


OBJECTS = (
    page("1", "Home", "<p>Welcome.</p>"),
    page("2", "Leave", "<p>Twenty days.</p>", parent="1"),
    page("3", "Gym", "<p>Open.</p>", parent="1"),
    file("51", "2", "規程 2024.md", version="2", creationDate="2024-04-22 16:35:21.231"),
    file("50", "2", "規程 2024.md", originalVersion="51"),
    file("52", "3", "規程 2024.md"),
    file("53", "2", "old.md", contentStatus="deleted"),
    file("54", "2", "photo.png"),
    entity("Label", "l1", name="hr", namespace="global"),
    entity("Labelling", "m1", {"label": ("Label", "l1"), "content": ("Attachment", "51")}),
    entity("ContentPermissionSet", "s1", {"owningContent": ("Page", "2")}, type="View"),
    entity("ContentPermission", "p1", {"owningSet": ("ContentPermissionSet", "s1")}, groupName="staff"),
)
STORED = {
    "attachments/2/51/2": "# Rules\n\nThe gate opens at 6:15.\n", "attachments/2/51/1": "An old revision.",
    "attachments/3/52/1": "Towels are in the hall.", "attachments/2/53/1": "Deleted.", "attachments/2/54/1": "no text",
}  # fmt: skip


def test_files_in_an_xml_export_are_documents_with_what_is_known_of_them(tmp_path: Path) -> None:
    entities_file = entities(SPACE, *OBJECTS)
    zip_file = zipped(tmp_path / "e.zip", {"entities.xml": entities_file, **STORED})
    unpacked = tmp_path / "unpacked"
    for name, text in {"entities.xml": entities_file, **STORED}.items():
        (unpacked / name).parent.mkdir(parents=True, exist_ok=True)
        (unpacked / name).write_text(text)
    for path in (zip_file, unpacked):
        reading = read_files([path], wanted=ReadOptions(base_url="https://wiki.example/"))
        documents = by_id(reading)
        assert sorted(documents) == ["confluence:1", "confluence:2", "confluence:3", "confluence:att51",
                                     "confluence:att52"]  # fmt: skip
        rules = documents["confluence:att51"]
        assert (rules.title, rules.lang) == ("規程 2024.md", "en") and "6:15" in markdown_of(rules)
        assert (rules.meta.space, rules.meta.ancestors, rules.meta.labels) == ("HB", ("Home", "Leave"), ("hr",))
        assert (rules.meta.version, rules.meta.created) == (2, "2024-04-22T16:35:21.231")
        assert rules.meta.restrictions == (("group:staff",),)  # of its page
        assert rules.meta.url == ("https://wiki.example/pages/viewpage.action?pageId=2#%E8%A6%8F%E7%A8%8B%202024.md")
        assert documents["confluence:att52"].meta.ancestors == ("Home", "Gym")
        whole = "".join(map(markdown_of, reading.documents))
        assert "photo.png" in whole  # by its name, in its page
        assert not [word for word in ("An old revision", "Deleted", "no text", "old.md") if word in whole]
        assert reading.skipped == [] and reading.spaces == {"HB"}


def html_files(*names: tuple[str, str]) -> str:
    links = "".join(f'<a href="attachments/11/{stored}">{name}</a> (text)<br/>' for stored, name in names)
    return f'<div class="pageSection"><h2 id="attachments">添付ファイル:</h2><div class="greybox">{links}</div></div>'


def test_files_in_an_html_export_are_documents_too_and_its_index_is_nothing_that_was_missed(tmp_path: Path) -> None:
    listed = html_files(("5001.csv", "賃金 表.csv"), ("5002.png", "図.png"), ("5003.md", "gone.md"))
    pages = {
        "JA/index.html": html_index({"11.html": "就業規則"}, space="人事部", key="JA"),
        "JA/11.html": html_page("就業規則", "<p>始業は9時。</p>", files=listed, space="人事部").replace(
            "May 14, 2024", "5月 14, 2024"
        ),
        "JA/attachments/11/5001.csv": "名前,額\n山田,1234\n",
        "JA/attachments/11/5002.png": "no text",
    }
    for name, text in pages.items():
        (tmp_path / "u" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "u" / name).write_text(text)
    (tmp_path / "u" / "JA" / "attachments" / "11" / "thumb.txt").write_text("named by no page")
    zip_file = zipped(tmp_path / "h.zip", dict(pages))
    for path, inside in ((zip_file, ""), (tmp_path / "u" / "JA", "/11.html")):
        reading = read_files([path])
        documents = by_id(reading)
        assert sorted(documents) == ["confluence:11", "confluence:att5001"]
        wages = documents["confluence:att5001"]
        assert wages.source == f"{path}{inside}/att5001"
        assert (wages.title, wages.meta.space, wages.meta.ancestors) == ("賃金 表.csv", "JA", ("就業規則",))
        assert "| 山田 | 1234 |" in markdown_of(wages)
        assert documents["confluence:11"].meta.modified == "2024-05-14"
        assert [note.text for note in reading.notes] == ["attached files that are not in the export: gone.md"]
        assert reading.skipped == []
    # A page without its export is a page; files beside it are files.
    (tmp_path / "u" / "JA" / "index.html").unlink()
    reading = read_files([tmp_path / "u" / "JA"])
    assert sorted(document.title for document in reading.documents) == ["5001", "thumb", "就業規則"]


def test_files_that_are_not_in_the_export_are_counted_and_those_that_hold_nothing_are_blank(tmp_path: Path) -> None:
    stored = {"attachments/3/52/1": " \n"}
    reading = read_files([zipped(tmp_path / "e.zip", {"entities.xml": entities(SPACE, *OBJECTS), **stored})])
    assert [note.text for note in reading.notes] == ["1 attached files are not in the export: 規程 2024.md"]
    assert [(skipped.path.name, skipped.reason) for skipped in reading.skipped] == [
        ("att52", "it holds no visible text")
    ]


def test_what_is_there_and_cannot_be_read_keeps_its_text_and_everything_else_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add(name: str, leave: str, files: dict[str, str | bytes], *more: str) -> None:
        pages = (page("1", "Home", f"<p>{leave}</p>"), page("2", "Leave", "<p>Twenty.</p>"), *more)
        path = zipped(tmp_path / name, {"entities.xml": entities(SPACE, *pages), **files})
        reading = read_files([path], none_ok=True)
        add_documents(tmp_path / "i", reading.documents, PairEmbedder(), seen=seen([path], reading))

    def texts() -> str:
        return "\n".join(chunk.text for chunk in open_generation(tmp_path / "i").chunks)

    gone, kept = file("51", "2", "gone.md"), file("52", "2", "kept.xlsx")
    sheet = workbook(tmp_path / "kept.xlsx", "A desk costs 4711.")
    add("may.zip", "Long words.", {"attachments/2/51/1": "Opens at 6:15.", "attachments/2/52/1": sheet}, gone, kept)
    assert all(words in texts() for words in ("Long words.", "6:15", "4711"))
    monkeypatch.setattr(xml_export, "LARGEST_PAGE", 30)
    # The page is too large by now, and the sheet is damaged.
    add("june.zip", "More words than a page may have.", {"attachments/2/52/1": sheet[:500]}, kept)
    assert "Long words." in texts() and "4711" in texts()
    assert "6:15" not in texts()  # this is not there any more


def workbook(path: Path, text: str) -> bytes:
    book = openpyxl.Workbook()
    book.active["A1"] = text
    book.save(path)
    return path.read_bytes()


@pytest.mark.parametrize("name", ["../../../evil", "/etc/passwd", "..", "51/../../../evil"])
def test_an_id_that_leads_out_of_an_export_reads_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "evil").write_text("secret of the machine")
    folder = tmp_path / "a" / "b" / "export"
    (folder / "attachments" / "2").mkdir(parents=True)
    objects = (page("2", "Leave", "<p>x</p>"), file(name, "2", "a.md"))
    (folder / "entities.xml").write_text(entities(SPACE, *objects))
    reading = read_files([folder])
    assert [document.title for document in reading.documents] == ["Leave"]


def test_a_file_that_unpacks_to_far_more_than_it_is_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    bomb = "a" * 40_000_000
    stored = {"attachments/2/51/2": bomb, "attachments/3/52/1": "Towels."}
    reading = read_files([zipped(tmp_path / "e.zip", {"entities.xml": entities(SPACE, *OBJECTS), **stored})])
    (skipped,) = reading.skipped
    assert "規程 2024.md: it would unpack to 40000000 bytes" in skipped.reason
    assert "confluence:att52" in by_id(reading)
    assert reading.unread == {"confluence:att51"}
