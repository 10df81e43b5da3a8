"""The commands convert, restore and inspect: how results are shown, not how they are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from convert.cli.cost import PROVEN, CostSettings, convert_and_measure, cost_options, wants_measuring
from convert.cli.quantize import options_from, quantize_options, show_file
from slm.errors import InputError
from slm.joints import Joints, pass_joints
from slm.terminal.console import emit_json, note, out

_SETTINGS = {"help_option_names": ["-h", "--help"]}
_OUT_FILE = click.option("-o", "--out", "target", required=True, type=click.Path(path_type=Path), help="Output.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def _mb(size: Any) -> str:
    return f"{int(size) / 1e6:,.1f} MB"


@click.command("convert", context_settings=_SETTINGS)
@click.argument("source")
@_OUT_FILE
@click.option(
    "-t",
    "--type",
    "types",
    multiple=True,
    help="f32, f16, bf16, q8_0, q4_0, q4_k_m, q5_k_m, q6_k ...; may be repeated, OUT is then a folder. "
    "Default f16. On laptops q4_0 reads prompts fastest (the only type with a repacked layout for AVX2); "
    "q4_k_m loses less.",
)
@quantize_options
@click.option("--base", help="The adapter's base (folder or catalog name), when it names none.")
@click.option("--verify/--no-verify", default=True, help="Prove token ids, load the file, measure what a type costs.")
@cost_options
@_JSON
@pass_joints
def convert(
    joints: Joints,
    /,
    source: str,
    target: Path,
    types: tuple[str, ...],
    imatrix: Path | None,
    tensor_types: tuple[str, ...],
    embedding: str | None,
    head: str | None,
    base: str | None,
    verify: bool,
    as_json: bool,
    **cost: Any,
) -> None:
    """Convert a checkpoint folder, a catalog name or a PEFT adapter folder to GGUF.

    \b
    Example:
      slm convert ./my-model -o my-model.gguf --type q4_0
      slm convert ./my-model -o my-model.gguf --fit kld=0.05,ja --report
      slm convert adapters/en_lora -o exports/en.gguf --base smollm2-135m-instruct
    """
    from convert.lora.adapter import convert_adapter, is_adapter_folder
    from convert.model import convert_checkpoint
    from convert.publish.card import check_replaceable, write_card
    from slm.models.model_argument import is_model_folder
    from slm.weights.adapter_origin import assumed_base

    settings = CostSettings(**cost)
    if settings.card:
        check_replaceable(target if len(types) > 1 and not settings.fits else target.parent)
    if is_adapter_folder(source):
        if types:
            raise InputError("an adapter is always written in f32", hint="Leave --type out.")
        folder = None if base is None else Path(base) if is_model_folder(Path(base)) else joints.checkpoint_of(base)
        result = convert_adapter(source, target, folder)
        if base is not None and (assumed := assumed_base(Path(source), base)):
            note(assumed)
        if settings.card:
            result["card_files"] = [str(path) for path in write_card([result], Path(source))]
        if as_json:
            emit_json(result)
            return
        click.echo(f"{result['file']}  {_mb(result['size_bytes'])}  adapter for {result['architecture']}, "
                   f"rank {result['rank']}, alpha {result['alpha']:g}, {result['modules']} modules")  # fmt: skip
        return
    if base is not None:
        raise InputError("--base is for adapters", found=f"'{source}' has no adapter_config.json")
    here = Path(source)
    checkpoint = here if here.is_file() or is_model_folder(here) else joints.checkpoint_of(source)
    options = options_from(imatrix, tensor_types, embedding, head)
    if wants_measuring(settings, types, verify):
        convert_and_measure(checkpoint, target, types, settings, options, as_json)
        return
    results = convert_checkpoint(checkpoint, target, types or ("f16",), verify, options)
    if settings.card:
        write_card(results, checkpoint)
    if as_json:
        emit_json({"files": results})
        return
    for result in results:
        show_file(result)
    if verify:
        note(PROVEN.format(results[0]["tokenizer_lines_proven"]))


@click.command("restore", context_settings=_SETTINGS)
@click.argument("gguf")
@_OUT_FILE
@click.option("--dtype", type=click.Choice(["f32", "bf16"]), default="f32", show_default=True, help="Of a model.")
@click.option("--chat-template", "template", metavar="NAME|FILE", help="Of a model. Default: the file's own.")
@click.option("--base", help="GGUF is an adapter, of this base (folder, catalog name or GGUF file).")
@_JSON
@pass_joints
def restore(
    joints: Joints, /, gguf: str, target: Path, dtype: str, template: str | None, base: str | None, as_json: bool
) -> None:
    """Restore a GGUF model (a file, or a catalog name) to a checkpoint folder that transformers loads (dequantized).

    With --base: an adapter's file to a PEFT folder.

    \b
    Example:
      slm restore gemma-3-270m -o checkpoints/gemma
      slm restore exports/en.gguf --base gemma-3-270m -o adapters/en
    """
    from convert.restore import restore_checkpoint
    from slm.models.model_argument import model_argument
    from slm.weights.checkpoint_files import converted_adapter

    if base is not None:
        from convert.lora.restore import restore_adapter

        if template is not None or dtype != "f32":
            raise InputError("an adapter is restored in f32, with its own template", hint="Leave the option out.")
        file = converted_adapter(Path(gguf)) or Path(gguf)
        manifest = restore_adapter(file, target, joints.checkpoint_of(base))
        if as_json:
            emit_json({"folder": str(target), **manifest})
        else:
            click.echo(f"{target}  adapter of {manifest['base']['path']}")
        return
    manifest = restore_checkpoint(model_argument(gguf), target, dtype, template)
    if as_json:
        emit_json({"folder": str(target), **manifest})
    else:
        click.echo(f"{target}  {manifest['architecture']} {dtype}, fingerprint {manifest['fingerprint'][:12]}")
        note(f"token ids equal on {manifest['tokenizer_lines_proven']} lines of mixed text")


@click.command("inspect", context_settings=_SETTINGS)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--tensors/--no-tensors", help="List every tensor with its type, shape and size.")
@_JSON
def inspect(file: Path, tensors: bool, as_json: bool) -> None:
    """Show what is in a GGUF file, without loading it.

    \b
    Example:
      slm inspect exports/en.gguf --json
    """
    from convert.publish.inspect import inspect_gguf, list_tensors

    described = inspect_gguf(file)
    if tensors:
        described["tensor_list"] = list_tensors(file)
    if as_json:
        emit_json(described)
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False)
    for key in ("kind", "architecture", "name", "fingerprint"):
        if described[key]:
            table.add_row(key, escape(str(described[key])))
    table.add_row("size", f"{_mb(described['size_bytes'])}, of which the header {_mb(described['header_bytes'])}")
    bits = f", {described['bits_per_weight']:.2f} bits each" if described["bits_per_weight"] else ""
    table.add_row("parameters", f"{described['parameters']:,} in {described['tensors']} tensors{bits}")
    for name, size in described["tensor_type_bytes"].items():
        table.add_row(f"  {name}", f"{described['tensor_types'][name]} tensors, {_mb(size)}")
    for part in ("vocabulary", "adapter"):
        for key, value in described.get(part, {}).items():
            if value is not None:
                if key == "token_types":
                    value = ", ".join(f"{count:,} {name}" for name, count in value.items())
                if key == "specials":
                    value = ", ".join(f"{name} {special['id']} {special['token']}" for name, special in value.items())
                table.add_row(f"{part} {key}", escape(str(value)))
    for key, value in described["keys"].items():
        table.add_row(escape(key), escape(str(value)))
    if described["template"]:
        table.add_row("chat template", escape(described["template"]))
    for one in described.get("tensor_list", []):
        shape = " x ".join(map(str, one["shape"]))
        table.add_row(escape(one["name"]), f"{one['type']}  {shape}  {one['size_bytes']:,} bytes")
    out().print(table)
