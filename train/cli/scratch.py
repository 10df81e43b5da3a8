"""The commands `slm train tokenizer` and `slm train scratch`. It knows nothing of how they do it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slm.joints import Joints, pass_joints
from slm.terminal.arguments import FLOAT, LANG_FILE, all_of_each
from train.cli.options import HELP, JSON, OUTPUT, PATH, RUN_OPTIONS, with_options
from train.run.schedule import SCHEDULES
from train.scratch.config import OPTIMIZERS, ScratchOptions
from train.scratch.sizes import SIZES

if TYPE_CHECKING:
    from train.tokenizer.learn import Trained

_KNOWN = ("smollm2-135m-instruct", "gemma-3-270m")  # one tokenizer made for English, one for all languages
_DEFAULT = {name: entry.default for name, entry in ScratchOptions.__dataclass_fields__.items()}


@click.command(context_settings=HELP)
@click.option("--text", "texts", type=LANG_FILE, multiple=True, required=True, help="Text or JSONL; repeatable.")
@click.option("--vocab-size", required=True, type=int, help="Tokens in all, special ones and 256 bytes included.")
@OUTPUT
@click.option(
    "--temperature",
    type=FLOAT,
    default=3.0,
    show_default=True,
    help="T of the languages' shares, p ~ bytes^(1/T); 1: as it is.",
)
@click.option(
    "--parallel", type=LANG_FILE, multiple=True, help="Translations line by line, one file each of two languages."
)
@click.option("--balance", is_flag=True, help="Search for shares that give --parallel equally many tokens.")
@click.option(
    "--beside",
    multiple=True,
    help=f"Folder or model to compare with; repeatable.  [default: {' and '.join(_KNOWN)}, if pulled]",
)
@click.option(
    "--eval-fraction", type=FLOAT, default=0.02, show_default=True, help="Share of the text held out for the figures."
)
@click.option(
    "--coverage", type=FLOAT, default=0.9995, show_default=True, help="Share of characters that are pieces, not bytes."
)
@click.option("--sample-mb", type=FLOAT, default=10.0, show_default=True, help="Text to learn from at most, in MB.")
@click.option("--seed", default=0, show_default=True, help="Of the sampling and the held-out text.")
@JSON
@pass_joints
def tokenizer(
    joints: Joints,
    /,
    texts: tuple[tuple[str, Path], ...],
    vocab_size: int,
    output: Path,
    temperature: float,
    parallel: tuple[tuple[str, Path], ...],
    balance: bool,
    beside: tuple[str, ...],
    as_json: bool,
    **values: Any,
) -> None:
    """Train a SentencePiece BPE tokenizer on several languages.

    The figures are those of held-out text, each language apart.

    \b
    Example:
      slm train tokenizer --text en=data/en.txt --text ja=data/ja.txt --vocab-size 1500 --eval-fraction 0.1 \\
        -o exports/tokenizer
    """
    if balance and not parallel:
        raise click.UsageError("--balance needs --parallel.")
    from slm.artifacts import new_folder, sha256_file
    from train.tokenizer.learn import TokenizerOptions, read_parallel, train, write_tokenizer
    from train.tokenizer.report import report

    options = TokenizerOptions(
        text=all_of_each(texts),
        vocab_size=vocab_size,
        output=output,
        temperature=temperature,
        parallel=all_of_each(parallel) if parallel else None,
        **values,
    )
    lines = read_parallel(options.parallel) if options.parallel else None
    others = compared(joints, beside)
    with new_folder(output, "tokenizer") as (folder, manifest):
        trained = train(options, lines if balance else None)
        made = write_tokenizer(trained.model, folder)
        figures = report(made, options, others, lines)
        manifest.update(
            shares=trained.shares,
            text=[
                {"lang": lang, "file": str(path), "sha256": sha256_file(path)}
                for lang, paths in options.text.items()
                for path in paths
            ],
            figures=figures,
        )
    _show_tokenizer(output, trained, figures, as_json=as_json)


def compared(joints: Joints, wanted: tuple[str, ...]) -> dict[str, Path]:
    """Folders of tokenizers by the name to show: those asked for, else the known ones that are here."""
    if wanted:
        return {Path(name).name: joints.checkpoint_of(name) for name in wanted}
    from slm.models.catalog import find_pulled
    from slm.terminal.console import note

    missing = [name for name in _KNOWN if find_pulled(name) is None]
    if missing:
        note(f"to be compared with known tokenizers as well: slm pull {missing[0]}")
    return {name: joints.checkpoint_of(name) for name in _KNOWN if name not in missing}


def _show_tokenizer(output: Path, trained: Trained, figures: dict[str, Any], *, as_json: bool) -> None:
    from slm.terminal.console import emit_json, note, out

    if as_json:
        emit_json({"output": str(output), "shares": trained.shares, "training_bytes": trained.sizes, **figures})
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for name in ("tokenizer", "lang", "B/token", "chars/tok", "fertility", "unknown", "partial", "tok/sent"):
        table.add_column(name, justify="left" if name in ("tokenizer", "lang") else "right")
    for name, one in figures["tokenizers"].items():
        for lang, value in one["by_language"].items():
            sentence = one["tokens_per_parallel_sentence"].get(lang)
            table.add_row(
                name, lang, f"{value['bytes_per_token']:.2f}", f"{value['characters_per_token']:.2f}",
                f"{value['fertility']:.2f}", f"{value['unknown_rate']:.1%}", f"{value['partial_rate']:.1%}",
                "-" if sentence is None else f"{sentence:.1f}",
            )  # fmt: skip
    out().print(table)
    note("fertility: tokens a word; in languages without spaces, tokens a character")
    note("shares of the training text: " + ", ".join(f"{share:.1%} {lang}" for lang, share in trained.shares.items()))
    click.echo(str(output))


_SCRATCH_OPTIONS = [
    click.option("--tokenizer", type=PATH, help="Tokenizer folder (slm train tokenizer)."),
    click.option("--size", type=click.Choice(list(SIZES)), help="A named size, by all its parameters."),
    click.option("--config", type=PATH, help="JSON file with a llama's settings, instead of --size."),
    click.option("--init", help="Go on with a trained model instead: folder, catalog name or GGUF file."),
    click.option("--eval-data", type=LANG_FILE, multiple=True, help="Held-out text of your own; repeatable."),
    click.option("--eval-fraction", type=FLOAT, help="Share of the text that is held out."),
    click.option("--context", type=int, help="Tokens of a window."),
    click.option("--batch-size", type=int, help="Windows in one step."),
    click.option("--optimizer", type=click.Choice(OPTIMIZERS), help="Muon for the hidden matrices, or AdamW for all."),
    click.option("--lr", "learning_rate", type=FLOAT, help="Peak learning rate; 0: the optimizer's own."),
    click.option("--schedule", type=click.Choice(SCHEDULES), help="wsd: warm-up, stable, decay."),
    click.option("--weight-decay", type=FLOAT, help="Of the hidden matrices."),
    click.option("--clip", type=FLOAT, help="Longest gradient."),
    click.option("--max-tokens", type=int, help="Tokens instead of --epochs; 0: by epochs."),
    click.option("--evaluations", type=int, help="Measurements of the held-out text over the run."),
    click.option("--samples/--no-samples", help="Show what the model writes at each measurement."),
    *RUN_OPTIONS,
    click.option("--plot", type=PATH, help="Write the loss curve to this PNG file."),
]


@click.command(context_settings=HELP)
@click.option("--data", required=True, type=LANG_FILE, multiple=True, help="Text or JSONL; repeatable.")
@OUTPUT
@partial(with_options, options=_SCRATCH_OPTIONS, defaults=_DEFAULT)
@JSON
@pass_joints
def scratch(
    joints: Joints,
    /,
    data: tuple[tuple[str, Path], ...],
    output: Path,
    init: str | None,
    eval_data: tuple[tuple[str, Path], ...],
    as_json: bool,
    **values: Any,
) -> None:
    """Train every weight of a model on text: a new llama-shaped one, or further on with --init.

    \b
    Example:
      slm train scratch --tokenizer exports/tokenizer --size 5m --data en=en.jsonl --data ja=ja.jsonl -o exports/5m
    """
    options = ScratchOptions(
        data=all_of_each(data),
        output=output,
        init=joints.checkpoint_of(init) if init is not None else None,
        eval_data=all_of_each(eval_data),
        **values,
    )
    if options.plot is not None:
        from train.run.pictures import require_matplotlib

        require_matplotlib()
    from slm.terminal.console import emit_json, note, out
    from train.scratch.run import train_scratch

    result = train_scratch(options)
    if as_json:
        emit_json(result.as_json())
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("language", "held-out bytes", "bits per byte before", "after"):
        table.add_column(column, justify="left" if column == "language" else "right")
    for lang, value in result.bits_per_byte.items():
        size, before = result.held_out_bytes[lang], result.bits_per_byte_before[lang]
        table.add_row(lang, f"{size:,}", f"{before:.3f}", f"{value:.3f}")
    out().print(table)
    note(
        f"{result.tokens:,} tokens in {result.seconds:.0f} s, {result.tokens_per_s:,.0f} tok/s, {result.dtype}, peak"
        f" {result.peak_rss_mb:,.0f} MB"
    )
    click.echo(str(result.output))
