"""Files and folders: one odd file never ends the reading of the others, and a name is one name in every spelling."""

from __future__ import annotations

import json
import os
import socket
import unicodedata
from pathlib import Path

import pytest
from click.testing import CliRunner

from rag.cli.rag import rag
from rag.questions import read_questions
from rag.sources.files import find_files, read_files
from slm.errors import DamagedFileError, InputError


def reasons(folder: Path) -> dict[str, str]:
    return {skipped.path.name: skipped.reason for skipped in read_files([folder]).skipped}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "docs"
    path.mkdir()
    (path / "good.md").write_text("# Good\n\nThe spare key is in drawer 6.", encoding="utf-8")
    return path


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def test_what_stands_in_a_large_files_place_is_not_indexed_as_the_document(tmp_path: Path) -> None:
    for name in ("guide.md", "rules.pdf", "plan.docx", "prices.csv"):
        (tmp_path / name).write_text(POINTER)
    (tmp_path / "annexed.html").write_text("../.git/annex/objects/Zk/9f/SHA256E-s120--ab.html/SHA256E-s120--ab.html")
    (tmp_path / "about.md").write_text(f"# Pointers\n\nA pointer looks so:\n\n{POINTER}")
    said = reasons(tmp_path)
    assert set(said) == {"guide.md", "rules.pdf", "plan.docx", "prices.csv", "annexed.html"}
    assert said["guide.md"] == "it is a Git LFS pointer, not the document; fetch it with: git lfs pull"
    assert set(said.values()) - {said["guide.md"]} == {
        "it is a git-annex pointer, not the document; fetch it with: git annex get"
    }


def test_what_is_no_file_or_has_a_name_that_is_not_utf8_is_skipped_with_its_reason(folder: Path) -> None:
    os.mkfifo(folder / "pipe.md")
    (folder / "lost.md").symlink_to("nowhere.md")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket.md"))
    with open(os.fsencode(folder) + b"/" + "所.txt".encode("cp932"), "wb") as file:  # noqa: PTH123
        file.write(b"text")
    assert reasons(folder) == {
        "pipe.md": "it is a pipe, not a file", "socket.md": "it is a socket, not a file",
        "lost.md": "it is a link to nothing", "\\udc8f\\udc8a.txt": "its name is not UTF-8; rename it",
    }  # fmt: skip
    result = CliRunner().invoke(rag, ["read", str(folder), "--json"])
    shown = json.loads(result.stdout)
    assert [document["title"] for document in shown["documents"]] == ["Good"] and len(shown["skipped"]) == 4
    assert "spare key" in shown["documents"][0]["text"] and set(shown["documents"][0]) >= {
        "id", "title", "url", "space", "labels", "ancestors", "text",
    }  # fmt: skip


def test_deep_strange_and_empty_files_do_not_end_the_reading_of_others(folder: Path) -> None:
    (folder / "deep.html").write_text("<div><b>" * 20_000 + "x")
    (folder / "page.html").write_text('<?xml version="1.0"?>\n<page><h1>Gate</h1><p>Closes at 22:10.</p></page>')
    (folder / "brackets.md").write_text("[" * 50_000)
    (folder / "yaml.md").write_text("---\na: " + "[" * 5000 + "\n---\nText")
    (folder / "frames.html").write_text("<frameset><frame></frameset>")
    (folder / "nul.txt").write_bytes(b"\0" * 100)
    reading = read_files([folder])
    assert {Path(d.source).name for d in reading.documents} == {
        "good.md", "deep.html", "page.html", "brackets.md", "yaml.md",
    }  # fmt: skip
    assert reasons(folder) == {"frames.html": "it holds no visible text", "nul.txt": "it is binary, not text"}


def test_a_file_that_vanishes_or_may_not_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gone.md", "private.md", "huge.md"):
        (folder / name).write_text("text")
    faults = {"gone.md": FileNotFoundError(2, "No such file or directory"), "huge.md": MemoryError(),
              "private.md": PermissionError(13, "Permission denied")}  # fmt: skip
    read_bytes = Path.read_bytes

    def reading(path: Path) -> bytes:  # chmod would not keep out root
        if path.name in faults:
            raise faults[path.name]
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", reading)
    assert reasons(folder) == {
        "gone.md": "No such file or directory", "private.md": "Permission denied",
        "huge.md": "it could not be read: MemoryError: ",
    }  # fmt: skip


def test_links_to_folders_are_followed_once_and_loops_end(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "fees.md").write_text("The fee is 30.")
    (folder / "a").symlink_to(tmp_path / "shared")
    (folder / "b").symlink_to(tmp_path / "shared")
    (folder / "up").symlink_to(folder)
    (tmp_path / "shared" / "back").symlink_to(folder)
    assert [path.name for path in find_files([folder])] == ["fees.md", "good.md"]


def test_a_linked_file_is_read_by_its_own_name_unless_it_is_found_itself(folder: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "docs" / "blobs"
    blobs.mkdir()
    (blobs / "3fa9c1").write_text("# Guide\n\nThe gate closes at 22:10.")
    (blobs / "77ab.txt").write_text("<p>The fee is <b>30</b>.</p>")
    (folder / "guide.md").symlink_to("blobs/3fa9c1")
    (folder / "fees.html").symlink_to(blobs / "77ab.txt")
    (folder / "latest").symlink_to("good.md")
    (folder / "same.md").symlink_to("good.md")
    assert [path.relative_to(folder).as_posix() for path in find_files([folder])] == [
        "guide.md", "blobs/77ab.txt", "good.md",
    ]  # fmt: skip
    files = [folder / name for name in ("guide.md", "fees.html", "latest")]
    reading = read_files(files)
    assert [Path(document.source).name for document in reading.documents] == ["guide.md", "fees.html", "good.md"]
    assert (
        "22:10" in reading.documents[0].sections[0].text and reading.documents[1].sections[0].text == "The fee is 30."
    )


def test_names_in_pieces_and_composed_are_one_name(tmp_path: Path) -> None:
    composed = "ガイド.md"
    in_pieces = unicodedata.normalize("NFD", composed)
    assert composed != in_pieces
    (tmp_path / in_pieces).write_text("印刷します。", encoding="utf-8")
    (document,) = read_files([tmp_path]).documents
    assert (Path(document.source).name, document.title) == (composed, "ガイド")
    (tmp_path / composed).write_text("別の文。", encoding="utf-8")
    reading = read_files([tmp_path])
    assert len(reading.documents) == 1 and "same name" in reading.skipped[0].reason


def test_text_in_pieces_is_composed_and_what_nobody_sees_is_dropped(folder: Path) -> None:
    (folder / "a.txt").write_text("カ\u3099イト\u3099 co\xadop\u200b 神\uf9d0\x0cnext", encoding="utf-8")
    texts = {Path(d.source).name: d.sections[0].text for d in read_files([folder]).documents}
    assert texts["a.txt"] == "ガイド coop 神\uf9d0\nnext"


def test_what_is_not_certain_is_said_by_file_name(folder: Path) -> None:
    (folder / "bad.md").write_bytes("会議室".encode() * 50 + b"\xff")
    (note,) = read_files([folder]).notes
    assert note.source.endswith("bad.md") and "U+FFFD" in note.text
    result = CliRunner().invoke(rag, ["read", str(folder / "bad.md")])
    assert "bad.md: it is read as UTF-8" in result.stderr and "会議室" in result.stdout


def test_read_of_nothing_says_why(folder: Path) -> None:
    (folder / "good.md").write_text(" ")
    result = CliRunner().invoke(rag, ["read", str(folder)])
    assert isinstance(result.exception, InputError) and "good.md: it is empty" in result.exception.found


@pytest.mark.parametrize("encoding", ["utf-8-sig", "cp932", "utf-16"])
def test_questions_are_read_in_any_encoding_and_may_hold_line_separators(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "q.jsonl"
    separator = "" if encoding == "cp932" else "\u2028"
    row = {"question": f"休暇は{separator}何日ですか", "lang": "ja", "relevant": ["a.md"]}
    path.write_bytes((json.dumps(row, ensure_ascii=False) + "\r\n").encode(encoding))
    assert read_questions(path)[0].question == row["question"]
    path.write_bytes(b"\0" * 99)
    with pytest.raises(DamagedFileError, match="binary"):
        read_questions(path)
