"""Draws a report: size against KL divergence by language, and against measured tokens a second.

It needs matplotlib (the extra `plot`) and knows nothing of how the figures came about.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slm.errors import require_extra

_SIZE = (11.0, 5.0)
_DPI = 120


def series(report: Mapping[str, Any]) -> dict[str, list[tuple[float, float, str]]]:
    """What is drawn: {curve: [(size in MB, value, type), ...]} in order of size; a curve a language and a speed."""
    records = sorted(report["files"], key=lambda one: int(one["size_bytes"]))
    curves: dict[str, list[tuple[float, float, str]]] = {}

    def add(curve: str, record: Mapping[str, Any], value: float | None) -> None:
        if value is not None:
            curves.setdefault(curve, []).append((record["size_bytes"] / 1e6, float(value), str(record["type"])))

    for record in records:
        for lang, figures in record.get("by_language", {}).items():
            add(f"KL {lang}", record, figures.get("mean_kl_divergence"))
    reference = report["reference"]
    timed = [one for one in records if one["type"] != reference["type"]] + [reference]
    for record in timed:
        add("prefill", record, record.get("prefill_tok_s"))
        add("decode", record, record.get("decode_tok_s"))
    return curves


def draw_report(report: Mapping[str, Any], path: Path) -> None:
    """Write the picture as PNG. Raises MissingExtraError."""
    require_extra("matplotlib", "plot")
    from matplotlib.figure import Figure

    curves = series(report)
    speeds = [name for name in ("prefill", "decode") if name in curves]
    figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
    axes = figure.subplots(1, 1 + len(speeds), squeeze=False)[0]
    left = axes[0]
    losses = {name.removeprefix("KL "): points for name, points in curves.items() if name.startswith("KL ")}
    worst = max(losses, key=lambda lang: sum(value for _, value, _ in losses[lang]), default="")
    for lang, points in losses.items():
        left.plot([x for x, _, _ in points], [y for _, y, _ in points], marker="o", label=lang)
        if lang == worst:
            _names(left, points)
    left.set_ylabel("mean KL divergence (nats)")
    # Types that lose nothing stand at zero: linear below a ten-thousandth, logarithmic above.
    left.set_yscale("symlog", linthresh=1e-4)
    left.set_ylim(bottom=0)
    left.legend()
    for axis, name in zip(axes[1:], speeds, strict=True):
        axis.plot([x for x, _, _ in curves[name]], [y for _, y, _ in curves[name]], "o")
        _names(axis, curves[name])
        axis.set_ylabel(f"{name} (tokens/s)")
        axis.set_ylim(bottom=0)
    for axis in axes:
        axis.set_xlabel("size (MB)")
        axis.set_xscale("log")
        axis.margins(x=0.15)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("{x:g}")
        axis.tick_params(axis="x", which="both", labelsize=7, labelrotation=60)
        axis.grid(alpha=0.3)
    figure.suptitle(str(report["model"]).encode("ascii", "replace").decode())
    figure.savefig(path, format="png")


def _names(axis: Any, points: list[tuple[float, float, str]]) -> None:
    """Each point's type beside it, alternately above and below: neighbours lie close together."""
    for number, (x, y, name) in enumerate(points):
        place = (5, 5) if number % 2 else (-5, -10)
        axis.annotate(
            name, (x, y), textcoords="offset points", xytext=place, fontsize=7, ha="left" if number % 2 else "right"
        )
