"""The site to try a sync with: its pages are what the files of a folder are."""

from __future__ import annotations

from pathlib import Path

from scripts.fake_confluence import read_folder
from tests.fake_confluence import FakeConfluence


def test_a_file_that_goes_while_the_folder_is_read_does_not_end_the_site(tmp_path: Path) -> None:
    site, known = FakeConfluence(cloud=False), dict[Path, tuple[str, float]]()
    for name in ("Canteen", "Gym"):
        (tmp_path / f"{name}.xhtml").write_text(f"<p>{name}.</p>")
    read_folder(site, tmp_path, known)
    assert [page.title for page in site.shown().values()] == ["Canteen", "Gym"]
    gym = tmp_path / "Gym.xhtml"
    gym.unlink()
    gym.symlink_to(tmp_path / "gone")  # it is listed, and is not there
    read_folder(site, tmp_path, known)
    assert [page.title for page in site.shown().values()] == ["Canteen"]
    gym.unlink()
    gym.write_text("<p>Back.</p>")
    read_folder(site, tmp_path, known)
    assert [page.body for page in site.shown().values()] == ["<p>Canteen.</p>", "<p>Back.</p>"]
