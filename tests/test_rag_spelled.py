"""Files whose names a disk spells in pieces (NFD), as macOS does: they are there, however they are asked for."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rag.cli.rag import rag
from rag.index.names import index_path
from rag.index.store import open_generation
from rag.sources.clean import clean
from slm.paths import on_disk
from tests.path_joints import PathJoints
from tests.tiny_rag import own_home

__all__ = ["own_home"]  # a fixture

FOLDER, FILE = "ガイド", "がくぶち.md"


def in_pieces(name: str) -> str:
    return unicodedata.normalize("NFD", name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A document in a folder, both named in pieces."""
    path = tmp_path / in_pieces(FOLDER) / in_pieces(FILE)
    path.parent.mkdir()
    path.write_text("# Frames\n\nThe frames hang on floor 3.\n")
    return path


def run(*args: str) -> Any:
    result = CliRunner().invoke(rag, [*args, "--json"], obj=PathJoints())
    assert result.exit_code == 0, result.exception or result.output
    return json.loads(result.stdout)


def held() -> list[str]:
    return [Path(source).name for source in open_generation(index_path("i")).documents]


def test_a_path_is_found_as_the_disk_spells_it(file: Path, tmp_path: Path) -> None:
    assert on_disk(tmp_path / FOLDER / FILE).samefile(file)
    for gone in (tmp_path / FOLDER / "other.md", tmp_path / "ない" / FILE, tmp_path / FILE):
        assert on_disk(gone).name == gone.name and not on_disk(gone).exists()
    assert on_disk(file) == file and on_disk("/") == Path("/")


def test_letters_in_pieces_are_whole_in_the_text_and_others_are_not_touched() -> None:
    whole = "한국어 회의실은 값이 é, が. ㄱㄴ ᄀᄀ ﾊﾟ"
    assert clean(in_pieces("한국어 회의실은 값이 é, が.") + " ㄱㄴ ᄀᄀ ﾊﾟ") == whole


def test_a_folder_and_a_file_named_in_pieces_stay_in_step(file: Path, tmp_path: Path) -> None:
    assert run("add", "i", str(tmp_path / FOLDER))["added"] == 1
    (report,) = run("sync", "i")["sources"]
    assert report["error"] is None and report["gone"] == 0 and report["same"] == 1 and held() == [FILE]
    assert run("add", "i", str(file))["unchanged"] == 1


def test_a_file_named_in_pieces_is_not_taken_for_one_that_is_gone(file: Path, tmp_path: Path) -> None:
    run("add", "i", str(file.parent / FILE))
    (file.parent / "copy.md").write_bytes(file.read_bytes())
    beside = run("add", "i", str(file.parent / "copy.md"))
    assert beside["missing"] == [] and beside["removed"] == [] and sorted(held()) == ["copy.md", FILE]
    run("sync", "i")
    assert sorted(held()) == ["copy.md", FILE]
    file.unlink()
    run("sync", "i")
    assert held() == ["copy.md"]
