"""How words of a command line become arguments, where click alone would refuse what people type.

It knows nothing of particular commands.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from slm.paths import at_home, composed

_V = TypeVar("_V")
# What an option looks like; anything else that begins with a dash is text: "-5 degrees", "- item", "--- a rule".
_OPTION = re.compile(r"--?[A-Za-z][\w-]*(=.*)?", re.ASCII | re.DOTALL)


class TextType(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Words of a person. Bytes that are not in the terminal's encoding are decoded as a file's would be."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if text.isascii() or not re.search("[\ud800-\udfff]", text):
            return text
        from slm.errors import DamagedFileError
        from slm.terminal.console import note
        from slm.text.encoding.decode import decode

        try:
            found = decode(os.fsencode(text))
        except (DamagedFileError, UnicodeEncodeError):
            self.fail(f"{text!r} cannot be read as text", param, ctx)
        if found.encoding != "UTF-8" or found.note:
            note(f"an argument is not UTF-8; it is read as {found.encoding}: {found.text}")
        return found.text


TEXT = TextType()


class Finite(click.types.FloatParamType):
    """A number. float() also takes "nan" and "inf", with which nothing can be computed and bounds mean nothing."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


class FiniteRange(Finite, click.FloatRange):
    """A number between bounds, as click.FloatRange has them."""


FLOAT = Finite()


class Named(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A name and what it stands for, like ja=exports/ja.gguf: a pair. Whether a path exists is not asked."""

    def __init__(self, form: str, example: str, kind: Any) -> None:
        """form: as usage shows it, like NAME=FILE. kind: click's type of what stands behind the sign."""
        self.name, self._example, self._kind = form, example, kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        if isinstance(value, tuple):  # click converts a default that was converted before
            return value
        name, equals, rest = str(value).partition("=")
        if not (name and equals and rest):
            self.fail(f"'{value}' is not {self.name}, like {self._example}", param, ctx)
        if isinstance(self._kind, click.Path):  # shells leave the ~ of NAME=~/FILE as it is
            rest = str(at_home(rest))
        return composed(name), self._kind.convert(rest, param, ctx)


_PATH = click.Path(path_type=Path)
NAMED_FILE = Named("NAME=FILE", "ja=exports/ja.gguf", _PATH)
NAMED_FOLDER = Named("NAME=FOLDER", "ja=adapters/ja", _PATH)
LANG_FILE = Named("LANG=FILE", "ja=data/ja.txt", _PATH)
LANG_PART = Named("LANG=PART", "ja=0.6", FLOAT)


def typed() -> dict[str, str]:
    """What stands on the command line of the command that runs: each parameter with its option, as it is spelled."""
    context = click.get_current_context()
    return {
        parameter.name: parameter.opts[-1] for parameter in context.command.params
        if parameter.name and context.get_parameter_source(parameter.name) is click.core.ParameterSource.COMMANDLINE
    }  # fmt: skip


def one_of_each(pairs: Iterable[tuple[str, _V]]) -> dict[str, _V]:
    """{name: value} of an option that is given once for a name. Raises InputError for a name that is given twice."""
    from slm.errors import InputError

    found: dict[str, _V] = {}
    for name, value in pairs:
        if name in found:
            raise InputError(f"the name '{name}' is given twice: {name}={found[name]} and {name}={value}")
        found[name] = value
    return found


def all_of_each(pairs: Iterable[tuple[str, _V]]) -> dict[str, list[_V]]:
    """{name: values} of an option that may be repeated for one name; names and values in the order given."""
    found: dict[str, list[_V]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return found


class TextCommand(click.Command):
    """A command with text among its arguments: what begins with a dash and looks like no option is text."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _text_last(args, _words_after(self), ctx))


class ListsCommand(click.Command):
    """A command whose repeatable options also take several values at once: --adapters en=a ja=b."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        normal = ctx.token_normalize_func or str
        lists = {normal(opt) for p in self.params if isinstance(p, click.Option) and p.multiple for opt in p.opts}
        return super().parse_args(ctx, _one_each(args, lambda word: normal(word) in lists))


def _words_after(command: click.Command) -> dict[str, int]:
    """How many words belong to each spelling of an option."""
    options = [p for p in command.params if isinstance(p, click.Option)]
    return {
        spelling: 0 if option.is_flag or option.count else option.nargs
        for option in options
        for spelling in (*option.opts, *option.secondary_opts)
    }


def _text_last(args: list[str], words_after: dict[str, int], ctx: click.Context) -> list[str]:
    """The same words with the options first, then `--` and what is text, in its order.

    Raises click.NoSuchOption for a word like "-quota", which click would take for -q and then complain of a -u.
    """
    options: list[str] = []
    texts: list[str] = []
    at = 0
    while at < len(args):
        word = args[at]
        at += 1
        if word == "--":
            texts += args[at:]
            break
        if not word.startswith("-") or word == "-" or not (word in words_after or _is_option(word, words_after)):
            texts.append(word)
            continue
        if (
            re.fullmatch("-[A-Za-z]{2,}", word)
            and word not in words_after
            and not _are_short_options(word, ctx.command)
        ):
            raise click.NoSuchOption(word, ctx=ctx)
        options.append(word)
        taken = words_after.get(word, 0)
        if at + taken > len(args):  # click says what is missing
            return args
        options += args[at : at + taken]
        at += taken
    return [*options, "--", *texts] if texts else options


def _is_option(word: str, words_after: dict[str, int]) -> bool:
    """Whether a word is meant as an option, known or not; of the short ones also with its value behind it: -k3."""
    glued = words_after.get(word[:2], 0) and re.fullmatch(r"=?[\d.]+", word[2:])
    return bool(glued or _OPTION.fullmatch(word))


def _are_short_options(word: str, command: click.Command) -> bool:
    """Whether a word of letters is short options in a row, the last of which may have its text behind it: -qmja."""
    options = {opt: p for p in command.params if isinstance(p, click.Option) for opt in p.opts}
    for at, letter in enumerate(word[1:], 2):
        option = options.get(f"-{letter}")
        if option is None:
            return False
        if not (option.is_flag or option.count):
            number = isinstance(option.type, (click.types.IntParamType, click.types.FloatParamType))
            return at < len(word) and not number
    return True


def _one_each(args: list[str], is_list: Any) -> list[str]:
    """Every value of a list with the option's name before it."""
    expanded: list[str] = []
    name = ""
    for at, word in enumerate(args):
        if word == "--":
            return expanded + args[at:]
        if word.startswith("-") and not re.fullmatch(r"-[\d.]+", word):
            spelling, equals, _ = word.partition("=")
            name = spelling if is_list(spelling) else ""
            expanded.append(word)
            if equals:
                continue
        elif name and expanded[-1] != name:
            expanded += [name, word]
        else:
            expanded.append(word)
    return expanded
