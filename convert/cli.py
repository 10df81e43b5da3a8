"""The commands convert, restore, verify and inspect: how results are shown, not how they are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from convert.cli_quantize import options_from, quantize_options, show_file
from slm.console import emit_json, note, out
from slm.errors import InputError
from slm.joints import Joints, pass_joints

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
@click.option("--verify/--no-verify", default=True, help="Prove token ids and load the file before it is kept.")
@_JSON
@pass_joints
def convert(
    joints: Joints,
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
) -> None:
    """Convert a checkpoint folder, a catalog name or a PEFT adapter folder to GGUF.

    \b
    Example:
      slm convert ./my-model -o my-model.gguf --type q4_0
      slm convert adapters/en_lora -o exports/en.gguf --base smollm2-135m-instruct
    """
    from convert.adapter import convert_adapter, is_adapter_folder
    from convert.model import convert_checkpoint

    if is_adapter_folder(source):
        if types:
            raise InputError("an adapter is always written in f32", hint="Leave --type out.")
        folder = None if base is None else base if Path(base).is_dir() else joints.checkpoint_of(base)
        result = convert_adapter(source, target, folder)
        if as_json:
            emit_json(result)
            return
        click.echo(f"{result['file']}  {_mb(result['size_bytes'])}  adapter for {result['architecture']}, "
                   f"rank {result['rank']}, alpha {result['alpha']:g}, {result['modules']} modules")  # fmt: skip
        return
    if base is not None:
        raise InputError("--base is for adapters", found=f"'{source}' has no adapter_config.json")
    checkpoint = Path(source) if Path(source).exists() else joints.checkpoint_of(source)
    options = options_from(imatrix, tensor_types, embedding, head)
    results = convert_checkpoint(checkpoint, target, types or ("f16",), verify, options)
    if as_json:
        emit_json({"files": results})
        return
    for result in results:
        show_file(result)
    if verify:
        note(
            f"token ids equal on {results[0]['tokenizer_lines_proven']} lines of mixed text; "
            "llama.cpp knows every tensor; the files were read back"
        )


@click.command("restore", context_settings=_SETTINGS)
@click.argument("gguf", type=click.Path(path_type=Path))
@_OUT_FILE
@click.option("--dtype", type=click.Choice(["f32", "bf16"]), default="f32", show_default=True, help="Of the weights.")
@click.option("--chat-template", "template", metavar="NAME|FILE", help="Default: the file's own.")
@_JSON
def restore(gguf: Path, target: Path, dtype: str, template: str | None, as_json: bool) -> None:
    """Restore a GGUF model to a checkpoint folder that transformers loads (dequantized).

    \b
    Example:
      slm restore gemma-3-270m-q4_k_m.gguf -o checkpoints/gemma
    """
    from convert.restore import restore_checkpoint

    manifest = restore_checkpoint(gguf, target, dtype, template)
    if as_json:
        emit_json({"folder": str(target), **manifest})
    else:
        click.echo(f"{target}  {manifest['architecture']} {dtype}, fingerprint {manifest['fingerprint'][:12]}")
        note(f"token ids equal on {manifest['tokenizer_lines_proven']} lines of mixed text")


def _texts(pairs: tuple[str, ...]) -> dict[str, Path]:
    texts = {}
    for pair in pairs:
        lang, sign, path = pair.partition("=")
        if not sign or not lang or not path:
            raise click.BadParameter(f"'{pair}' is not LANG=FILE", param_hint="--text")
        texts[lang] = Path(path)
    return texts


@click.command("verify", context_settings=_SETTINGS)
@click.argument("candidate", type=click.Path(path_type=Path))
@click.option("--against", required=True, help="A checkpoint folder, a catalog name or a GGUF file.")
@click.option("--adapter", type=click.Path(path_type=Path), help="An adapter GGUF on the candidate.")
@click.option("--peft", type=click.Path(path_type=Path), help="The PEFT folder that the adapter came from.")
@click.option("--text", "texts", multiple=True, metavar="LANG=FILE", help="More text, one piece a line.")
@click.option("--max-relative", type=float, help="Bound on max |difference| / max |logit|.")
@click.option("--min-top1", type=float, help="Bound on top-1 agreement, 0 to 1.")
@click.option("--max-kl", type=float, help="Bound on the mean KL divergence, nats.")
@_JSON
@pass_joints
def verify(
    joints: Joints,
    candidate: Path,
    against: str,
    adapter: Path | None,
    peft: Path | None,
    texts: tuple[str, ...],
    max_relative: float | None,
    min_top1: float | None,
    max_kl: float | None,
    as_json: bool,
) -> None:
    """Compare a GGUF with its reference: token ids, logits, top-1 agreement, KL divergence. Exit 1 beyond a bound.

    The bounds' defaults follow the file's tensor types: tight for floats, wider for quantized ones.

    \b
    Example:
      slm verify model-q8_0.gguf --against ./my-model --text ja=data/ja.txt
      slm verify model-f16.gguf --against ./my-model --adapter en.gguf --peft adapters/en_lora
    """
    from convert.verify import Bounds, bounds_for, verify_model
    from slm.gguf_reader import read_gguf

    default = bounds_for(read_gguf(candidate))[1]
    bounds = Bounds(
        default.relative if max_relative is None else max_relative,
        default.top1 if min_top1 is None else min_top1,
        default.kl if max_kl is None else max_kl,
    )
    reference = Path(against) if Path(against).exists() else joints.checkpoint_of(against)
    result = verify_model(candidate, reference, adapter=adapter, peft=peft, texts=_texts(texts), bounds=bounds)
    if as_json:
        emit_json(result)
    else:
        _show_verification(result)
    if not result["ok"]:
        raise click.exceptions.Exit(1)


def _show_verification(result: dict[str, Any]) -> None:
    from rich.table import Table

    ids = result["token_ids"]
    click.echo(f"token ids: equal on {ids['lines'] - ids['lines_different']} of {ids['lines']} lines")
    if ids["first_different"] is not None:
        click.echo(f"  first different: {ids['first_different']!r}")
    table = Table("text", "tokens", "max rel. difference", "top-1 agreement", "mean KL (nats)")
    for name, figures in [*result["by_language"].items(), ("all", result["overall"])]:
        table.add_row(name, str(figures["tokens"]), f"{figures['max_relative_difference']:.2e}",
                      f"{figures['top1_agreement']:.4f}", f"{figures['mean_kl_divergence']:.2e}")  # fmt: skip
    out().print(table)
    for sentence in result["broken"]:
        click.secho(f"beyond its bound: {sentence}", fg="red", err=True)
    if result["ok"]:
        click.echo(f"ok: within the bounds for {result['bounds_for']}")


@click.command("inspect", context_settings=_SETTINGS)
@click.argument("file", type=click.Path(path_type=Path))
@_JSON
def inspect(file: Path, as_json: bool) -> None:
    """Show what is in a GGUF file, without loading it.

    \b
    Example:
      slm inspect exports/en.gguf --json
    """
    from convert.inspect import inspect_gguf

    described = inspect_gguf(file)
    if as_json:
        emit_json(described)
        return
    from rich.table import Table

    table = Table(show_header=False)
    for key in ("kind", "architecture", "name", "fingerprint"):
        if described[key]:
            table.add_row(key, str(described[key]))
    table.add_row("size", _mb(described["size_bytes"]))
    table.add_row("parameters", f"{described['parameters']:,} in {described['tensors']} tensors")
    for name, size in described["tensor_type_bytes"].items():
        table.add_row(f"  {name}", f"{described['tensor_types'][name]} tensors, {_mb(size)}")
    for part in ("vocabulary", "adapter"):
        for key, value in described.get(part, {}).items():
            if value is not None:
                if key == "specials":
                    value = ", ".join(f"{name} {special['id']} {special['token']}" for name, special in value.items())
                table.add_row(f"{part} {key}", str(value))
    for key, value in described["keys"].items():
        table.add_row(key, str(value))
    if described["template"]:
        table.add_row("chat template", described["template"][:200])
    out().print(table)
