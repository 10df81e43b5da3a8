"""Flags that people type before a command or behind it: -q, --debug and --json mean the same in both places.

`with_flags` gives them to a command and to all below it, hidden: the help of `slm` tells of them once. It knows nothing
of what a command reports; a command that reports nothing refuses --json instead of taking it without an effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
from click.core import ParameterSource

from slm.terminal.console import add_verbosity, note

_JSON, _COMPLAINTS = "slm.terminal.json", "slm.terminal.complaints"  # in the context's meta, which all contexts share
_ASKED, _DEFAULT = "asked", "default"


class _Flag(click.Option):
    """A flag of every command. Eager: it counts before anything else of its command is judged."""

    def __init__(self, spellings: Sequence[str], callback: Any, **more: Any) -> None:
        super().__init__(
            [*spellings], is_flag=True, hidden=True, is_eager=True, expose_value=False, allow_from_autoenv=False,
            callback=callback, **more,
        )  # fmt: skip


def with_flags(command: click.Command) -> click.Command:
    """The command, which takes the flags from now on, as do those of a group. A second call changes nothing."""
    if any(isinstance(parameter, _Flag) for parameter in command.params):
        return command
    group = isinstance(command, click.Group)
    reports = next((p for p in command.params if isinstance(p, click.Option) and "--json" in p.opts), None)
    if reports:
        reports.callback = _reporting
    else:
        command.params.append(_Flag(["--json"], _json_of_a_group if group else _no_json))
    command.params.append(_Flag(["-q", "--quiet"], _quiet_of_a_group if group else _quiet))
    command.params.append(_Flag(["--debug"], _debug))
    if isinstance(command, click.Group):
        for child in command.commands.values():
            with_flags(child)
    return command


def json_before(context: click.Context, *, asked: bool) -> None:
    """--json stood before the command. asked: by whoever typed it; otherwise it is a default, where there is JSON."""
    if context.meta.get(_JSON) != _ASKED:
        context.meta[_JSON] = _ASKED if asked else _DEFAULT


def json_is_asked(context: click.Context) -> bool:
    """Whether somebody typed --json, before the command or behind it; a default alone is no wish."""
    behind = context.get_parameter_source("as_json") is ParameterSource.COMMANDLINE
    return behind or context.meta.get(_JSON) == _ASKED


def complain_later(context: click.Context, complaints: Sequence[str]) -> None:
    """Warnings to be noted when it is known whether -q stands behind the command."""
    context.meta[_COMPLAINTS] = tuple(complaints)


def _debug(context: click.Context, _: click.Parameter, given: bool) -> None:
    add_verbosity(debug=given)


def _quiet_of_a_group(context: click.Context, _: click.Parameter, given: bool) -> None:
    add_verbosity(quiet=given)


def _quiet(context: click.Context, parameter: click.Parameter, given: bool) -> None:
    add_verbosity(quiet=given)
    for complaint in context.meta.pop(_COMPLAINTS, ()):
        note(f"warning: {complaint}")


def _json_of_a_group(context: click.Context, _: click.Parameter, given: bool) -> None:
    if given:
        json_before(context, asked=True)


def _reporting(context: click.Context, parameter: click.Parameter, given: bool) -> bool:
    """The value of a command's own --json; a default of its own goes before the one for all commands."""
    before = context.meta.get(_JSON)
    untold = context.get_parameter_source(parameter.name or "") is ParameterSource.DEFAULT
    return given or before == _ASKED or (before == _DEFAULT and untold)


def _no_json(context: click.Context, _: click.Parameter, given: bool) -> None:
    if (given or context.meta.get(_JSON) == _ASKED) and not context.resilient_parsing:
        raise click.UsageError(f"'{context.command_path}' runs until it is ended and reports no figures: no --json.")
