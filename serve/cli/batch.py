"""What `slm generate --batch` does: its options, and a file of requests answered into a file."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from serve.cli.options import group_of, model_everywhere
from slm.errors import InputError
from slm.terminal.arguments import typed
from slm.terminal.console import duration, emit_json, note, progress

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from serve.batch.entries import BatchEntry
    from serve.batch.run import BatchFigures
    from serve.engine.options import EngineOptions
    from serve.engine.served import ServedEngine
    from slm.joints import Joints

    OpenedEngine = AbstractContextManager[tuple[ServedEngine, int]]

# Of the command's options, those that mean the same for one prompt and for many.
_SHARED = frozenset(["model", "adapters", "threads", "context", "as_json", "batch"])
_OWN = frozenset(["output", "resume", "fresh", "parallel", "hot", "address"])
_TELL_S = 60.0
_PATH = click.Path(path_type=Path)

with_batch = group_of(
    click.option(
        "--batch", type=_PATH, metavar="FILE", help="Answer a file of requests (JSONL, as OpenAI's batches) into -o."
    ),
    click.option("-o", "--output", type=_PATH, metavar="FILE", help="Where the answers of --batch go, in order."),
    click.option("--resume", is_flag=True, help="Go on with a batch that was broken off."),
    click.option("--fresh", is_flag=True, help="Throw the answers of a broken-off batch away."),
    click.option(
        "--parallel", type=click.IntRange(1, 64), default=8, show_default=True,
        help="Requests of a batch at once, each adapter.",
    ),
    click.option(
        "--hot", type=click.IntRange(1, 64), default=3, show_default=True,
        help="Adapters of a batch with a context kept open.",
    ),
    click.option(
        "--on", "address", metavar="ray[://HOST[:PORT]]",
        help="Answer a batch on the machines of a Ray cluster, each with the model and the adapters' files "
        "[default: here].",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class BatchOptions:
    """How a batch is answered. parallel: requests at once for one adapter; hot: contexts at most; address: of a Ray
    whose machines answer, None: this one does."""

    resume: bool
    fresh: bool
    parallel: int
    hot: int
    address: str | None = None


def check_options(batch: Path | None, output: Path | None, options: BatchOptions) -> None:
    """Raise click.UsageError for what was typed and would have no effect."""
    given = typed()
    if batch is None:
        if useless := [spelled for name, spelled in given.items() if name in _OWN]:
            raise click.UsageError(f"{useless[0]} goes with --batch FILE.")
        return
    if useless := [spelled for name, spelled in given.items() if name not in _SHARED | _OWN]:
        raise click.UsageError(
            f"{useless[0]} is for one prompt; in a batch each line's body says what it asks (max_tokens, model, ...)."
        )
    if output is None:
        raise click.UsageError("--batch needs -o FILE, where the answers go.")
    if options.resume and options.fresh:
        raise click.UsageError("--resume and --fresh exclude each other.")
    if output.resolve() == batch.resolve():
        raise click.UsageError("-o names the batch itself; the answers need a file of their own.")


def answer_batch(
    batch: Path,
    output: Path,
    options: BatchOptions,
    opened: Callable[[], OpenedEngine],
    *,
    as_json: bool,
) -> None:
    """Answer a batch into its output. opened: the engine, which is started when the batch is known to be one, and how
    many machines compute for it.

    Raises DamagedFileError and MissingFileError for the batch, InputError, MismatchError and ResourceError for what is
    there of its output, EngineError when the engine cannot be kept alive; for --on what `opened_on` raises.
    """
    from serve.batch.entries import entries_of
    from serve.batch.journal import opened_journal, partial_of
    from serve.batch.run import figures_of, requests_ahead

    if options.address:
        from slm.native.ray_cluster import check_address

        check_address(options.address)
    entries = entries_of(batch)
    _tell_faults(entries)
    if options.resume and not partial_of(output).exists():
        if output.exists():
            figures = _answered_before(output, batch, entries)
            note(f"the batch of '{output}' had already been answered")
            if as_json:
                emit_json({"output": str(output), **figures.as_json()})
            return
        note("nothing to go on from: starting at the beginning")
    with opened_journal(output, resume=options.resume, fresh=options.fresh) as journal:
        with opened() as (engine, machines):
            journal.begin(_made_with(engine))
            figures = figures_of(entries, journal)
            if figures.kept:
                note(f"{figures.kept:,} of {len(entries):,} lines were answered before")
            window = machines * requests_ahead(options.parallel, options.hot, len(engine.adapters()))
            _answer(batch, entries, engine, window, journal, figures)
        journal.write(output, entries)
    if as_json:
        emit_json({"output": str(output), **figures.as_json()})
    else:
        note(_summary(output, figures))


@contextmanager
def opened_on(
    address: str, joints: Joints, model: str, adapters: Mapping[str, Path], options: EngineOptions
) -> Iterator[tuple[ServedEngine, int]]:
    """The engine whose model is computed by a cluster's machines, and how many of them there may be.

    Raises as `serve.batch.crew.opened_crew`.
    """
    from serve.batch.crew import opened_crew
    from serve.cluster.settings import ClusterSettings, ModelSettings, SizeSettings
    from serve.engine.options import tell_of_context

    settings = ClusterSettings(
        ModelSettings(
            model_everywhere(model), {name: str(path.resolve()) for name, path in adapters.items()},
            context=options.context, parallel=options.parallel, hot=options.hot, draft=options.draft,
            cache_bytes=options.cache_bytes,
        ),
        SizeSettings(cores=options.threads),
    )  # fmt: skip
    with opened_crew(address, settings, joints, joints.gguf_of(model)) as (engine, machines):
        tell_of_context(engine.context, options.context)
        yield engine, machines


def _answer(
    batch: Path,
    entries: Sequence[BatchEntry],
    engine: ServedEngine,
    window: int,
    journal: Any,
    figures: BatchFigures,
) -> None:
    from serve.batch.inside import InsideServer
    from serve.batch.run import answer_all

    left = figures.lines - figures.kept - figures.failed
    with _told(left, figures) as shown:
        asyncio.run(answer_all(entries, batch, InsideServer(engine), journal, window, figures, shown))


def _made_with(engine: ServedEngine) -> dict[str, Any]:
    """What shapes the answers beside the requests."""
    return {
        "model": {"name": engine.base.path.stem, "sha256": engine.base.content},
        "adapters": {adapter.name: adapter.content for adapter in engine.adapters()},
        "context": engine.context,
    }


@contextmanager
def _told(lines: int, figures: BatchFigures) -> Iterator[Callable[[int], None]]:
    """Progress: a bar on a terminal, elsewhere a line a minute with the time that is left."""
    from slm.terminal.console import err

    started = last = time.monotonic()
    live = err().is_terminal
    with progress("answering", lines, "requests") as show:

        def shown(done: int) -> None:
            nonlocal last
            show(done, f"{figures.tokens_per_s:.0f} tokens/s")
            now = time.monotonic()
            if not live and now - last >= _TELL_S:
                last = now
                left_s = (now - started) / done * (lines - done)
                note(f"{done:,} of {lines:,} requests, {figures.tokens_per_s:.0f} tokens/s, {duration(left_s)} left")

        yield shown


def _tell_faults(entries: Sequence[BatchEntry]) -> None:
    """Name the first lines that are wrong, before a model is loaded for the others."""
    wrong = [entry.fault.message for entry in entries if entry.fault]
    for message in wrong[:5]:
        note(f"warning: {message}")
    if len(wrong) > 5:
        note(f"warning: and {len(wrong) - 5:,} more lines; each has its error in the output")


def _summary(output: Path, figures: BatchFigures) -> str:
    failed = f"; {figures.failed:,} lines are errors" if figures.failed else ""
    return f"{figures.answered + figures.kept:,} of {figures.lines:,} lines answered into '{output}'{failed}"


def _answered_before(output: Path, batch: Path, entries: Sequence[BatchEntry]) -> BatchFigures:
    """The figures of an output that has these lines' answers: its ids name the content of what was asked.

    Raises InputError where it has others.
    """
    from serve.batch.journal import status_of
    from serve.batch.run import BatchFigures

    try:
        with output.open("rb") as file:
            found = [(_id_of(row), status_of(row) == 200) for row in map(json.loads, file)]
    except (ValueError, AttributeError):
        found = []
    if [id for id, _ in found] != [entry.id for entry in entries]:
        raise InputError(
            f"'{output}' does not hold the answers of '{batch}', and no broken-off batch is there to go on with",
            hint="Leave out --resume to answer all of it.",
        )
    kept = sum(good for _, good in found)
    return BatchFigures(lines=len(entries), failed=len(entries) - kept, kept=kept)


def _id_of(row: Any) -> Any:
    return row.get("id") if isinstance(row, Mapping) else None
