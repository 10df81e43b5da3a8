"""Rounds of figures to medians, ratios and a table. Pure; it knows nothing of how figures are taken."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

# (scenario, figure, what it is called, whether more is better)
FIGURES = (
    ("mixed", "tokens_per_s", "mixed adapters, tokens/s", True),
    ("mixed", "ttft_p50_s", "mixed adapters, TTFT p50, s", False),
    ("mixed", "ttft_p95_s", "mixed adapters, TTFT p95, s", False),
    ("one_adapter", "tokens_per_s", "one adapter, tokens/s", True),
    ("one_adapter", "ttft_p50_s", "one adapter, TTFT p50, s", False),
    ("one_adapter", "ttft_p95_s", "one adapter, TTFT p95, s", False),
    ("overtaking", "ttft_p50_s", "short beside a long answer, TTFT, s", False),
    ("second_turn", "ttft_p50_s", "second turn, long history, TTFT, s", False),
)
_COUNTS = ("requests", "failed", "short")


def median_of_rounds(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The median of each figure over the rounds that have it; requests, failed and short are summed.

    rounds: {scenario: {figure: number, None or words}} of one server, one or more. error: the first one.
    """
    merged: dict[str, Any] = {}
    for scenario in rounds[0]:
        parts = [one[scenario] for one in rounds]
        merged[scenario] = {name: _merged(name, [part[name] for part in parts]) for name in parts[0]}
    return merged


def _merged(name: str, values: Sequence[Any]) -> Any:
    there = [value for value in values if value is not None]
    if name in _COUNTS:
        return sum(there)
    if name == "error":
        return next((value for value in there if value), "")
    return round(statistics.median(there), 4) if there else None


def ratios(ours: Mapping[str, Any], peer: Mapping[str, Any]) -> dict[str, float | None]:
    """How many times better ours is, by figure (`mixed_tokens_per_s`): above 1 is better, whatever the figure."""
    found: dict[str, float | None] = {}
    for scenario, figure, _, more_is_better in FIGURES:
        found[f"{scenario}_{figure}"] = ratio(ours[scenario][figure], peer[scenario][figure], more_is_better)
    return found


def ratio(mine: float | None, other: float | None, more_is_better: bool) -> float | None:
    """How many times better mine is than the other; None where one of them is not known."""
    above, below = (mine, other) if more_is_better else (other, mine)
    return round(above / below, 2) if above is not None and below else None


def failures(server: Mapping[str, Any]) -> tuple[int, int, str]:
    """(failed, requests, the first failure's words) over all scenarios of one server."""
    parts = [server[scenario] for scenario in dict.fromkeys(scenario for scenario, *_ in FIGURES)]
    words = next((part["error"] for part in parts if part["error"]), "")
    return sum(part["failed"] for part in parts), sum(part["requests"] for part in parts), words


def table_rows(servers: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """(headings, rows) of the table: a row for each figure, a column for each server, the first being ours."""
    headings = ["", *(server["name"] for server in servers), *(f"ours / {peer['name']}" for peer in servers[1:])]
    better = [ratios(servers[0], peer) for peer in servers[1:]]
    rows = [
        [
            title,
            *(cell(server[scenario][figure]) for server in servers),
            *(times(one[f"{scenario}_{figure}"]) for one in better),
        ]
        for scenario, figure, title, _ in FIGURES
    ]
    blank = [""] * len(better)
    counts = [failures(server) for server in servers]
    rows.append(["failed requests", *(f"{failed} of {requests}" for failed, requests, _ in counts), *blank])
    rows.append(["peak memory, MB", *(cell(server["peak_rss_mb"]) for server in servers), *blank])
    rows.append(["ready after, s", *(cell(server["start_s"]) for server in servers), *blank])
    return headings, rows


def cell(value: float | None) -> str:
    """A figure as a table shows it."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def times(value: float | None) -> str:
    """A ratio as a table shows it."""
    return "-" if value is None else f"{value:.2f} x"
