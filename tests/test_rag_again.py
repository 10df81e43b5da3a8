"""A folder that is added again: what is gone stops answering, what could not be read does not."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rag.cli.rag import rag
from rag.index.change.gone import Seen, confirm_removal, departed
from rag.index.names import index_path
from rag.index.store import open_generation
from rag.index.update import add_documents
from slm.errors import InputError, MissingFileError, UnknownNameError
from tests.path_joints import PathJoints
from tests.tiny_rag import PairEmbedder, own_home, page

__all__ = ["own_home"]  # a fixture

TEXTS = {"a.md": "The canteen closes at 13:40.", "b.md": "The gym code is 8812.", "sub/c.md": "Bikes stand behind."}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in TEXTS.items():
        file = tmp_path / "docs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"# {name}\n\n{text}\n")
    return tmp_path / "docs"


def run(*args: str) -> Result:
    return CliRunner().invoke(rag, list(args), obj=PathJoints())


def added(*paths: Path, options: tuple[str, ...] = ()) -> dict[str, Any]:
    result = run("add", "i", *map(str, paths), "--json", *options)
    assert result.exit_code == 0, result.exception or result.output
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def held() -> list[str]:
    return sorted("/".join(Path(source).parts[-2:]) for source in open_generation(index_path("i")).documents)


def test_a_deleted_file_stops_answering_and_the_run_says_so(folder: Path) -> None:
    added(folder)
    (folder / "b.md").unlink()
    again = run("add", "i", str(folder))
    assert "b.md: it is no longer there" in again.stderr and "1 removed" in again.stdout
    assert held() == ["docs/a.md", "sub/c.md"]
    assert "8812" not in run("search", "i", "gym code").stdout


def test_a_link_to_itself_is_named_and_the_rest_is_added(folder: Path) -> None:
    (folder / "loop.md").symlink_to("loop.md")
    (folder / "there").symlink_to("back")
    (folder / "back").symlink_to("there")
    first = run("add", "i", str(folder))
    assert first.exit_code == 0 and "loop.md: Too many levels" in first.stderr, first.exception
    assert held() == ["docs/a.md", "docs/b.md", "sub/c.md"]
    for given in ("loop.md", "loop.md/x.md"):
        assert isinstance(run("add", "i", str(folder / given)).exception, MissingFileError)
        assert isinstance(run("remove", "i", str(folder / given)).exception, UnknownNameError)
    assert added(folder)["unchanged"] == 3


def test_a_linked_file_has_one_name_however_it_is_found_and_is_removed_by_it(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "mine.md").symlink_to(folder / "a.md")
    assert added(tmp_path / "links")["added"] == 1 and held() == ["links/mine.md"]
    added(tmp_path / "links", folder)
    assert held() == ["docs/a.md", "docs/b.md", "sub/c.md"]
    (tmp_path / "links" / "plan.md").symlink_to(tmp_path / "3fa9c1")
    (tmp_path / "3fa9c1").write_text("The plan.")
    assert added(tmp_path / "links" / "plan.md")["added"] == 1
    assert added(tmp_path / "links" / "plan.md")["unchanged"] == 1
    assert run("remove", "i", str(tmp_path / "links" / "plan.md")).exit_code == 0 and "links/plan.md" not in held()


@pytest.mark.parametrize("text", ["", " \n", "<!-- nothing any more -->", "---\ntitle: x\n---\n"])
def test_an_emptied_file_stops_answering(folder: Path, text: str) -> None:
    added(folder)
    (folder / "b.md").write_text(text)
    report = added(folder)
    assert [Path(row["source"]).name for row in report["removed"]] == ["b.md"]
    assert held() == ["docs/a.md", "sub/c.md"]


def test_a_file_that_cannot_be_read_this_time_keeps_its_old_text_and_the_run_says_so(folder: Path) -> None:
    added(folder)
    (folder / "b.md").write_bytes(b"\0\1\2" * 50)
    again = run("add", "i", str(folder))
    assert "kept the old text of" in again.stderr and "binary" in again.stderr
    assert held() == ["docs/a.md", "docs/b.md", "sub/c.md"]
    assert "8812" in run("search", "i", "gym code").stdout


def test_a_moved_file_is_not_embedded_again_and_answers_from_its_new_place(folder: Path) -> None:
    added(folder)
    (folder / "b.md").rename(folder / "sub" / "gym.md")
    report = added(folder)
    assert (report["moved"], report["added"], report["removed"]) == (1, 0, [])
    assert held() == ["docs/a.md", "sub/c.md", "sub/gym.md"]
    assert "sub/gym.md" in run("search", "i", "gym code", "-k", "1").stdout


def test_a_folder_that_was_moved_and_added_from_there_answers_once(folder: Path, tmp_path: Path) -> None:
    added(folder)
    folder.rename(tmp_path / "papers")
    (tmp_path / "papers" / "new.md").write_text("# New\n\nOne more.")
    report = added(tmp_path / "papers")
    assert (report["moved"], report["added"], report["removed"]) == (3, 1, [])
    assert held() == ["papers/a.md", "papers/b.md", "papers/new.md", "sub/c.md"]
    assert run("search", "i", "gym code").stdout.count("8812") == 1


@pytest.mark.parametrize("changed", [["a.md"], ["a.md", "b.md", "sub/c.md"]])
def test_a_moved_folder_whose_texts_were_changed_as_well_answers_once(
    folder: Path, tmp_path: Path, changed: list[str]
) -> None:
    added(folder)
    folder.rename(tmp_path / "papers")
    for name in changed:
        path = tmp_path / "papers" / name
        path.write_text(path.read_text().replace("8812", "9954") + "\n\nChanged since.\n")
    report = added(tmp_path / "papers")
    assert (report["moved"], report["added"], report["replaced"]) == (3 - len(changed), 0, len(changed))
    assert held() == ["papers/a.md", "papers/b.md", "sub/c.md"]
    again = added(tmp_path / "papers")
    assert (again["moved"], again["replaced"], again["unchanged"]) == (0, 0, 3)


def test_a_single_file_that_was_renamed_and_changed_is_told_of_and_forgotten_as_the_note_says(folder: Path) -> None:
    added(folder / "b.md")
    (folder / "b.md").rename(folder / "gym.md")
    (folder / "gym.md").write_text("# Gym\n\nThe gym code is 9954.\n")
    again = run("add", "i", str(folder / "gym.md"))
    old = str(folder / "b.md")
    assert f"{old} is no longer there and goes on answering; to forget it: slm rag remove i {old}" in (
        again.stderr.replace("\n", "")
    )
    assert held() == ["docs/b.md", "docs/gym.md"]  # its text may be nowhere else
    added(folder / "a.md")
    (folder / "a.md").unlink()
    assert added(folder / "gym.md")["missing"] == [str(folder / "a.md"), old]
    assert "a.md and 1 more are no longer there" in run("add", "i", str(folder / "gym.md")).stderr.replace("\n", "")
    assert run("remove", "i", str(folder / "a.md"), old).exit_code == 0
    assert added(folder / "gym.md")["missing"] == [] and "8812" not in run("search", "i", "gym code").stdout


def test_files_of_other_folders_and_those_that_a_folder_has_lost_are_not_called_missing(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "other.md").write_text("Cats sleep in the attic.")
    added(folder, tmp_path / "other.md")
    (tmp_path / "other.md").unlink()
    (folder / "b.md").unlink()
    assert added(folder / "a.md")["missing"] == []  # b.md came by its folder, which may be added again
    assert added(folder)["missing"] == [] and "docs/b.md" not in held() and len(held()) == 3


def test_another_folder_with_files_of_the_same_names_takes_nobodys_place(folder: Path, tmp_path: Path) -> None:
    added(folder)
    other = Path(shutil.copytree(folder, tmp_path / "papers"))
    shutil.rmtree(folder)  # as a disk that is not there
    for path in other.rglob("*.md"):
        path.write_text(f"# Something else {path.stem}\n\nNothing of the sort.\n")
    assert added(other)["added"] == 3 and len(held()) == 6


def test_a_copy_of_a_folder_leaves_the_folder_in_the_index(folder: Path, tmp_path: Path) -> None:
    added(folder)
    shutil.copytree(folder, tmp_path / "papers")
    assert added(tmp_path / "papers")["moved"] == 0 and len(held()) == 6


def test_an_empty_folder_removes_nothing_until_it_is_confirmed(folder: Path) -> None:
    added(folder)
    shutil.rmtree(folder)
    folder.mkdir()
    refusal = run("add", "i", str(folder)).exception
    assert isinstance(refusal, InputError) and "3 of the 3" in refusal.what and "--yes" in refusal.hint
    assert len(held()) == 3
    assert len(added(folder, options=("--yes",))["removed"]) == 3 and held() == []


def test_a_path_that_is_not_there_names_what_the_index_still_holds_of_it(folder: Path) -> None:
    added(folder)
    for path, count in ((folder / "b.md", 1), (folder / "sub", 1), (folder, 3)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        missing = run("add", "i", str(path)).exception
        assert isinstance(missing, MissingFileError) and f"{count} documents" in missing.found
        assert f"slm rag remove i {path}" in missing.hint
    assert run("remove", "i", str(folder)).exit_code == 0 and held() == []


def test_other_folders_and_single_files_of_the_index_are_left_alone(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "d.md").write_text("Cats sleep in the attic.")
    added(folder, other)
    (other / "d.md").unlink()
    (folder / "b.md").unlink()
    added(folder / "sub")
    assert held() == ["docs/a.md", "docs/b.md", "other/d.md", "sub/c.md"]
    added(folder)
    assert held() == ["docs/a.md", "other/d.md", "sub/c.md"]


def test_a_file_that_came_by_two_folders_goes_with_either(folder: Path) -> None:
    added(folder, folder / "sub")
    (folder / "sub" / "c.md").unlink()
    (folder / "sub" / "e.md").write_text("Something new.")
    added(folder / "sub")
    assert held() == ["docs/a.md", "docs/b.md", "sub/e.md"]


def test_a_folder_that_is_a_link_to_another_place_now_answers_from_there_alone(folder: Path, tmp_path: Path) -> None:
    old, new, link = tmp_path / "v1", tmp_path / "v2", tmp_path / "current"
    shutil.copytree(folder, old)
    shutil.copytree(folder, new)
    (new / "b.md").unlink()
    link.symlink_to(old)
    added(link)
    link.unlink()
    link.symlink_to(new)
    added(link)
    assert held() == ["sub/c.md", "v2/a.md"]


def test_a_hidden_file_that_was_added_by_name_stays(folder: Path) -> None:
    (folder / ".notes.md").write_text("A note of my own.")
    added(folder, folder / ".notes.md")
    added(folder)
    assert "docs/.notes.md" in held()


def test_an_index_that_does_not_know_where_its_documents_came_from_loses_only_files_that_are_not_there() -> None:
    seen = Seen({"/d": ["/d"]}, {"/d/a.md": ["/d"]})
    documents: dict[str, dict[str, Any]] = {"/d/a.md": {}, "/d/b.md": {}, "/d/.c.md": {}, "/e/f.md": {}}
    left = departed(documents, seen, lambda source: source == "/d/.c.md")
    assert dict(left.gone) == {"/d/b.md": "it is no longer there"} and not left.kept


def test_nothing_is_left_below_a_folder_that_is_a_file_by_now() -> None:
    seen = Seen({"/d": ["/d"]}, {"/d/a.md": ["/d"]}, {"/d/k": "files of the kind 'k' are not read"})
    documents = {"/d/k/k.md": {"roots": ["/d"]}, "/d/a.md": {"roots": ["/d"]}}
    left = departed(documents, seen, lambda source: False, lambda place: place == "/d/k")
    assert (dict(left.gone), dict(left.kept)) == ({"/d/k/k.md": "it is no longer there"}, {})


def test_documents_below_a_folder_that_cannot_be_listed_keep_their_text() -> None:
    seen = Seen({"/d": ["/d"]}, {}, {"/d/private": "Permission denied"})
    documents: dict[str, dict[str, Any]] = {"/d/private/a.md": {"roots": ["/d"]}, "/d/privately.md": {"roots": ["/d"]}}
    left = departed(documents, seen, lambda source: False)
    assert dict(left.kept) == {"/d/private/a.md": "Permission denied"} and list(left.gone) == ["/d/privately.md"]


def test_most_of_many_documents_do_not_go_unasked_but_a_few_of_few_do() -> None:
    documents: dict[str, dict[str, Any]] = {f"/d/{n}.md": {"roots": ["/d"]} for n in range(40)}
    rest = {"/d/39.md": ["/d"]}
    gone = dict.fromkeys(list(documents)[:25], "")
    with pytest.raises(InputError, match="25 of the 40"):
        confirm_removal(documents, gone, [], Seen({"/d": ["/d"]}, rest))
    confirm_removal(documents, gone, list(gone)[:10], Seen({"/d": ["/d"]}, rest))
    confirm_removal(documents, dict(list(gone.items())[:19]), [], Seen({"/d": ["/d"]}, rest))
    for held, asked in ((24, True), (19, False)):  # a folder of 20 is many, and what goes of it may be fewer
        small = dict(list(documents.items())[:held])
        lost, left = dict.fromkeys(list(small)[5:], ""), {source: ["/d"] for source in list(small)[:5]}
        with pytest.raises(InputError, match="19 of the 24") if asked else nullcontext():
            confirm_removal(small, lost, [], Seen({"/d": ["/d"]}, left))


def test_an_unchanged_folder_writes_nothing(tmp_path: Path) -> None:
    seen = Seen({"/d": ["/d"]}, {"/d/a.md": ["/d"]})
    for _ in range(2):
        add_documents(tmp_path / "i", [page("/d/a.md", "apples")], PairEmbedder(), seen=seen)
    assert [p.name for p in (tmp_path / "i").glob("gen-*")] == ["gen-1"]
