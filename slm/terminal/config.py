"""Defaults of the user's configuration file and SLM_* variables, checked against the commands they are for.

A table is a command, [train.sft] one in a group; a key is an option as it is spelled on the command line, with hyphens
or underscores; ~ is the user's own folder. What no command knows is never dropped: all faults of the file are said at
once.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click

from slm.errors import DamagedFileError
from slm.paths import config_file
from slm.terminal.arguments import TEXT

# Read elsewhere, by their own names.
_OURS = frozenset(["SLM_HOME", "SLM_CONFIG", "SLM_LLAMA_LOG", "SLM_LLAMA_KERNELS", "SLM_CHROMIUM"])
_PREFIX = "SLM_"
_HOMES = 6  # tables that are named where an option has several


class Spelling(NamedTuple):
    """What a key names: a parameter, or the opposite of a flag (--no-pack)."""

    parameter: click.Parameter
    negates: bool = False


def read_config(path: Path, *, named: bool) -> dict[str, Any]:
    """The file's tables; {} without a file, unless the user named it. Raises click.UsageError."""
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        if named:
            raise click.UsageError(
                f"SLM_CONFIG names '{path}', and there is no such file; slm config --init writes it"
            ) from None
        return {}
    except OSError as error:
        raise click.UsageError(f"the configuration file '{path}' cannot be read: {error.strerror or error}") from error
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    from slm.text.encoding.decode import decode

    try:
        tables: dict[str, Any] = tomllib.loads(decode(raw).text)
        return tables
    except (tomllib.TOMLDecodeError, DamagedFileError, RecursionError) as error:
        raise click.UsageError(f"'{path}' is not valid TOML: {error}") from error


class Checked(NamedTuple):
    """The values of a file that can be used, as click's default_map, and what is wrong with the others."""

    defaults: dict[str, Any]
    faults: list[str]


def tables_of_user() -> dict[str, Any]:
    """The tables of the user's own file. Raises as `read_config`."""
    return read_config(config_file(), named=bool(os.environ.get("SLM_CONFIG")))


def checked(tables: Mapping[str, Any], root: click.Group) -> Checked:
    """The tables by the names of parameters, with one sentence for each fault."""
    faults: list[str] = []
    return Checked(_of_group(tables, root, "", faults), faults)


def defaults_of(tables: Mapping[str, Any], root: click.Group, path: Path) -> dict[str, Any]:
    """The tables as click's default_map: parameters by their names. Raises click.UsageError naming every fault."""
    defaults, faults = checked(tables, root)
    if faults:
        raise click.UsageError(f"in '{path}': " + "; ".join(faults))
    return defaults


def _of_group(table: Mapping[str, Any], group: click.Group, where: str, faults: list[str]) -> dict[str, Any]:
    context = click.Context(group)
    commands = group.list_commands(context)
    own = _of_command({k: v for k, v in table.items() if k not in commands}, group, where, faults)
    for name in commands:
        if name not in table:
            continue
        value, inner, command = table[name], f"{where}.{name}" if where else name, group.get_command(context, name)
        if command is None or not isinstance(value, dict):
            faults.append(f"'{inner}' is a command and has to be a table, [{inner}] (found: {_shown(value)})")
        elif isinstance(command, click.Group):
            own[name] = _of_group(value, command, inner, faults)
        else:
            own[name] = _of_command(value, command, inner, faults)
    return own


def _of_command(table: Mapping[str, Any], command: click.Command, where: str, faults: list[str]) -> dict[str, Any]:
    known = spellings(command)
    found: dict[str, Any] = {}
    for key, value in table.items():
        place = f"[{where}] {key}" if where else key
        spelling = known.get(key.replace("-", "_"))
        if spelling is None:
            faults.append(f"{place}: {_unknown(key, value, command, where)}")
            continue
        name = spelling.parameter.name or ""
        if name in found:
            faults.append(f"{place}: given twice, in two spellings")
            continue
        fault, found[name] = _value(spelling, _at_home(value, spelling.parameter), command)
        if fault:
            faults.append(f"{place}: {fault}")
            del found[name]
    return found


def _at_home(value: Any, parameter: click.Parameter) -> Any:
    """The value with the user's folder in the place of a ~, as a shell would have it; prose stays as it is."""
    if isinstance(value, list):
        return [_at_home(one, parameter) for one in value]
    named = isinstance(value, str) and re.match(r"~\w*(?:/|\Z)", value)
    return os.path.expanduser(value) if named and parameter.type is not TEXT else value  # noqa: PTH111 Path has no ~nobody


def spellings(command: click.Command) -> dict[str, Spelling]:
    """{key with underscores: what it names} for every option and argument that can have a default."""
    known: dict[str, Spelling] = {}
    for parameter in command.params:
        if not getattr(parameter, "is_eager", False):  # --version ends the program, it has no default
            known |= {_key(spelling): Spelling(parameter) for spelling in parameter.opts}
            known |= {_key(spelling): Spelling(parameter, negates=True) for spelling in parameter.secondary_opts}
    for parameter in command.params:
        if not getattr(parameter, "is_eager", False):
            known.setdefault(parameter.name or "", Spelling(parameter))
    return known


def _key(spelling: str) -> str:
    return spelling.lstrip("-").replace("-", "_")


def _unknown(key: str, value: Any, command: click.Command, where: str) -> str:
    """Why a key is none, and where it belongs or which one may be meant."""
    import difflib

    if not isinstance(command, click.Group):
        names = sorted(_written(command))
        near = difflib.get_close_matches(key.replace("_", "-"), names, n=1)
        return f"no option of this command; {f'did you mean {near[0]!r}?' if near else 'known: ' + ', '.join(names)}"
    commands = command.list_commands(click.Context(command))
    homes = [] if isinstance(value, dict) else list(_homes(key, command, where))
    if homes:
        listed = ", ".join(f"[{home}]" for home in homes[:_HOMES]) + (", ..." if len(homes) > _HOMES else "")
        return f"no command; an option belongs into the table of its command: {listed}"
    near = difflib.get_close_matches(key, commands, n=1, cutoff=0.75)  # lr is not meant for lora
    return f"no command; {f'did you mean {near[0]!r}?' if near else 'known: ' + ', '.join(sorted(commands))}"


def _written(command: click.Command) -> set[str]:
    """The keys of a command as people write them: the long spellings of its options, the names of its arguments."""
    options = (p for p in command.params if not getattr(p, "is_eager", False) and not getattr(p, "hidden", False))
    return {
        spelling.lstrip("-") for p in options for spelling in (*p.opts, *p.secondary_opts)
        if spelling.startswith("--") or not spelling.startswith("-")
    }  # fmt: skip


def _homes(key: str, group: click.Group, where: str) -> Iterator[str]:
    """The tables of the commands under a group that have an option of this name."""
    for name in group.list_commands(click.Context(group)):
        inner, command = f"{where}.{name}" if where else name, group.get_command(click.Context(group), name)
        if isinstance(command, click.Group):
            yield from _homes(key, command, inner)
        elif command is not None and key.replace("_", "-") in _written(command):
            yield inner


def _value(spelling: Spelling, value: Any, command: click.Command) -> tuple[str, Any]:
    """(fault or "", the value for click)."""
    parameter = spelling.parameter
    if isinstance(parameter, click.Option) and parameter.is_flag and parameter.is_bool_flag:
        if not isinstance(value, bool):
            return f"has to be true or false (found: {_shown(value)})", None
        return "", value is not spelling.negates
    if getattr(parameter, "multiple", False) or parameter.nargs != 1:
        values = value if isinstance(value, list) else [value]
        faults = [fault for fault in (_fault(parameter, one, command) for one in values) if fault]
        return (faults[0] if faults else ""), values
    return _fault(parameter, value, command), value


def value_of_variable(parameter: click.Option, text: str, command: click.Command) -> tuple[str, Any]:
    """(fault or "", the value) of an environment variable; several are separated by white space, as click has them."""
    if parameter.is_flag and parameter.is_bool_flag:
        try:
            return "", click.BOOL.convert(text, parameter, None)
        except click.BadParameter:
            return f"has to be true or false (found: {_shown(text)})", None
    if parameter.multiple or parameter.nargs != 1:
        return _value(Spelling(parameter), list(parameter.type.split_envvar_value(text)), command)
    fault = _fault(parameter, text, command)
    number = isinstance(parameter.type, (click.types.IntParamType, click.types.FloatParamType))
    return fault, parameter.type.convert(text, parameter, None) if number and not fault else text


def _fault(parameter: click.Parameter, value: Any, command: click.Command) -> str:
    """What is wrong with one value, or "". Paths are judged by the command, when it runs."""
    kind = parameter.type
    number = isinstance(kind, (click.types.IntParamType, click.types.FloatParamType))
    if isinstance(value, list):
        return f"takes one value, not a list (found: {_shown(value)})"
    whole = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(kind, click.types.IntParamType) and not (whole or isinstance(value, str)):
        return f"has to be a whole number (found: {_shown(value)})"
    if number and not (whole or isinstance(value, (str, float))):
        return f"has to be a number (found: {_shown(value)})"
    if not number and not isinstance(value, str) and not (whole and kind.name == "SIZE"):
        return f"has to be a text in quotes (found: {_shown(value)})"
    if isinstance(kind, click.Path):
        return ""
    try:
        kind.convert(value, parameter, click.Context(command))
    except click.UsageError as error:
        return error.message.rstrip(".")
    return ""


def _shown(value: Any) -> str:
    text = "a table" if isinstance(value, dict) else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def settle_environment(root: click.Group, environment: dict[str, str] | os._Environ[str] = os.environ) -> list[str]:
    """Let SLM_* variables be spelled as the options are; what they set that nothing reads, one sentence each.

    click reads the name of the parameter (SLM_SERVE_ADAPTERS), people write that of the option (SLM_SERVE_ADAPTER).
    """
    complaints = []
    for variable in sorted(environment):
        if not variable.startswith(_PREFIX) or variable in _OURS:
            continue
        group: click.Command = root
        path, rest = [], variable.removeprefix(_PREFIX)
        while isinstance(group, click.Group):
            context = click.Context(group)
            name = next((c for c in group.list_commands(context) if rest.startswith(f"{c.upper()}_")), None)
            command = group.get_command(context, name) if name else None
            if name is None or command is None:
                break
            path.append(name)
            group, rest = command, rest[len(name) + 1 :]
        known = spellings(group)
        options = {
            key.upper(): s for key, s in known.items() if isinstance(s.parameter, click.Option) and not s.negates
        }
        if rest not in options:
            import difflib

            near = difflib.get_close_matches(rest, options, n=1)
            hint = f"; did you mean {'_'.join([_PREFIX[:-1], *(p.upper() for p in path), near[0]])}?" if near else ""
            of = " ".join(["slm", *path])
            complaints.append(f"the environment variable {variable} sets no option of '{of}'{hint}")
            continue
        read = "_".join([_PREFIX[:-1], *(p.upper() for p in path), (options[rest].parameter.name or "").upper()])
        environment.setdefault(read, environment[variable])
    return complaints
