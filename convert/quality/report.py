"""The report beside a conversion: what each type costs in each language, as Markdown, JSON and a picture.

`markdown` is pure; `write_report` writes the files. It knows nothing of how the figures were measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slm import __version__
from slm.artifacts import new_file

Record = Mapping[str, Any]


def report_of(
    model: str,
    records: Sequence[Record],
    reference: Record,
    machine: Mapping[str, Any],
    *,
    text: str,
    bounds: Sequence[str] = (),
    chosen: str | None = None,
) -> dict[str, Any]:
    """The report as one JSON object. Files are named without their folders, so that it can be passed on.

    text: where the text came from. chosen: the type that `--fit` kept, for `bounds`.
    """
    return {
        "model": model,
        "slm_version": __version__,
        "machine": dict(machine),
        "text": text,
        "bounds": list(bounds),
        "chosen": chosen,
        "reference": dict(reference),
        "files": [
            {**record, **({"file": Path(record["file"]).name} if "file" in record else {})} for record in records
        ],
    }


def markdown(report: Mapping[str, Any], picture: str | None = None) -> str:
    """The report for people. picture: the file name of the plot, if there is one."""
    machine, reference = report["machine"], report["reference"]
    languages = list(reference["by_language"])
    timed = any("prefill_tok_s" in record for record in (reference, *report["files"]))
    lines = [f"# What quantization costs: {report['model']}", ""]
    if report["chosen"]:
        lines += [f"Chosen: **{report['chosen']}**, for {' and '.join(report['bounds'])}.", ""]
    head = ["type", "size (MB)", "bits/weight"]
    for lang in languages:
        head += [f"KL {lang}", f"p99 {lang}", f"top-1 {lang}", f"perplexity {lang}", f"bits/byte {lang}"]
    head += ["prefill tok/s", "decode tok/s"] if timed else []
    lines += [_row(head), _row(["---"] * len(head))]
    for record in (reference, *sorted(report["files"], key=lambda one: -int(one["size_bytes"]))):
        if record is reference or record["type"] != reference["type"]:
            lines.append(_row(_cells(record, languages, timed, record is reference)))
    lines += ["", *_notes(report, machine, timed, languages)]
    if picture:
        lines += ["", f"![Size against KL divergence and speed]({picture})"]
    written = [f"- {record['type']}: {_counts(record['tensor_types'])}" for record in report["files"]]
    lines += ["", "## Tensor types actually written", "", *written]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _counts(types: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in types.items())


def _cells(record: Record, languages: Sequence[str], timed: bool, is_reference: bool) -> list[str]:
    bits = record.get("bits_per_weight")
    cells = [str(record["type"]) + (" (reference)" if is_reference else ""), f"{record['size_bytes'] / 1e6:,.1f}"]
    cells.append("-" if bits is None else f"{bits:.2f}")
    for lang in languages:
        figures = record.get("by_language", {}).get(lang, {})
        cells += ["0", "0", "1"] if is_reference else [
            figure_cell(figures.get("mean_kl_divergence"), ".4f"),
            figure_cell(figures.get("p99_kl_divergence"), ".4f"),
            figure_cell(figures.get("top1_agreement"), ".3f"),
        ]  # fmt: skip
        cells += [figure_cell(figures.get("perplexity"), ".2f"), figure_cell(figures.get("bits_per_byte"), ".4f")]
    if timed:
        cells += [figure_cell(record.get("prefill_tok_s"), ".0f"), figure_cell(record.get("decode_tok_s"), ".1f")]
    return cells


def figure_cell(value: float | None, form: str) -> str:
    """A figure as a table shows it; "-": not measured."""
    return "-" if value is None else format(value, form)


def _notes(report: Mapping[str, Any], machine: Mapping[str, Any], timed: bool, languages: Sequence[str]) -> list[str]:
    tokens = ", ".join(f"{report['reference']['by_language'][lang]['tokens']:,} in {lang}" for lang in languages)
    against = report["reference"]["type"]
    notes = [
        "KL divergence (nats a token, mean and 99th percentile) and top-1 agreement against "
        f"{against}, the checkpoint's own precision. Text: {report['text']}; tokens: {tokens}. `-`: not measured.",
    ]
    if timed:
        notes += ["", f"Speeds: {machine['cpu']}, {machine['threads']} threads, {machine['system']}; a prompt read at "
                  "once, then tokens one by one, the best of three runs."]  # fmt: skip
    return notes


def report_paths(out: Path, name: str | None = None) -> tuple[Path, Path, Path]:
    """(Markdown, JSON, PNG) beside a file, or in a folder of several files called `name`."""
    base = out.with_suffix("") if name is None else out / name
    text, data, picture = (base.with_name(f"{base.name}.report.{ending}") for ending in ("md", "json", "png"))
    return text, data, picture


def write_report(paths: tuple[Path, Path, Path], report: Mapping[str, Any], *, plot: bool = True) -> list[Path]:
    """Write the report's files; returns their paths. Raises MissingExtraError when `plot` finds no matplotlib."""
    text, data, picture = paths
    if plot:
        from convert.quality.plot import draw_report

        with new_file(picture) as temporary:
            draw_report(report, temporary)
    with new_file(data) as temporary:
        temporary.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    with new_file(text) as temporary:
        temporary.write_text(markdown(report, picture.name if plot else None), encoding="utf-8")
    return [text, data, *([picture] if plot else [])]
