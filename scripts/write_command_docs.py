"""Writes docs/commands.md from the commands' own help, so that it cannot go stale (a test compares them).

Run: python scripts/write_command_docs.py
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import click  # noqa: E402

import slm_cli  # noqa: E402

PAGE = ROOT / "docs" / "commands.md"


def _sections(command: click.Command, path: str, parent: click.Context | None) -> list[str]:
    width = {"terminal_width": 100, "max_content_width": 100}
    context = click.Context(command, info_name=path.split()[-1], parent=parent, **{**command.context_settings, **width})
    sections = [f"## {path}\n\n```\n{command.get_help(context)}\n```\n"]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            sections += _sections(child, f"{path} {name}", context)
    return sections


def command_docs() -> str:
    """The text of docs/commands.md."""
    head = "# Commands\n\nWritten by `python scripts/write_command_docs.py` from the commands' own help.\n"
    return "\n".join([head, *_sections(slm_cli.cli, "slm", None)])


if __name__ == "__main__":
    PAGE.write_text(command_docs(), encoding="utf-8")
    print(PAGE.relative_to(ROOT))
