"""The command verify: how a comparison is shown, not how it is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from convert.cli_texts import text_file_of_each
from slm.console import emit_json, out
from slm.joints import Joints, pass_joints


@click.command("verify", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("candidate", type=click.Path(path_type=Path))
@click.option("--against", required=True, help="A checkpoint folder, a catalog name or a GGUF file.")
@click.option("--adapter", type=click.Path(path_type=Path), help="An adapter GGUF on the candidate.")
@click.option("--peft", type=click.Path(path_type=Path), help="The PEFT folder that the adapter came from.")
@click.option(
    "--text", "texts", multiple=True, metavar="LANG=FILE", help="Text to measure on. Default: English and Japanese."
)
@click.option("--max-tokens", default=1024, show_default=True, type=click.IntRange(0), help="Of each; 0: all.")
@click.option(
    "--bound",
    "bound_texts",
    multiple=True,
    metavar="MEASURE=N[,LANG]",
    help="kld, p99, top1, ppl or bpb, in LANG or in each; may be repeated.",
)
@click.option("--max-relative", type=float, help="Bound on max |difference| / max |logit|.")
@click.option("--min-top1", type=float, help="Bound on top-1 agreement, 0 to 1.")
@click.option("--max-kl", type=float, help="Bound on the mean KL divergence, nats.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@pass_joints
def verify(
    joints: Joints,
    candidate: Path,
    against: str,
    adapter: Path | None,
    peft: Path | None,
    texts: tuple[str, ...],
    max_tokens: int,
    bound_texts: tuple[str, ...],
    max_relative: float | None,
    min_top1: float | None,
    max_kl: float | None,
    as_json: bool,
) -> None:
    """Compare a GGUF with its reference: token ids, logits, KL divergence by language. Exit 1 beyond a bound.

    The bounds' defaults follow the file's tensor types: tight for floats, wider for quantized ones.

    \b
    Example:
      slm verify model-q4_k_m.gguf --against model-f16.gguf --bound kld=0.05,ja
      slm verify model-q8_0.gguf --against ./my-model --text ja=novel.txt
      slm verify model-f16.gguf --against ./my-model --adapter en.gguf --peft adapters/en_lora
    """
    from convert.quality.bounds import LANGUAGE_MEASURES, parse_bound
    from convert.verify import Bounds, bounds_for, verify_model
    from slm.gguf_reader import read_gguf

    by_language = [parse_bound(text, tuple(LANGUAGE_MEASURES)) for text in bound_texts]
    default = bounds_for(read_gguf(candidate))[1]
    bounds = Bounds(
        default.relative if max_relative is None else max_relative,
        default.top1 if min_top1 is None else min_top1,
        default.kl if max_kl is None else max_kl,
    )
    reference = Path(against) if Path(against).exists() else joints.checkpoint_of(against)
    result = verify_model(
        candidate, reference, adapter=adapter, peft=peft, texts=text_file_of_each(texts), bounds=bounds,
        by_language_bounds=by_language, max_tokens=max_tokens,
    )  # fmt: skip
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
    table = Table("text", "tokens", "KL", "p99", "top-1", "ppl.", "(ref.)", "bits/B", "(ref.)", "max diff",
                  box=None, pad_edge=False,
        collapse_padding=True)  # fmt: skip
    for name, figures in [*result["by_language"].items(), ("all", result["overall"])]:
        table.add_row(name, str(figures["tokens"]), *_cells(figures))
    out().print(table)
    for sentence in result["broken"]:
        click.secho(f"beyond its bound: {sentence}", fg="red", err=True)
    if result["ok"]:
        click.echo(f"ok: within the bounds for {result['bounds_for']}")


def _cells(figures: dict[str, Any]) -> list[str]:
    forms = {"mean_kl_divergence": ".1e", "p99_kl_divergence": ".1e", "top1_agreement": ".3f", "perplexity": ".4g",
             "reference_perplexity": ".4g", "bits_per_byte": ".3f", "reference_bits_per_byte": ".3f",
             "max_relative_difference": ".1e"}  # fmt: skip
    return ["-" if figures[key] is None else format(figures[key], form) for key, form in forms.items()]
