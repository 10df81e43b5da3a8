"""The commands `slm bench convert` and `quant`: how the measured figures are shown, not how they are taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from slm.joints import Joints, pass_joints
from slm.terminal.arguments import LANG_FILE, all_of_each, one_of_each
from slm.terminal.console import emit_json, note, out

_MODELS = ("smollm2-135m-instruct", "gemma-3-270m")


@click.command("convert", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("sources", nargs=-1)
@click.option("-t", "--type", "file_type", default="f16", show_default=True, help="f32, f16, bf16 or q8_0.")
@click.option("--runs", type=click.IntRange(min=1), default=3, show_default=True, help="The best of so many counts.")
@click.option("--peer", type=click.Path(path_type=Path),
              help="llama.cpp's convert_hf_to_gguf.py or its folder. Default: the one on PATH.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@pass_joints
def bench_convert(
    joints: Joints, sources: tuple[str, ...], file_type: str, runs: int, peer: Path | None, as_json: bool
) -> None:
    """Time and memory of a conversion (proof included) beside llama.cpp's script, and whether the files agree.

    SOURCES are checkpoint folders or catalog names; default: smollm2-135m-instruct and gemma-3-270m.

    \b
    Example:
      slm bench convert --peer ~/llama.cpp
    """
    from convert.bench.conversion import bench_conversion, find_peer

    script = find_peer(peer)
    if script is None:
        note("llama.cpp's convert_hf_to_gguf.py is not on PATH: only ours is measured (--peer PATH names it)")
    results = []
    for source in sources or _MODELS:
        folder = joints.checkpoint_of(source)
        results.append({**bench_conversion(folder, file_type, runs, script), "checkpoint": Path(source).name})
    if as_json:
        emit_json({"conversions": results})
        return
    _show(results)


def _show(results: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table("checkpoint", "", "seconds", "CPU seconds", "peak MB (one process)", "peak MB (all)")
    for result in results:
        for who in ("ours", "peer"):
            if result[who] is not None:
                figures = [f"{value:,.1f}" for value in result[who].values()]
                table.add_row(result["checkpoint"] if who == "ours" else "", who, *figures)
    out().print(table)
    for result in results:
        line = f"{result['checkpoint']}: largest tensor {result['largest_tensor_mb']:,.0f} MB"
        line += ", torch imported" if result["torch_imported"] else ", no torch imported"
        if result["same"] is not None:
            same = result["same"]
            tables = ", ".join(f"{name} {'equal' if ok else 'DIFFERENT'}" for name, ok in same["tables"].items())
            line += (
                f"; {result['time_ratio']:.2f} of the peer's time, {result['memory_ratio']:.2f} of its memory; "
                f"{same['tensors_equal']} tensors equal byte for byte, {len(same['tensors_different'])} different, "
                f"{len(same['only_in_one'])} in one file only; tables: {tables}"
            )
            if same["tokenizers"][0] != same["tokenizers"][1]:
                line += f" (ours {same['tokenizers'][0]}, the peer's {same['tokenizers'][1]})"
        click.echo(line)


@click.command("quant", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("gguf", type=click.Path(path_type=Path))
@click.option("--text", "texts", type=LANG_FILE, multiple=True, required=True, help="Calibration text.")
@click.option("--held-out", type=LANG_FILE, multiple=True, help="Text to compare on. Default: built-in texts.")
@click.option("-t", "--type", "types", multiple=True, default=("q4_k_m", "iq4_xs"), show_default=True)
@click.option("--chunks", type=click.IntRange(min=1), help="At most so many chunks of 512 tokens a language.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=2048, show_default=True, help="Compared a language.")
@click.option("--peer", type=click.Path(path_type=Path), help="llama.cpp's llama-imatrix. Default: the one on PATH.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def bench_quant(
    gguf: Path,
    texts: tuple[tuple[str, Path], ...],
    held_out: tuple[tuple[str, Path], ...],
    types: tuple[str, ...],
    chunks: int | None,
    max_tokens: int,
    peer: Path | None,
    as_json: bool,
) -> None:
    """What importance matrices do for each language: none, one language's, all in equal parts, llama-imatrix's.

    GGUF is a float model. Divergence is from that model's own predictions on held-out text.

    \b
    Example:
      slm bench quant model-f16.gguf --text en=calib.en.txt --text ja=calib.ja.txt --held-out ja=held.ja.txt
    """
    from convert.bench.quantization import bench_quantization, find_peer

    calibration, compared = all_of_each(texts), one_of_each(held_out)
    result = bench_quantization(
        gguf, calibration, compared, types, chunks=chunks, max_tokens=max_tokens, peer=find_peer(peer)
    )
    if as_json:
        emit_json(result)
        return
    from rich.table import Table

    languages = list(result["rows"][0]["by_language"])
    table = Table("type", "matrix", "MB", *(f"{what} {lang}" for lang in languages for what in ("KL", "p99", "top-1")))
    for row in result["rows"]:
        figures = [row["by_language"][lang] for lang in languages]
        cells = [
            text
            for one in figures
            for text in (
                f"{one['mean_kl_divergence']:.4f}",
                f"{one['p99_kl_divergence']:.3f}",
                f"{one['top1_agreement']:.3f}",
            )
        ]
        table.add_row(row["type"], row["matrix"], f"{row['size_bytes'] / 1e6:,.1f}", *cells)
    out().print(table)
