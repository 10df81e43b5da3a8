"""Draws what training has measured (losses, tokenizers, quantization): PNG with matplotlib (the extra `plot`), SVG.

It knows nothing of how the figures came about.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from slm.artifacts import new_file
from slm.errors import require_extra

_DPI = 110
_COLOURS = ("#cfe3f7", "#fde2c4", "#d3efd0", "#f6d3dc")
_EM, _LINE, _MARGIN, _WIDE = 15, 34, 14, 56  # of the SVG: font size, line height, margin, half-width cells in a line


def require_matplotlib() -> None:
    """Raise MissingExtraError unless matplotlib is installed; to be asked before a run, not after it."""
    require_extra("matplotlib", "plot")


def _figure(width: float, height: float) -> Any:
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def save_figure(figure: Any, path: Path) -> None:
    """Write a matplotlib figure as PNG, whole or not at all."""
    with new_file(path) as temporary:
        figure.savefig(temporary, format="png")


def draw_curve(
    losses: Sequence[tuple[int, float, float]], held_out: Sequence[tuple[int, dict[str, float]]], path: Path
) -> None:
    """The loss curve: training loss and learning rate over tokens, and held-out bits per byte by language.

    losses: (tokens, nats per token, share of the peak rate); held_out: (tokens, {language: bits per byte}).
    """
    figure = _figure(10.0, 4.0)
    left, right = figure.subplots(1, 2)
    left.plot([x / 1e6 for x, _, _ in losses], [loss for _, loss, _ in losses], linewidth=0.8, color="tab:blue")
    left.set_ylabel("training loss (nats per token)")
    rate = left.twinx()
    rate.plot([x / 1e6 for x, _, _ in losses], [share for _, _, share in losses], color="tab:gray", alpha=0.6)
    rate.set_ylabel("learning rate / its peak (grey)")
    rate.set_ylim(0, 1.5)
    for lang in held_out[0][1] if held_out else ():
        right.plot([x / 1e6 for x, _ in held_out], [v[lang] for _, v in held_out], marker="o", label=lang)
    right.set_ylabel("held-out bits per byte")
    right.set_ylim(bottom=0)
    right.legend()
    for axis in (left, right):
        axis.set_xlabel("million tokens seen")
        axis.grid(alpha=0.3)
    save_figure(figure, path)


def draw_tokenizers(tokenizers: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Bars of bytes per token and of tokens per parallel sentence, by tokenizer and language.

    tokenizers: {name: {"by_language": {lang: {"bytes_per_token": n}}, "tokens_per_parallel_sentence": {lang: n}}}.
    """
    figure = _figure(10.0, 3.6)
    axes = figure.subplots(1, 2)
    names = list(tokenizers)
    for axis, title in zip(axes, ("bytes per token (held-out text)", "tokens per parallel sentence"), strict=True):
        values = {
            name: {lang: float(one["bytes_per_token"]) for lang, one in entry["by_language"].items()}
            if axis is axes[0]
            else dict(entry["tokens_per_parallel_sentence"])
            for name, entry in tokenizers.items()
        }
        langs = list(next(iter(values.values())))
        for number, lang in enumerate(langs):
            places = [at + number / (len(langs) + 1) for at in range(len(names))]
            bars = axis.bar(places, [values[name][lang] for name in names], 0.9 / (len(langs) + 1), label=lang)
            axis.bar_label(bars, fmt="%.1f", fontsize=8)
        axis.set_xticks([at + (len(langs) - 1) / (len(langs) + 1) / 2 for at in range(len(names))], names)
        axis.set_title(title, fontsize=10)
        axis.margins(y=0.15)
        axis.legend(fontsize=8)
    save_figure(figure, path)


def draw_quantization(models: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """For each type: the size of the file, held-out bits per byte, and the KL divergence from f16.

    models: {model: [{"type", "size_bytes", "by_language": {lang: {"bits_per_byte", "mean_kl_divergence"}}}, ...]}; the
    KL divergence is absent for the reference.
    """
    figure = _figure(12.0, 3.8)
    sizes, bits, costs = figure.subplots(1, 3)
    width = 0.8 / len(models)
    for number, (name, files) in enumerate(models.items()):
        kinds = [one["type"] for one in files]
        places = [at + number * width for at in range(len(files))]
        bars = sizes.bar(
            places, [one["size_bytes"] / 1e6 for one in files], width * 0.9, label=name, color=f"C{number}"
        )
        sizes.bar_label(bars, fmt="%.1f", fontsize=8)
        sizes.set_xticks([at + (len(models) - 1) * width / 2 for at in range(len(files))], kinds)
        for line, lang in zip(("-", "--", ":", "-."), files[0]["by_language"], strict=False):
            style = {"marker": "o", "linestyle": line, "color": f"C{number}", "label": f"{name} {lang}"}
            values = [one["by_language"][lang] for one in files]
            bits.plot(kinds, [value["bits_per_byte"] for value in values], **style)
            known = [value.get("mean_kl_divergence", math.nan) for value in values]  # a gap, where it is compared with
            costs.plot(kinds, known, **style)
    sizes.set_ylabel("size of the file (MB)")
    sizes.margins(y=0.15)
    bits.set_ylabel("held-out bits per byte")
    bits.set_ylim(bottom=0)
    costs.set_ylabel("mean KL divergence from f16 (nats)")
    costs.set_yscale("log")
    for axis in (sizes, bits, costs):
        axis.grid(alpha=0.3, axis="y")
        axis.legend(fontsize=8)
    save_figure(figure, path)


def cells(text: str) -> int:
    """Width in half-width cells: East Asian wide characters take two (Unicode Standard Annex 11)."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def split_svg(rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """An SVG with each row's tokens in coloured boxes. rows: (label, tokens); a token of a part of a character is shown
    as it is named. Fonts are the reader's own."""
    shapes: list[str] = []
    y, widest = _MARGIN, 0.0
    unit = _EM * 0.6

    def write(x: float, text: str, width: float, extra: str = "") -> str:
        length = f' textLength="{width:.1f}" lengthAdjust="spacingAndGlyphs"' if width else ""
        return f'<text x="{x:.1f}" y="{y + _EM:.1f}"{length}{extra}>{escape(text)}</text>'

    for label, tokens in rows:
        shapes.append(write(_MARGIN, label, 0.0, ' font-weight="bold"'))
        y += _LINE - 8
        x = float(_MARGIN)
        for number, token in enumerate(tokens):
            shown = token.replace(" ", "␣").replace("\n", "⏎")
            width = cells(shown) * unit
            if x + width > _MARGIN + _WIDE * unit * 1.6:
                x, y = float(_MARGIN), y + _LINE - 8
            colour = _COLOURS[number % len(_COLOURS)]
            shapes.append(f'<rect x="{x:.1f}" y="{y}" width="{width + 4:.1f}" height="22" rx="3" fill="{colour}"/>')
            shapes.append(write(x + 2, shown, width))
            x += width + 6
            widest = max(widest, x)
        y += _LINE + 2
    style = f'font-family="monospace" font-size="{_EM}" fill="#222"'
    size = f'width="{widest + _MARGIN:.0f}" height="{y + _MARGIN:.0f}"'
    background = '<rect width="100%" height="100%" fill="white"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n{background}\n' + "\n".join(shapes) + "\n</svg>\n"
