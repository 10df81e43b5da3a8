"""What `slm generate` asks, from -p, stdin and a template, and which JSON it takes for an answer.

It knows nothing of engines or of how an answer is shown.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from slm.errors import DamagedFileError, InputError, UnsupportedError
from slm.terminal.console import note
from slm.terminal.piped import is_piped, is_terminal, read_stdin
from slm.terminal.text_file import read_text

_WAITING_S = 2.0  # a pipe that has said nothing for so long may be one that nobody meant
_GIVEN = ("input", "prompt")  # a template's own names, for stdin and -p


@dataclass(frozen=True)
class OneShot:
    """The whole text that is asked, and the part of it whose language decides who answers."""

    text: str
    question: str


def asked(prompt: str | None, template: Path | None, variables: Mapping[str, str], *, raw: bool) -> OneShot:
    """What to ask. Raises click.UsageError where nothing is, InputError for a template that cannot be filled.

    Without a template: the prompt, what is piped in, or what is piped in and the prompt below it. raw: the prompt goes
    on where that text ends.
    """
    if template is not None:
        text = filled(template, prompt, variables)
        question = prompt or text
    elif variables:
        raise click.UsageError("--var fills in a template; name one with --template FILE.")
    else:
        text, question = _joined(prompt, raw=raw)
    if not text.strip():
        raise InputError("the prompt is empty")
    return OneShot(text, question)


def _joined(prompt: str | None, *, raw: bool) -> tuple[str, str]:
    if prompt is None:
        if is_terminal():
            raise click.UsageError("give a prompt with -p, or pipe one in")
        text = _stdin()
        return text, text
    context = _stdin() if is_piped() else ""
    if raw:
        return context + prompt, prompt
    return (f"{context.rstrip()}\n\n{prompt}" if context.strip() else prompt), prompt


def filled(template: Path, prompt: str | None, variables: Mapping[str, str]) -> str:
    """A template's text (Jinja) with its variables; {{ input }} is what is piped in, {{ prompt }} is -p.

    What is given and not used is an error, and so is what is used and not given. Raises InputError, DamagedFileError.
    """
    from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, UndefinedError
    from jinja2.meta import find_undeclared_variables
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined)
    try:
        names = find_undeclared_variables(environment.parse(source := read_text(template)))
        compiled = environment.from_string(source)
    except TemplateSyntaxError as error:
        raise DamagedFileError(f"'{template}' is no template", found=f"line {error.lineno}: {error.message}") from error
    values = _values(template, prompt, variables, names)
    try:
        return compiled.render(values)
    except UndefinedError as error:
        missing = sorted(names - values.keys())
        if not missing:
            raise InputError(f"the template '{template}' cannot be filled in", found=str(error)) from error
        raise InputError(f"the template '{template}' needs {', '.join(missing)}", hint=_how_to_give(missing)) from error
    except (
        TemplateError,
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        RecursionError,
    ) as error:
        raise InputError(f"the template '{template}' cannot be filled in", found=str(error)) from error


def _values(template: Path, prompt: str | None, variables: Mapping[str, str], names: set[str]) -> dict[str, str]:
    """What the template gets. stdin is read only where the template has a place for it."""
    for name in _GIVEN:
        if name in variables:
            raise InputError(f"'{name}' is no --var: a template's input is what is piped in, its prompt is -p")
    values = {**variables, **({} if prompt is None else {"prompt": prompt})}
    if unused := sorted(values.keys() - names):
        known = ", ".join(sorted(names)) or "none"
        raise InputError(f"the template '{template}' has no place for {', '.join(unused)}; its variables: {known}")
    if "input" in names and not is_terminal():
        values["input"] = _stdin().rstrip("\n")
    return values


def _how_to_give(missing: list[str]) -> str:
    own = {"input": "Pipe the input in.", "prompt": "Give the prompt with -p."}
    others = [f"--var {name}=TEXT" for name in missing if name not in own]
    told = [own[name] for name in missing if name in own]
    return " ".join([*told, *([f"Give {' '.join(others)}."] if others else [])])


def _stdin() -> str:
    with _told_when_waiting():
        return read_stdin()


@contextmanager
def _told_when_waiting() -> Iterator[None]:
    """Say it where stdin does not end, so that nobody takes the silence for a slow model."""
    said = threading.Timer(_WAITING_S, note, ["reading stdin until it ends; with < /dev/null nothing is read"])
    said.daemon = True
    said.start()
    try:
        yield
    finally:
        said.cancel()


def grammar_of(schema: Path) -> str:
    """What an answer has to hold to, of a file with a JSON schema. Raises DamagedFileError and UnsupportedError."""
    from serve.child.choice.grammar import json_grammar

    try:
        wanted = json.loads(read_text(schema))
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"'{schema}' is no JSON", found=str(error) or "too deeply nested") from error
    if not isinstance(wanted, (dict, bool)):
        raise DamagedFileError(f"'{schema}' is no JSON schema", found=f"a {type(wanted).__name__}, not an object")
    try:
        return json_grammar(wanted)
    except UnsupportedError as error:
        raise UnsupportedError(
            f"'{schema}': {error.what}", found=error.found, hint="Leave that out of the schema."
        ) from error
    except InputError as error:
        raise InputError(f"'{schema}': {error.what}", found=error.found, hint=error.hint) from error


def whole_json(text: str, reason: str, max_tokens: int) -> Any:
    """The value of an answer that was held to a schema. Raises InputError where it broke off before its end."""
    if reason == "stop":
        return json.loads(text)
    raise InputError(
        f"the answer was cut at --max-tokens {max_tokens}, before its JSON was whole",
        found=" ".join(text.split())[:80], hint="Give it more with --max-tokens.",
    )  # fmt: skip
