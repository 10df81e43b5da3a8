"""The commands quantize and imatrix: how results are shown, not how they are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from slm.terminal.arguments import LANG_FILE, LANG_PART, all_of_each, one_of_each
from slm.terminal.console import emit_json, note

_SETTINGS = {"help_option_names": ["-h", "--help"]}
_OUT = click.option("-o", "--out", "target", required=True, type=click.Path(path_type=Path), help="Output.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def quantize_options(command: Any) -> Any:
    """The options that quantize and convert share, handed over as `imatrix`, `tensor_types`, `embedding`, `head`."""
    for option in (
        click.option("--output-type", "head", metavar="TYPE", help="Of the output matrix, also where it is tied."),
        click.option("--token-embedding-type", "embedding", metavar="TYPE", help="Of the token embedding."),
        click.option("--tensor-type", "tensor_types", multiple=True, metavar="REGEX=TYPE",
                     help="Type of the matrices whose GGUF name matches, e.g. 'ffn_down=q6_k'; the first match wins."),
        click.option("--imatrix", type=click.Path(path_type=Path), help="Importance matrix, from `slm imatrix`."),
    ):  # fmt: skip
        command = option(command)
    return command


def options_from(
    imatrix: Path | None, tensor_types: tuple[str, ...], embedding: str | None, head: str | None, threads: int = 0
) -> Any:
    """`convert.quantize.quantize.QuantizeOptions` of the command line's values."""
    from convert.quantize.quantize import QuantizeOptions

    pairs = []
    for given in tensor_types:
        pattern, sign, kind = given.rpartition("=")
        if not sign or not pattern or not kind:
            raise click.BadParameter(f"'{given}' is not REGEX=TYPE", param_hint="--tensor-type")
        pairs.append((pattern, kind))
    return QuantizeOptions(imatrix, tuple(pairs), embedding, head, threads)


def show_file(result: dict[str, Any]) -> None:
    """One line about a written file, and notes on what did not come out as its type's name says."""
    types = ", ".join(f"{count} {name}" for name, count in result["tensor_types"].items())
    source = f" (from {result['source_bytes'] / 1e6:,.1f} MB)" if "source_bytes" in result else ""
    click.echo(f"{result['file']}  {result['size_bytes'] / 1e6:,.1f} MB{source}  {types}")
    if result["fallbacks"]:
        given = ", ".join(f"{count} {name}" for name, count in result["fallbacks"].items())
        note(f"note: rows of {sum(result['fallbacks'].values())} matrices are not whole blocks of the type meant "
             f"for them in {result['type']}; they got: {given}")  # fmt: skip


@click.command("quantize", context_settings=_SETTINGS)
@click.argument("gguf", type=click.Path(path_type=Path))
@_OUT
@click.option("-t", "--type", "types", multiple=True, required=True,
              help="q4_0, q4_k_m, iq4_xs ...; may be repeated, OUT is then a folder.")  # fmt: skip
@quantize_options
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Default: all.")
@_JSON
def quantize(gguf: Path, target: Path, types: tuple[str, ...], imatrix: Path | None, tensor_types: tuple[str, ...],
             embedding: str | None, head: str | None, threads: int, as_json: bool) -> None:  # fmt: skip
    """Quantize a float GGUF model, to one type or to several.

    \b
    Example:
      slm quantize model-f16.gguf -o model-q4_0.gguf --type q4_0
      slm quantize model-f16.gguf -o ladder --type q4_k_m --type iq4_xs --imatrix imatrix.gguf
      slm quantize model-f16.gguf -o mixed.gguf --type q4_k_m --tensor-type 'ffn_down=q6_k'
    """
    from convert.quantize.quantize import quantize_ladder

    results = quantize_ladder(gguf, target, types, options_from(imatrix, tensor_types, embedding, head, threads))
    if as_json:
        emit_json(results[0] if len(types) == 1 else {"files": results})
        return
    for result in results:
        show_file(result)


@click.command("imatrix", context_settings=_SETTINGS)
@click.argument("gguf", type=click.Path(path_type=Path))
@click.option("--text", "texts", type=LANG_FILE, multiple=True, required=True,
              help="Text of a language; may be repeated, also for one language.")  # fmt: skip
@_OUT
@click.option("--share", "shares", type=LANG_PART, multiple=True,
              help="A language's part of the whole. Default: equal parts, whatever the texts' lengths.")  # fmt: skip
@click.option("--chunks", type=click.IntRange(min=1), help="At most so many chunks a language.")
@click.option("--context", type=int, default=512, show_default=True, help="Tokens a chunk.")
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Default: physical cores.")
@_JSON
def imatrix(gguf: Path, texts: tuple[tuple[str, Path], ...], target: Path, shares: tuple[tuple[str, float], ...],
            chunks: int | None, context: int, threads: int, as_json: bool) -> None:  # fmt: skip
    """Collect an importance matrix of a float (or q8_0) model over texts, each language weighing the same.

    \b
    Example:
      slm imatrix model-f16.gguf --text en=manual.txt --text ja=tebiki.txt -o imatrix.gguf
      slm imatrix model-f16.gguf --text en=en.txt --text ja=ja.txt --share ja=0.7 -o imatrix.gguf
    """
    from convert.quantize.imatrix import collect_imatrix

    result = collect_imatrix(
        gguf, all_of_each(texts), target, shares=one_of_each(shares), chunks=chunks, context=context, threads=threads
    )
    if as_json:
        emit_json(result)
        return
    click.echo(
        f"{result['file']}  {result['weights']} weights, {result['chunks']} chunks of {result['context']} tokens"
    )
    for lang, figures in result["by_language"].items():
        click.echo(f"  {lang}: {figures['tokens']:,} tokens, share {figures['share']:.2f}")
