"""The command `slm bench convert`: how the measured figures are shown, not how they are taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from slm.console import emit_json, note, out
from slm.joints import Joints, pass_joints

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
    from convert.bench import bench_conversion, find_peer

    script = find_peer(peer)
    if script is None:
        note("llama.cpp's convert_hf_to_gguf.py is not on PATH: only ours is measured (--peer PATH names it)")
    results = []
    for source in sources or _MODELS:
        folder = Path(source) if Path(source).exists() else joints.checkpoint_of(source)
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
