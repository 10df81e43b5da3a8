"""Draws what training from scratch has measured, as PNG. It needs matplotlib (the extra `plot`).

It knows nothing of how the figures came about.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from slm.artifacts import new_file
from slm.errors import MissingExtraError

_DPI = 120


def require_matplotlib() -> None:
    """Raise MissingExtraError unless matplotlib is installed; to be asked before a run, not after it."""
    if find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "plot")


def draw_curve(
    losses: Sequence[tuple[int, float, float]], held_out: Sequence[tuple[int, dict[str, float]]], path: Path
) -> None:
    """The loss curve: training loss and learning rate over tokens, and held-out bits per byte by language.

    losses: (tokens, nats per token, share of the peak rate); held_out: (tokens, {language: bits per byte}).
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 4.2), dpi=_DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([x / 1e6 for x, _, _ in losses], [loss for _, loss, _ in losses], linewidth=0.8, color="tab:blue")
    left.set_ylabel("training loss (nats per token)")
    rate = left.twinx()
    rate.plot([x / 1e6 for x, _, _ in losses], [share for _, _, share in losses], color="tab:gray", alpha=0.5)
    rate.set_ylabel("learning rate / peak")
    rate.set_ylim(0, 1.5)
    for lang in held_out[0][1] if held_out else ():
        right.plot([x / 1e6 for x, _ in held_out], [v[lang] for _, v in held_out], marker="o", label=lang)
    right.set_ylabel("held-out bits per byte")
    right.set_ylim(bottom=0)
    right.legend()
    for axis in (left, right):
        axis.set_xlabel("million tokens seen")
        axis.grid(alpha=0.3)
    with new_file(path) as temporary:
        figure.savefig(temporary, format="png")
