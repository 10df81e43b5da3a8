"""Draws measured retrieval: recall by k of every leg, a panel a language. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slm.artifacts import new_file
from slm.errors import InputError, require_extra

FORMATS = (".png", ".svg")
_STYLES = {"fused": ("C0", "-", 2.4), "dense": ("C1", "--", 1.6), "lexical": ("C2", ":", 1.6)}
_WIDTH, _HEIGHT, _DPI = 3.6, 3.6, 120


def require_picture(path: Path) -> None:
    """Raise InputError for a name that is no picture's and MissingExtraError without matplotlib; before the work."""
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"'{path}' does not say what to draw", found=path.suffix or "no ending",
                         hint=f"Let it end in {' or '.join(FORMATS)}.")  # fmt: skip
    require_extra("matplotlib", "plot")


def draw_recall(result: Mapping[str, Any], path: Path, title: str) -> None:
    """Write the picture of what `rag.evaluate.retrieval.evaluate` returned, as PNG or SVG by the name's ending.

    A panel a language of the questions and one for all; in each a curve a leg: recall at k, k from 1 to 10.
    """
    require_picture(path)
    from matplotlib.figure import Figure

    legs = result["legs"]
    languages = list(result["by_language"])
    panels = [*languages, "overall"] if len(languages) > 1 else languages
    figure = Figure(figsize=(_WIDTH * len(panels) + 0.6, _HEIGHT), dpi=_DPI, layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        rows = {
            leg: part["overall"] if panel == "overall" else part["by_language"][panel] for leg, part in legs.items()
        }
        for leg, row in rows.items():
            colour, line, width = _STYLES[leg]
            ks = range(1, len(row["recall_by_k"]) + 1)
            label = f"{leg} (@5 {row['recall_at_5']:.2f})"
            axis.plot(ks, row["recall_by_k"], color=colour, linestyle=line, linewidth=width, marker="o", markersize=3,
                      label=label)  # fmt: skip
        axis.set_title(f"{panel}, {next(iter(rows.values()))['n']} questions", fontsize=10)
        axis.set_xlabel("k (documents)")
        axis.set_xticks(range(1, 11))
        axis.set_ylim(0, 1.02)
        axis.grid(alpha=0.3)
        axis.legend(loc="lower right", fontsize=8)
    axes[0].set_ylabel("recall@k")
    # A name of the reader's own may hold characters that the picture's font lacks.
    figure.suptitle(title.encode("ascii", "replace").decode(), fontsize=11)
    with new_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lower().removeprefix("."))
