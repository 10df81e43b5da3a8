"""`make release`: every step on tiny sizes, and what keeps a version from being released."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from convert.publish.checksums import check_sums
from scripts.release import ROOT, TINY, build_packages, faults, main
from scripts.release_notes import notes_of
from slm import __version__

PROJECT = 'name = "slm-cpu"\nversion = "0.3.0"\n'
LOG = "# Changelog\n\n## 0.3.0 - 2026-05-06\n- a\n\n## 0.2.0 - 2026-01-01\n- b\n"


@pytest.mark.parametrize(
    ("project", "log", "tag", "said"),
    [(PROJECT, LOG, True, []), (PROJECT, LOG.replace(" - 2026-05-06", " (unreleased)"), False, []),
     (PROJECT, LOG.replace(" - 2026-05-06", " (unreleased)"), True,
      ["CHANGELOG.md has no date behind 0.3.0: '## 0.3.0 - YYYY-MM-DD'"]),
     (PROJECT.replace("0.3.0", "0.2.9"), LOG, False, ["pyproject.toml says version 0.2.9, slm/__init__.py 0.3.0"]),
     ("", "", False, ["pyproject.toml says version nothing, slm/__init__.py 0.3.0",
                      "CHANGELOG.md begins with no version, not with 0.3.0"]),
     (PROJECT, LOG.replace("0.3.0", "0.4.0"), False, ["CHANGELOG.md begins with 0.4.0, not with 0.3.0"]),
     (PROJECT, LOG.replace("- a\n", ""), True, ["CHANGELOG.md says nothing of 0.3.0"])],
)  # fmt: skip
def test_what_keeps_a_version_from_being_released_is_named(project: str, log: str, tag: bool, said: list[str]) -> None:
    assert faults(project, log, "0.3.0", tag=tag) == said


@pytest.mark.parametrize(
    ("words", "said"),
    [([], "name the corpus and --licence"), (["corpus"], "name the corpus and --licence"),
     (["--dry-run", "--tag"], "makes no tag and no upload"), (["--dry-run", "--upload", "me"], "makes no tag"),
     (["corpus", "--dry-run"], "has a corpus of its own")],
)  # fmt: skip
def test_a_release_that_is_asked_for_by_halves_is_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_make_release_says_what_it_needs_before_it_does_anything() -> None:
    made = subprocess.run(["make", "-s", "-o", ".venv/installed", "release"], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode != 0 and "make release CORPUS=DIR LICENCE=ID" in made.stderr
    shown = subprocess.run(
        ["make", "-n", "-o", ".venv/installed", "release", "DRY_RUN=1"], cwd=ROOT, capture_output=True, text=True
    )
    assert ".venv/bin/python scripts/release.py --dry-run" in shown.stdout


def test_the_packages_hold_what_is_committed_and_no_other_file(tmp_path: Path) -> None:
    names = build_packages(tmp_path)
    assert names == [f"slm_cpu-{__version__}-py3-none-any.whl", f"slm_cpu-{__version__}.tar.gz"]
    inside = set(zipfile.ZipFile(tmp_path / names[0]).namelist())
    assert {"slm_cli.py", "slm/errors.py", "serve/server/web/index.html"} <= inside
    assert not [name for name in inside if name.startswith(("tests/", "data/", "scripts/"))]
    with tarfile.open(tmp_path / names[1]) as packed:
        assert f"slm_cpu-{__version__}/pyproject.toml" in packed.getnames()


def test_a_dry_run_makes_everything_that_a_release_has(tmp_path: Path) -> None:
    out, work = tmp_path / "out", tmp_path / "work"
    words = [sys.executable, "scripts/release.py", "--dry-run", "--out", str(out), "--work", str(work)]
    tags = subprocess.run(["git", "tag"], cwd=ROOT, capture_output=True, text=True).stdout
    home = {**os.environ, "SLM_HOME": str(tmp_path / "home")}
    done = subprocess.run(words, cwd=ROOT, env=home, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    base, chat = out / f"slm-{TINY.size}", out / f"slm-{TINY.size}-chat"
    assert {path.name for path in out.iterdir()} == {
        base.name, chat.name, "NOTES.md", "SHA256SUMS", f"slm_cpu-{__version__}-py3-none-any.whl",
        f"slm_cpu-{__version__}.tar.gz",
    }  # fmt: skip
    for folder in (out, base, chat):
        check_sums(folder)
    assert {path.name for path in (base / "adapters").iterdir()} == {"en", "en.gguf", "ja", "ja.gguf"}
    assert (base / f"{base.name}-q8_0.gguf").is_file() and (chat / f"{chat.name}-q8_0.gguf").is_file()
    card = (chat / "README.md").read_text(encoding="utf-8")
    asked = json.loads((work / "answers.json").read_text(encoding="utf-8"))["chat"]["models"][0]["overall"]
    assert f"| {asked['right']}/12 |" in card and "`instruct.jsonl`" in card
    assert "license: cc0-1.0\nlanguage: [en, ja]\n" in card
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert (out / "NOTES.md").read_text(encoding="utf-8") == notes_of(changelog, __version__)
    assert subprocess.run(["git", "tag"], cwd=ROOT, capture_output=True, text=True).stdout == tags
