"""The command `slm rag sync`. What is read and removed, and when, is decided in rag/sync/."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rag.cli.evaluate import HELP, JSON
from rag.cli.wording import WORDS
from slm.text.address import shown_address

if TYPE_CHECKING:
    from rag.index.embed import Embedder
    from rag.sources.confluence.rest.client import Client
    from rag.stores.interface import IndexStore
    from rag.sync.report import Report
    from rag.sync.run import Wanted

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_NAMED = 10
_WATCHED_S = 900.0


class Interval(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A time such as 90s, 15m or 2h, in seconds."""

    name = "TIME"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds of a number with a unit; at least one."""
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        found = re.fullmatch(r"\s*(\d{1,6})\s*([smhd]?)\s*", str(value))
        if not found or not int(found[1]):
            self.fail(f"'{value}' is no time; it looks like 90s, 15m, 2h or 1d", param, ctx)
        return float(int(found[1]) * _UNITS[found[2]])


@click.command(context_settings=HELP)
@click.argument("index")
@click.option("--confluence-url", "urls", multiple=True, metavar="URL", help="A Confluence site to sync from now on.")
@click.option("--space", "spaces", multiple=True, metavar="KEY", help="A space of that site.")
@click.option("--token-file", type=click.Path(path_type=Path), envvar="CONFLUENCE_TOKEN_FILE", show_envvar=True,
              help="File with the token, where CONFLUENCE_TOKEN does not hold it.")  # fmt: skip
@click.option("--embedder", metavar="NAME|FILE",
              help="Embedder for a new index: a name, a GGUF file or a checkpoint folder "
                   "[default: multilingual-e5-small].")  # fmt: skip
@WORDS
@click.option("--comments/--no-comments", default=None,
              help="With the comments on pages of spaces, from now on, or without [default: as before].")  # fmt: skip
@click.option("--full", is_flag=True, help="Read every page again, also those that seem to be the same.")
@click.option("--strict", is_flag=True, help="Fail when anything was not read.")
@click.option(
    "--allow-mass-delete", is_flag=True, help="Remove what is gone even if that is most of a space or folder."
)
@click.option("--every", type=Interval(), help="Sync again and again, so long after each other: 15m, 2h.")
@click.option("--watch", is_flag=True, help="Sync again when a file changes; sites every 15m, or as --every says.")
@JSON
def sync(
    index: str,
    urls: tuple[str, ...],
    spaces: tuple[str, ...],
    token_file: Path | None,
    embedder: str | None,
    words: str | None,
    comments: bool | None,
    full: bool,
    strict: bool,
    allow_mass_delete: bool,
    every: float | None,
    watch: bool,
    as_json: bool,
) -> None:
    """Bring an index into step with its files, folders and Confluence spaces: only what changed is read anew.

    What was deleted stops answering. The token of a Confluence account is taken from CONFLUENCE_TOKEN, or from a
    file; a Cloud site takes the account's address in CONFLUENCE_EMAIL with it. A space that was named once is synced
    from then on.

    \b
    Example:
      slm rag sync handbook
      slm rag sync handbook --confluence-url https://example.atlassian.net/wiki --space DOCS
      slm rag sync handbook --every 15m
    """
    from rag.stores.named import open_store
    from rag.sync.run import sync_index
    from rag.sync.space import How
    from slm.errors import SlmError
    from slm.terminal.console import emit_json, note

    store = open_store(index, words)
    wanted = _pairs(urls, spaces)
    first = True
    while True:
        show, ended = _bars()
        try:
            reports = sync_index(
                store, wanted, _client_of(token_file), _embedder_of(shown_address(index), embedder),
                How(full=full, mass_delete=allow_mass_delete, comments=comments, show=show),
            )  # fmt: skip
        except SlmError as error:
            if first:
                raise
            ended()
            note(f"this time it failed: {error}")
            reports = []
        ended()
        if as_json:
            emit_json({"index": store.name, "sources": [report.as_dict() for report in reports]})
        else:
            _tell(reports)
        if every is None and not watch:
            break
        first = False
        _wait(store, every if every is not None else _WATCHED_S, watch=watch)
    failed = any(report.error for report in reports)
    if failed or (strict and not all(report.complete for report in reports)):
        raise click.exceptions.Exit(1)


def _pairs(urls: tuple[str, ...], spaces: tuple[str, ...]) -> list[Wanted]:
    """The spaces with their sites: each its own, or all of the one site. Raises UsageError."""
    from rag.sync.run import Wanted

    if len(urls) == 1:
        urls = urls * max(1, len(spaces))
    if len(urls) != len(spaces):
        raise click.UsageError(
            f"{len(urls)} --confluence-url and {len(spaces)} --space: name one site and its spaces, or a site for each."
        )
    return [Wanted(url, space) for url, space in zip(urls, spaces, strict=True)]


def _client_of(token_file: Path | None) -> Callable[[str], Client]:
    from rag.sources.confluence.rest.client import Client
    from rag.sources.confluence.rest.credentials import find_credentials
    from slm.terminal.console import note

    def told(seconds: float, why: str) -> None:
        if seconds >= 1:
            note(f"waiting {seconds:,.0f} s: {why}")

    # The file is read for each run: tokens are exchanged while a service runs.
    return lambda base: Client(base, find_credentials(token_file), on_wait=told)


def _embedder_of(index: str, given: str | None) -> Callable[[str | None], Embedder]:
    from rag.index.change.planned import require_made_with
    from rag.index.embed import DEFAULT_EMBEDDER, embedder_name, open_embedder

    given = embedder_name(given) if given else None

    def opened(made_with: str | None) -> Embedder:
        if made_with:
            require_made_with(made_with, given, index)
        return open_embedder(given or made_with or DEFAULT_EMBEDDER)

    return opened


def _bars() -> tuple[Callable[[str, float, float], None], Callable[[], None]]:
    """A bar for each thing that is being done, one after the other; and what ends the last one."""
    from contextlib import ExitStack

    from slm.terminal.console import Show, progress

    stack, current = ExitStack(), ""
    draw: Show | None = None

    def show(what: str, done: float, total: float) -> None:
        nonlocal current, draw
        if what != current:
            stack.close()
            draw = stack.enter_context(progress(what, total=100 if total else None, unit="%" if total else "pages"))
            current = what
        assert draw is not None  # the first call has another name than ""
        draw(100 * done / total if total else done)

    return show, stack.close


def _tell(reports: list[Report]) -> None:
    """The counts on stdout; reasons on stderr, of many the first ones."""
    from slm.terminal.console import note
    from slm.text.visible import one_line

    for report in reports:
        rows = [f"skipped {what}: {reason}" for what, reason in report.skipped]
        rows += [f"removed {what}: {reason}" for what, reason in report.gone] + report.notes
        for row in rows[:_NAMED]:
            note(one_line(row))
        if len(rows) > _NAMED:
            note(f"... and {len(rows) - _NAMED} more like these; --json names them all")
        click.echo(one_line(report.line))


def _wait(store: IndexStore, seconds: float, *, watch: bool) -> None:
    """Wait so long, or until a file of the index's folders changes."""
    if not watch:
        time.sleep(seconds)
        return
    import watchfiles

    from slm.paths import on_disk

    sources = store.held().sources
    roots = [on_disk(root) for root, source in sources.items() if source.get("kind") == "files"]
    roots = [root for root in roots if root.exists()]
    if not roots:
        time.sleep(seconds)
        return
    waited = watchfiles.watch(*roots, rust_timeout=int(seconds * 1000), yield_on_timeout=True, raise_interrupt=True)
    next(iter(waited), None)
