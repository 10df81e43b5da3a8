"""Prints what CHANGELOG says of one version: the notes of its release. docs/releasing.md says when.

Run: python scripts/release_notes.py 0.1.0
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import click  # noqa: E402

from slm import __version__  # noqa: E402
from slm.errors import UnknownNameError  # noqa: E402
from slm.terminal.console import run  # noqa: E402

_HEADING = re.compile(r"^## +\[?([^\]\s]+)\]?.*\n", re.MULTILINE)  # "## 0.1.0 - 2026-01-31", "## [0.1.0]"


def notes_of(changelog: str, version: str) -> str:
    """The text under a version's heading, up to the next one. Raises UnknownNameError that lists the versions."""
    found = list(_HEADING.finditer(changelog))
    ends = [heading.start() for heading in found[1:]] + [len(changelog)]
    texts = {heading[1]: changelog[heading.end() : end] for heading, end in zip(found, ends, strict=True)}
    if version not in texts:
        raise UnknownNameError("version", version, texts, hint="CHANGELOG.md has a heading for each.")
    return texts[version].strip() + "\n"


@click.command()
@click.argument("version", default=__version__)
def main(version: str) -> None:
    """What CHANGELOG says of VERSION, by default the one that stands here.

    \b
    Example:
      python scripts/release_notes.py 0.1.0
    """
    click.echo(notes_of((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), version), nl=False)


if __name__ == "__main__":
    run(main)
