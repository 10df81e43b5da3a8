"""What `slm convert` does beside converting: --fit, the figures of quantized files, the report, card and Modelfile.

How they are asked for and shown, not how they are made.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convert.cli.quantize import show_file
from slm.errors import InputError, require_extra
from slm.terminal.arguments import LANG_FILE, one_of_each
from slm.terminal.console import emit_json, note, out

if TYPE_CHECKING:
    from convert.quantize.quantize import QuantizeOptions

PROVEN = "token ids equal on {} lines of mixed text; llama.cpp knows every tensor; the files were read back"


@dataclass(frozen=True)
class CostSettings:
    """The options of `cost_options`, as click gives them."""

    fits: tuple[str, ...]
    texts: tuple[tuple[str, Path], ...]
    max_tokens: int | None
    report: bool
    plot: bool
    card: bool


def cost_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: the options of CostSettings, as keyword arguments of their names."""
    options = [
        click.option("--fit", "fits", multiple=True, metavar="BOUND",
                     help="Keep the smallest type that meets a bound: kld=0.05,ja (also p99, top1, ppl, bpb), or the "
                          "best within size=100MB or decode=60tok/s (prefill). --type then names what to try."),
        click.option("--text", "texts", type=LANG_FILE, multiple=True,
                     help="Text to measure on. Default: English, Japanese."),
        click.option("--max-tokens", type=click.IntRange(0), help="Of each text; 0: all. Default 256; 1024 with --fit "
                                                                  "or --report."),
        click.option("--report/--no-report", help="Write NAME.report.md, .json and .png: cost and speed of types."),
        click.option("--plot/--no-plot", default=True, help="Draw the report's PNG (needs the extra 'plot')."),
        click.option("--card/--no-card", help="Write a model card (README.md) and an Ollama Modelfile beside it."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def wants_measuring(settings: CostSettings, types: tuple[str, ...], verify: bool) -> bool:
    """Whether anything has to be measured: a fit, a report, or the proof of a quantized type.

    Raises InputError for options that contradict one another.
    """
    from convert.quality.cost import has_quantized

    if (settings.fits or settings.report) and not verify:
        raise InputError("--fit and --report measure what is written", hint="Leave --no-verify out.")
    return bool(settings.fits) or settings.report or (verify and has_quantized(types))


def convert_and_measure(
    checkpoint: Path,
    target: Path,
    types: tuple[str, ...],
    settings: CostSettings,
    options: QuantizeOptions,
    as_json: bool,
) -> list[dict[str, Any]]:
    """Convert with figures, show them, write the report; the files' records. options: for the quantizer."""
    from convert.model import convert_checkpoint
    from convert.publish.card import write_card
    from convert.quality.bounds import parse_bound
    from convert.quality.cost import QUICK_TOKENS, MeasureOptions, convert_measured
    from convert.quality.fit import fit_checkpoint
    from convert.quality.sample_text import read_texts
    from convert.quality.verify import MAX_TOKENS

    if settings.report and settings.plot:
        require_extra("matplotlib", "plot")
    files = one_of_each(settings.texts)
    tokens = settings.max_tokens
    if tokens is None:
        tokens = MAX_TOKENS if settings.fits or settings.report else QUICK_TOKENS
    on = MeasureOptions(read_texts(files), tokens, settings.report)
    if settings.fits:
        bounds = [parse_bound(text) for text in settings.fits]
        result = fit_checkpoint(checkpoint, target, bounds, on, types=types, options=options)
        records, reference, kept = result["tried"], result["reference"], [result["chosen"]]
    else:
        records, reference = convert_measured(
            checkpoint, target, types or ("f16",), on,
            convert=lambda folder, to, names: convert_checkpoint(folder, to, names, options=options),
        )  # fmt: skip
        kept = records
        result = {"files": records, "reference": reference}
    written = []
    if settings.report and reference:
        source = ", ".join(path.name for path in files.values()) or "the package's own sample"
        chosen = kept[0]["type"] if settings.fits else None
        written = _write_report(checkpoint, target, records, reference, source, settings, chosen)
    if settings.card:
        report = json.loads(written[1].read_text(encoding="utf-8")) if written else None
        written += write_card(kept, checkpoint, report)
    if as_json:
        emit_json({**result, "files": kept, "written": [str(path) for path in written]})
    else:
        _show(records, reference, kept, [str(path) for path in written])
    return kept


def _write_report(
    checkpoint: Path,
    target: Path,
    records: list[dict[str, Any]],
    reference: dict[str, Any],
    source: str,
    settings: CostSettings,
    chosen: str | None,
) -> list[Path]:
    from convert.quality.report import report_of, report_paths, write_report
    from convert.quality.speed import machine

    name = checkpoint.resolve().name
    report = report_of(name, records, reference, machine(), text=source, bounds=settings.fits, chosen=chosen)
    paths = report_paths(target, name if target.is_dir() else None)
    return write_report(paths, report, plot=settings.plot)


def _show(
    records: list[dict[str, Any]], reference: dict[str, Any], kept: list[dict[str, Any]], written: list[str]
) -> None:
    from rich.table import Table

    from convert.quality.report import figure_cell

    rows = [*records, *([reference] if reference else [])]
    languages = list(reference.get("by_language", {}))
    timed = any("prefill_tok_s" in record for record in records)
    heads = [f"{what} {lang}" for what in ("KL", "top-1", "ppl.") for lang in languages]
    table = Table(
        "type", "MB", *heads, *(["prefill", "decode"] if timed else []), box=None, pad_edge=False, collapse_padding=True
    )
    forms = (("mean_kl_divergence", ".4f"), ("top1_agreement", ".3f"), ("perplexity", ".4g"))
    for record in rows:
        chosen = len(kept) < len(records) and "file" in record
        name = f"[bold]{record['type']} *[/bold]" if chosen else str(record["type"])
        figures = [record.get("by_language", {}).get(lang, {}) for lang in languages]
        cells = [figure_cell(one.get(key), form) for key, form in forms for one in figures]
        rates = [figure_cell(record.get(key), ".1f") for key in ("prefill_tok_s", "decode_tok_s")] if timed else []
        table.add_row(
            name + (" ref." if record is reference else ""), f"{record['size_bytes'] / 1e6:,.1f}", *cells, *rates
        )
    out().print(table)
    for record in kept:
        show_file(record)
    for path in written:
        click.echo(path)
    note(PROVEN.format(kept[0]["tokenizer_lines_proven"]))
