"""Whether the user's configuration file and SLM_* variables can be used. It changes nothing."""

from __future__ import annotations

import os
import shlex

import click

from slm.doctor.check import Check
from slm.paths import config_file
from slm.terminal.config import checked, tables_of_user
from slm.terminal.settings import settings_of


def configuration_checks() -> list[Check]:
    """A line for the file, or one for each fault; nothing where nothing is set."""
    context = click.get_current_context(silent=True)
    root = context.find_root().command if context else None
    if not isinstance(root, click.Group):
        return []
    path = config_file()
    try:
        tables = tables_of_user()
    except click.UsageError as error:
        return [Check("configuration", False, error.message, f"{_editor()} {shlex.quote(str(path))}")]
    defaults, faults = checked(tables, root)
    faults = [f"in '{path}': {fault}" for fault in faults]
    faults += [f"{row.where}: {row.fault}" for row in settings_of(root, defaults, os.environ) if row.fault]
    if faults:
        return [Check("configuration", False, fault, "slm config shows what counts") for fault in faults]
    return [Check("configuration", True, str(path))] if path.exists() else []


def _editor() -> str:
    return os.environ.get("VISUAL") or os.environ.get("EDITOR") or "nano"
