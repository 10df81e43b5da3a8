"""An index over a space: a new export replaces its pages by their id, and pages that are gone stop answering."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from rag.index.store import open_generation
from rag.index.update import Change, add_documents
from rag.sources.files import read_files
from rag.sync.look import seen
from slm.errors import InputError
from tests.tiny_confluence import SPACE, entities, html_index, html_page, page, zipped
from tests.tiny_rag import PairEmbedder, own_home

__all__ = ["own_home"]  # a fixture


def add(tmp_path: Path, embedder: PairEmbedder, *paths: Path) -> Change:
    reading = read_files(paths, none_ok=True)
    return add_documents(tmp_path / "i", reading.documents, embedder, seen=seen(paths, reading))


def titles(tmp_path: Path) -> dict[str, str]:
    return {entry["title"]: source for source, entry in open_generation(tmp_path / "i").documents.items()}


def export(path: Path, **texts: str) -> Path:
    pages = (page(str(n), title, f"<p>{text}</p>") for n, (title, text) in enumerate(texts.items(), start=1))
    return zipped(path, {"entities.xml": entities(SPACE, *pages)})


def test_a_new_export_under_another_name_replaces_by_id_and_drops_what_is_gone(tmp_path: Path) -> None:
    embedder = PairEmbedder()
    add(tmp_path, embedder, export(tmp_path / "may.zip", Home="Welcome.", Gym="The code is 8812.", Bikes="Behind."))
    embedder.embedded.clear()
    new = zipped(tmp_path / "june.zip", {"entities.xml": entities(
        SPACE, page("1", "Home", "<p>Welcome.</p>"), page("3", "Bikes", "<p>In front.</p>"),
        page("4", "Tea", "<p>Hot.</p>"),
    )})  # fmt: skip
    change = add(tmp_path, embedder, new)
    assert (change.added, change.replaced) == (1, 2)
    assert list(change.gone.values()) == ["it is not in the new export of the space HB"]
    assert titles(tmp_path) == {title: f"{new}/{n}" for title, n in (("Home", 1), ("Bikes", 3), ("Tea", 4))}
    assert not [text for text in embedder.embedded if "Welcome" in text]  # what did not change is not embedded again
    assert "8812" not in " ".join(chunk.text for chunk in open_generation(tmp_path / "i").chunks)
    again = add(tmp_path, embedder, new)
    assert (again.added, again.replaced, again.unchanged, again.gone) == (0, 0, 3, {})


def test_the_same_file_written_anew_loses_its_pages_that_are_gone(tmp_path: Path) -> None:
    embedder, path = PairEmbedder(), tmp_path / "e.zip"
    add(tmp_path, embedder, export(path, Home="Welcome.", Gym="8812"))
    add(tmp_path, embedder, export(path, Home="Welcome."))
    assert list(titles(tmp_path)) == ["Home"]
    path.write_bytes(b"PK damaged")
    kept = add(tmp_path, embedder, path)
    assert list(titles(tmp_path)) == ["Home"] and "no zip archive" in next(iter(kept.kept.values()))


def test_an_export_of_a_part_of_a_space_removes_nothing_by_html_and_is_asked_about_by_xml(tmp_path: Path) -> None:
    embedder = PairEmbedder()
    names = {f"P{n}_{n}.html": f"P{n}" for n in range(1, 31)}
    pages = {f"HB/{file}": html_page(title, f"<p>Text {title}.</p>") for file, title in names.items()}
    add(tmp_path, embedder, zipped(tmp_path / "a.zip", {"HB/index.html": html_index(names), **pages}))
    some = dict(list(pages.items())[:3])
    assert not add(tmp_path, embedder, zipped(tmp_path / "b.zip", {"HB/index.html": html_index(names), **some})).gone
    with pytest.raises(InputError, match="27 of the 30 documents that came from the space HB"):
        add(tmp_path, embedder, export(tmp_path / "c.zip", P1="Text P1.", P2="x", P3="y"))
    assert len(titles(tmp_path)) == 30


def test_the_manifest_keeps_what_is_known_of_a_page(tmp_path: Path) -> None:
    add(tmp_path, PairEmbedder(), export(tmp_path / "e.zip", Home="Welcome."))
    (entry,) = open_generation(tmp_path / "i").documents.values()
    assert entry["meta"] == {"id": "confluence:1", "space": "HB", "version": 3}
    assert json.dumps(entry)


@pytest.mark.parametrize("named", [("a-may.zip", "b-june.zip"), ("z-may.zip", "b-june.zip")])
def test_of_two_exports_read_together_the_newer_says_which_pages_there_are(
    tmp_path: Path, named: tuple[str, str]
) -> None:
    embedder, (may, june) = PairEmbedder(), (tmp_path / name for name in named)
    add(tmp_path, embedder, export(may, Home="Welcome.", Gym="The code is 8812."))
    zipped(june, {"entities.xml": entities(SPACE, page("1", "Home", "<p>Hello.</p>", version="4"))})
    assert list(add(tmp_path, embedder, june).gone.values()) == ["it is not in the new export of the space HB"]
    for paths in ((may, june), (june, may), (tmp_path,)):  # as a sync reads them, over and over
        again = add(tmp_path, embedder, *paths)
        assert (again.added, dict(again.gone)) == (0, {})
        assert titles(tmp_path) == {"Home": f"{june}/1"}
    reading = read_files([may, june])
    assert [(note.source, "b-june.zip, has it no more" in note.text) for note in reading.notes] == [(f"{may}/2", True)]


def test_without_a_changed_page_the_time_of_the_export_says_which_is_newer(tmp_path: Path) -> None:
    may = export(tmp_path / "z.zip", Home="Welcome.", Gym="8812")
    june = export(tmp_path / "a.zip", Home="Welcome.")
    for newer, older, left in ((june, may, ["Home"]), (may, june, ["Gym", "Home"])):
        os.utime(older, (1_700_000_000, 1_700_000_000))
        os.utime(newer, (1_800_000_000, 1_800_000_000))
        assert sorted(document.title for document in read_files([may, june]).documents) == left


def test_exports_that_share_no_page_are_of_two_sites_and_both_stay(tmp_path: Path) -> None:
    one = export(tmp_path / "one.zip", Home="Welcome.")
    other = zipped(tmp_path / "two.zip", {"entities.xml": entities(SPACE, page("7", "Other", "<p>Hi.</p>"))})
    assert sorted(document.title for document in read_files([one, other]).documents) == ["Home", "Other"]
