"""The command `slm config`: what the user's defaults are, where each comes from, and a file to begin with.

What it shows can be saved as a configuration file. How a value is judged is slm/terminal/config.py's; it knows nothing
of particular commands.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from slm.artifacts import new_file
from slm.errors import InputError
from slm.paths import config_file, home
from slm.terminal.config import checked, tables_of_user, value_of_variable
from slm.terminal.console import complain, emit_json, note
from slm.text.address import without_passwords


@dataclass(frozen=True)
class Setting:
    """One option of a command ("": of all) as the command would take it now, and where that comes from.

    source: "environment" (where: the variable), "file" (where: its path) or "default" (where: ""). fault: why the
    value cannot be used, or "".
    """

    command: str
    option: str
    value: Any
    source: str
    where: str = ""
    fault: str = ""


@click.command("config", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("command", nargs=-1, metavar="[COMMAND]...")
@click.option("--all", "every", is_flag=True, help="Every option of every command, not only what you have set.")
@click.option("--init", is_flag=True, help="Write a configuration file with every option, all of them commented out.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def config(ctx: click.Context, command: tuple[str, ...], every: bool, init: bool, as_json: bool) -> None:
    """Show the defaults you have set, or all of a COMMAND, and where each comes from.

    The command line goes before SLM_* variables, they before the file, the file before the program's own defaults.
    Exit code 1: something in the file or the variables is wrong; it is named.

    \b
    Example:
      slm config --init
      slm config
      slm config train sft
    """
    root = ctx.find_root().command
    if not isinstance(root, click.Group):
        raise TypeError("slm config is a command of a group")
    if init:
        if command or every:
            raise click.UsageError("--init writes the whole file; it goes with no COMMAND and not with --all.")
        _write(root, as_json)
        return
    path = _known(ctx, root, command)
    tables = tables_of_user()
    defaults, faults = checked(tables, root)
    rows = [row for row in settings_of(root, defaults, os.environ) if _wanted(row, path, every)]
    faults += [f"{row.where}: {row.fault}" for row in rows if row.fault]
    if as_json:
        emit_json({**_places(), "settings": [asdict(row) for row in rows], "faults": faults})
    else:
        _show(rows)
        if not rows and not faults:
            note("nothing is set; slm config --all shows what could be")
    for fault in faults:
        complain(fault)
    if faults:
        ctx.exit(1)


def settings_of(root: click.Group, defaults: Mapping[str, Any], environment: Mapping[str, str]) -> Iterator[Setting]:
    """Every option that can have a default, group after group. defaults: as `checked` gives them."""
    yield from _of_command(root, (), defaults, environment)
    for path, command in commands_below(root):
        values: Any = defaults
        for name in path:
            values = values.get(name, {})
        yield from _of_command(command, path, values, environment)


def commands_below(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """(words of its name, command) of every command that is no group."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands_below(command, (*path, name))
        elif command is not None:
            yield (*path, name), command


def _of_command(
    command: click.Command, path: tuple[str, ...], values: Mapping[str, Any], environment: Mapping[str, str]
) -> Iterator[Setting]:
    words = " ".join(path)
    for parameter in parameters_of(command):
        name, key = parameter.name or "", key_of(parameter)
        variable = _variable(parameter, path, environment)
        if variable and isinstance(parameter, click.Option):
            fault, value = value_of_variable(parameter, environment[variable], command)
            yield Setting(words, key, _plain(value), "environment", variable, fault)
        elif name in values:
            yield Setting(words, key, _plain(values[name]), "file", str(config_file()))
        else:
            yield Setting(words, key, _plain(parameter.get_default(click.Context(command))), "default")


def parameters_of(command: click.Command) -> list[click.Parameter]:
    """The options and arguments that can have a default; --help and --version end the program instead."""
    return [parameter for parameter in command.params if not getattr(parameter, "is_eager", False)]


def key_of(parameter: click.Parameter) -> str:
    """What a configuration file calls it: the first long spelling without its dashes."""
    spelled = next((opt for opt in parameter.opts if opt.startswith("--")), parameter.opts[0])
    return spelled.lstrip("-").replace("_", "-")


def _variable(parameter: click.Parameter, path: tuple[str, ...], environment: Mapping[str, str]) -> str:
    """The variable that sets an option, as the user spelled it, or "". click reads the one of the parameter's name."""
    if not isinstance(parameter, click.Option):
        return ""
    names = [parameter.name or "", *(opt.lstrip("-") for opt in parameter.opts)]
    read, *spelled = ["_".join(["SLM", *path, name]).replace("-", "_").upper() for name in names]
    if not environment.get(read):
        return ""
    return next((other for other in spelled if environment.get(other) == environment[read]), read)


def _plain(value: Any) -> Any:
    """The value as JSON and TOML have it, without a database's password; None where there is none."""
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, str):
        return without_passwords(value)
    return value if isinstance(value, (bool, int, float)) else str(value) if isinstance(value, Path) else None


def _known(ctx: click.Context, group: click.Group, words: Iterable[str]) -> str:
    """The command's words, joined. Raises click.UsageError for a command that there is not."""
    command: click.Command = group
    context = ctx.find_root()
    found: list[str] = []
    for word in words:
        if not isinstance(command, click.Group):
            raise click.UsageError(f"'slm {' '.join(found)}' has no commands below it: '{word}'")
        name, child, _ = command.resolve_command(context, [word])
        if name is None or child is None:
            raise click.UsageError(f"no command '{word}'")
        found.append(name)
        command, context = child, click.Context(child, info_name=name, parent=context)
    return " ".join(found)


def _wanted(row: Setting, path: str, every: bool) -> bool:
    if path:
        return f"{row.command} ".startswith(f"{path} ")
    return every or row.source != "default"


def _places() -> dict[str, Any]:
    """Where things are kept, and whether a variable says so."""
    return {
        "home": str(home()), "home_source": "SLM_HOME" if os.environ.get("SLM_HOME") else "default",
        "file": str(config_file()), "file_source": "SLM_CONFIG" if os.environ.get("SLM_CONFIG") else "default",
        "file_exists": config_file().is_file(),
    }  # fmt: skip


def _show(rows: Iterable[Setting]) -> None:
    """The settings as a configuration file, each with where it comes from."""
    places = _places()
    state = "" if places["file_exists"] else "; not there: slm config --init writes it"
    click.echo(f"# models and indexes: {places['home']} ({places['home_source']})")
    click.echo(f"# configuration file: {places['file']} ({places['file_source']}{state})")
    heading = ""
    for row in rows:
        if row.command != heading:
            heading = row.command
            click.echo(f"\n[{heading.replace(' ', '.')}]")
        source = {"environment": f"environment variable {row.where}", "file": "configuration file"}
        click.echo(f"{_line(row.option, row.value)}  # {source.get(row.source, 'default')}")


def _line(key: str, value: Any) -> str:
    return f"#{key} =" if value is None else f"{key} = {toml(value)}"


def toml(value: Any) -> str:
    """A value of a configuration file as it is written there."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, (int, float)):
        return repr(value)
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def file_text(root: click.Group) -> str:
    """A configuration file that sets nothing: every option with its default and its help, commented out."""
    lines = [
        "# Defaults of the slm command. Take the '#' from a line to set it; it shows the program's own value.",
        "# SLM_* variables go before this file, the command line before both. What is set: slm config",
        *_keys_of(root),
    ]
    for path, command in commands_below(root):
        if command is config:
            continue  # it has its own ends: --init for each run would be of no use to anybody
        lines += ["", f"# {command.get_short_help_str(100)}", f"[{'.'.join(path)}]", *_keys_of(command)]
    return "\n".join(lines) + "\n"


def _keys_of(command: click.Command) -> Iterator[str]:
    context = click.Context(command)
    for parameter in parameters_of(command):
        value = _plain(parameter.get_default(context))
        line = f"#{_line(key_of(parameter), value).lstrip('#')}"
        about = " ".join((getattr(parameter, "help", "") or "").split())
        kind = "" if value is not None else _form(parameter)
        told = " ".join(part for part in (kind, about) if part)
        yield f"{line}  # {told}" if told else line


def _form(parameter: click.Parameter) -> str:
    """What a value looks like, as the help has it."""
    if parameter.metavar or isinstance(parameter, click.Argument):
        return parameter.metavar or (parameter.name or "").upper()
    if isinstance(parameter.type, click.Choice):
        return "|".join(map(str, parameter.type.choices))
    return parameter.type.name.upper()


def _write(root: click.Group, as_json: bool) -> None:
    path = config_file()
    if path.exists():
        raise InputError(
            f"there is a configuration file already: '{path}'",
            hint="What it sets: slm config. To begin anew, move it away first.",
        )
    with new_file(path) as file:
        file.write_text(file_text(root), encoding="utf-8")
    if as_json:
        emit_json({"path": str(path)})
    else:
        click.echo(path)
