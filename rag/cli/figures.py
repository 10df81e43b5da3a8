"""How the figures of `slm rag evaluate` are shown: a table by leg and language, and the misses as lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from slm.terminal.answer import shown_path
from slm.text.visible import one_line

_COLUMNS = ("recall@1", "recall@3", "recall@5", "recall@10", "nDCG@10")


def retrieval_rows(result: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a table: each leg in each language and overall, in shares."""
    yield f"{'leg':10}{'questions':12}{'n':>5}" + "".join(f"{column:>11}" for column in _COLUMNS)
    for leg, figures in result["legs"].items():
        for name, row in [*figures["by_language"].items(), ("overall", figures["overall"])]:
            values = "".join(f"{row[column.replace('@', '_at_').lower()]:>11.3f}" for column in _COLUMNS)
            yield f"{leg:10}{name:12}{row['n']:>5}{values}"


def miss_rows(result: Mapping[str, Any], most: int) -> Iterator[str]:
    """The first misses, each with the right documents and with what stood in their place."""
    misses = result["misses"]
    total = result["overall"]["n"]
    if most and misses:
        yield f"\n{len(misses)} of {total} questions have no right document among the first five ({result['leg']}):"
    for miss in misses[:most]:
        rank = f"found at {miss['rank']}" if miss["rank"] else "not found"
        yield f"  [{miss['lang']}] {one_line(miss['question'])}"
        yield f"      right: {', '.join(map(shown_path, miss['relevant']))} ({rank})"
        for number, one in enumerate(miss["instead"], start=1):
            yield f"      {number}. {one_line(one['place'])} ({shown_path(one['source'])})"
    if most and len(misses) > most:
        yield f"  ... and {len(misses) - most} more: --misses {len(misses)}, or --json"
