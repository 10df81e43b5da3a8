"""A version has one number wherever it stands, and its notes are what CHANGELOG says of it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from scripts.release_notes import notes_of
from slm import __version__
from slm.errors import UnknownNameError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
LOG = """# Changelog

## 0.3.0 (unreleased)

## 0.2.0 - 2026-02-01
- 二つ目

### Fixed
- b

## [0.1.0] - 2026-01-01
- c
"""


def test_package_metadata_program_and_changelog_name_one_version() -> None:
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert first is not None and metadata["project"]["version"] == __version__ == first[1]


def test_the_notes_of_this_version_are_there() -> None:
    assert notes_of((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), __version__).startswith("The whole road")


@pytest.mark.parametrize(
    ("version", "notes"), [("0.2.0", "- 二つ目\n\n### Fixed\n- b\n"), ("0.1.0", "- c\n"), ("0.3.0", "\n")]
)
def test_the_notes_of_a_version_end_where_the_next_one_begins(version: str, notes: str) -> None:
    assert notes_of(LOG, version) == notes


def test_a_version_that_was_never_made_is_named_with_those_that_were() -> None:
    with pytest.raises(UnknownNameError, match=r"'0\.2'.*0\.1\.0.*0\.2\.0.*0\.3\.0"):
        notes_of(LOG, "0.2")
