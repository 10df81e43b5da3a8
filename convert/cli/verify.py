"""The command verify: how a comparison is shown, not how it is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from slm.errors import InputError
from slm.joints import Joints, pass_joints
from slm.terminal.arguments import FLOAT, LANG_FILE, one_of_each
from slm.terminal.console import emit_json, out

# Title, key of the figures, format.
_COLUMNS = (
    ("tokens", "tokens", "d"), ("KL", "mean_kl_divergence", ".1e"), ("p99", "p99_kl_divergence", ".1e"),
    ("top-1", "top1_agreement", ".3f"), ("ppl.", "perplexity", ".4g"), ("(ref.)", "reference_perplexity", ".4g"),
    ("bits/B", "bits_per_byte", ".3f"), ("(ref.)", "reference_bits_per_byte", ".3f"),
    ("max diff", "max_relative_difference", ".1e"),
)  # fmt: skip
_EMBEDDER_COLUMNS = (
    ("texts", "texts", "d"), ("tokens", "tokens", "d"), ("min cosine", "min_cosine", ".6f"),
    ("mean cosine", "mean_cosine", ".6f"), ("max diff", "max_relative_difference", ".1e"),
)  # fmt: skip


@click.command("verify", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("candidate", type=click.Path(path_type=Path))
@click.option("--against", required=True, help="A checkpoint folder, a catalog name or a GGUF file.")
@click.option("--adapter", type=click.Path(path_type=Path), help="An adapter GGUF on the candidate.")
@click.option("--peft", type=click.Path(path_type=Path), help="The PEFT folder that the adapter came from.")
@click.option(
    "--text", "texts", type=LANG_FILE, multiple=True, help="Text to measure on. Default: English and Japanese."
)
@click.option("--max-tokens", default=1024, show_default=True, type=click.IntRange(0), help="Of each; 0: all.")
@click.option(
    "--bound",
    "bound_texts",
    multiple=True,
    metavar="MEASURE=N[,LANG]",
    help="kld, p99, top1, ppl or bpb, in LANG or in each; may be repeated.",
)
@click.option("--max-relative", type=FLOAT, help="Bound on max |difference| / max |logit|.")
@click.option("--min-top1", type=FLOAT, help="Bound on top-1 agreement, 0 to 1.")
@click.option("--max-kl", type=FLOAT, help="Bound on the mean KL divergence, nats.")
@click.option("--min-cosine", type=FLOAT, help="For embedders: bound on the smallest cosine of two embeddings.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@pass_joints
def verify(
    joints: Joints,
    candidate: Path,
    against: str,
    adapter: Path | None,
    peft: Path | None,
    texts: tuple[tuple[str, Path], ...],
    max_tokens: int,
    bound_texts: tuple[str, ...],
    max_relative: float | None,
    min_top1: float | None,
    max_kl: float | None,
    min_cosine: float | None,
    as_json: bool,
) -> None:
    """Compare a GGUF with its reference: token ids, logits, KL divergence by language. Exit 1 beyond a bound.

    Of an embedder the embeddings are compared. The bounds' defaults follow the file's tensor types: tight for floats,
    wider for quantized ones.

    \b
    Example:
      slm verify model-q4_k_m.gguf --against model-f16.gguf --bound kld=0.05,ja
      slm verify model-q8_0.gguf --against ./my-model --text ja=novel.txt
      slm verify model-f16.gguf --against ./my-model --adapter en.gguf --peft adapters/en_lora
    """
    from convert.quality.bounds import LANGUAGE_MEASURES, parse_bound
    from convert.quality.verify import Bounds, bounds_for, is_language_model, verify_model
    from slm.models.model_argument import is_model_folder
    from slm.weights.gguf_reader import read_gguf

    file = read_gguf(candidate)
    here = Path(against)
    reference = here if here.is_file() or is_model_folder(here) else joints.checkpoint_of(against)
    if not file.is_adapter and not is_language_model(file):
        if adapter or peft or bound_texts or min_top1 is not None or max_kl is not None:
            raise InputError(
                f"'{candidate}' is an embedder: it has no next-token distribution and takes no adapter here",
                hint="Its bounds are --min-cosine and --max-relative.",
            )
        _finish(_verify_embedder(candidate, reference, texts, max_tokens, min_cosine, max_relative), as_json)
        return
    if min_cosine is not None:
        raise InputError("--min-cosine is for embedders", found=f"'{candidate}' predicts tokens")
    default = bounds_for(file)[1]
    bounds = Bounds(
        default.relative if max_relative is None else max_relative,
        default.top1 if min_top1 is None else min_top1,
        default.kl if max_kl is None else max_kl,
        tuple(parse_bound(text, tuple(LANGUAGE_MEASURES)) for text in bound_texts),
    )
    result = verify_model(
        candidate, reference, adapter=adapter, peft=peft, texts=one_of_each(texts), bounds=bounds,
        max_tokens=max_tokens,
    )  # fmt: skip
    _finish(result, as_json)


def _verify_embedder(
    candidate: Path,
    reference: Path,
    texts: tuple[tuple[str, Path], ...],
    max_tokens: int,
    min_cosine: float | None,
    max_relative: float | None,
) -> dict[str, Any]:
    from convert.quality.verify_embeddings import EmbeddingBounds, default_bounds, verify_embedder
    from slm.weights.gguf_reader import read_gguf

    default = default_bounds(read_gguf(candidate))[1]
    bounds = EmbeddingBounds(
        default.cosine if min_cosine is None else min_cosine,
        default.relative if max_relative is None else max_relative,
    )
    return verify_embedder(candidate, reference, texts=one_of_each(texts), bounds=bounds, max_tokens=max_tokens)


def _finish(result: dict[str, Any], as_json: bool) -> None:
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
    columns = _COLUMNS if "top1_agreement" in result["overall"] else _EMBEDDER_COLUMNS
    table = Table("text", *(title for title, _, _ in columns), box=None, pad_edge=False, collapse_padding=True)
    for name, figures in [*result["by_language"].items(), ("all", result["overall"])]:
        cells = [(figures[key], form) for _, key, form in columns]
        table.add_row(name, *("-" if value is None else format(value, form) for value, form in cells))
    out().print(table)
    for sentence in result["broken"]:
        click.secho(f"beyond its bound: {sentence}", fg="red", err=True)
    if result["ok"]:
        click.echo(f"ok: within the bounds for {result['bounds_for']}")
