"""The command evaluate: losses on texts, or answers that rules can judge. It is how figures are shown, no more."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slm.joints import Joints, pass_joints
from slm.terminal.arguments import LANG_FILE, Named, all_of_each, typed
from train.cli.options import HELP, JSON
from train.cli.process import prepare_process

if TYPE_CHECKING:
    from train.measure.answers.counts import JudgedAnswer
    from train.measure.answers.items import ChatItem
    from train.measure.evaluate import LanguageFigures

_BASE, _ADAPTER = "base", "adapter"  # what MODEL and --adapter are called beside others
_CONTEXT = 4096
_TEXT_ONLY, _CHAT_ONLY = ("context", "stride"), ("beside", "items", "max_tokens", "misses")


@click.command(context_settings=HELP)
@click.argument("model")
@click.option("--adapter", type=click.Path(path_type=Path), help="PEFT folder or GGUF file.")
@click.option("--text", "texts", type=LANG_FILE, multiple=True, help="Measure losses on this text. Repeatable.")
@click.option("--context", type=click.IntRange(2, 2048), default=512, show_default=True, help="Tokens of a window.")
@click.option("--stride", type=click.IntRange(0), default=0,
              help="Tokens that a window predicts, the others being context; 0: all that fit.")  # fmt: skip
@click.option("--chat", type=click.Path(path_type=Path), help="Count right answers to the items of this JSONL file.")
@click.option("--beside", type=Named("NAME=MODEL", "merged=exports/ja-merged", click.STRING), multiple=True,
              help="With --chat: another model, asked the same. Repeatable.")  # fmt: skip
@click.option("--items", type=click.IntRange(0), default=0, help="With --chat: so many of each kind.  [default: all]")
@click.option("--max-tokens", type=click.IntRange(1), default=128, show_default=True, help="With --chat: of an answer.")
@click.option("--misses", type=click.IntRange(0), default=0, help="With --chat: show so many wrong answers of each.")
@JSON
@pass_joints
def evaluate(
    joints: Joints, /, model: str, adapter: Path | None, texts: tuple[tuple[str, Path], ...], context: int, stride: int,
    chat: Path | None, beside: tuple[tuple[str, str], ...], items: int, max_tokens: int, misses: int, as_json: bool,
) -> None:  # fmt: skip
    """Loss, perplexity and bits per byte of MODEL (checkpoint folder, GGUF file or catalog name), by language.

    With --chat: how many answers are right, judged by rules, of MODEL without and with the adapter and of models beside
    it. They are asked as GGUF files; a checkpoint folder is converted to q8_0 once.

    \b
    Example:
      slm evaluate gemma-3-270m --text en=data/en.txt --text ja=data/ja.txt
      slm evaluate gemma-3-270m --adapter adapters/ja --beside merged=exports/ja-merged --chat data/eval.jsonl
    """
    _check_options(chat is not None, bool(texts))
    if chat is not None:
        from train.measure.answers.items import first_of_each, read_items

        chosen = first_of_each(read_items(chat), items)
        evaluate_chat(
            joints, _asked(joints, model, adapter, beside), chosen, ChatSettings(chat, max_tokens, misses, as_json)
        )
        return
    prepare_process()
    from train.measure.evaluate import evaluate_texts

    path = Path(model)
    if not path.is_file():
        path = joints.checkpoint_of(model)
        adapter = adapter and joints.adapter_of(adapter, path)
    elif adapter is not None and adapter.is_dir():
        adapter = joints.adapter_gguf_of(adapter, model)
    show_evaluation(evaluate_texts(path, all_of_each(texts), adapter, context=context, stride=stride), as_json=as_json)


def _check_options(chat: bool, text: bool) -> None:
    """One of --text and --chat, and of the other options those that mean something with it."""
    context = click.get_current_context()
    if chat == text:
        raise click.UsageError("Give --text LANG=FILE for losses, or --chat FILE for answers; one of the two.", context)
    for name, option in typed().items():
        if name in (_TEXT_ONLY if chat else _CHAT_ONLY):
            raise click.UsageError(f"{option} means nothing with {'--chat' if chat else '--text'}.", context)


@dataclass(frozen=True)
class ChatSettings:
    """What a chat evaluation is asked: the items' file, tokens of an answer, wrong answers to show, the form."""

    file: Path
    max_tokens: int
    misses: int
    as_json: bool


@dataclass(frozen=True)
class AskedModel:
    """A GGUF file that is asked, and the name it is shown under; its adapter is asked as well. called: what the file is
    to a reader of the result, who has not seen the folder of files that were converted for once."""

    file: Path
    name: str
    called: str
    adapter: Path | None = None

    @classmethod
    def of(cls, joints: Joints, model: str, name: str, adapter: Path | None = None) -> AskedModel:
        """What MODEL of the command line is: a file, a name, or a checkpoint, which is asked as a file made of it."""
        file, folder = joints.gguf_of(model), Path(model)
        form = file.stem.rpartition(".")[2]
        return cls(file, name, f"{folder.resolve().name} in {form}" if folder.is_dir() else file.name, adapter)


def _asked(joints: Joints, model: str, adapter: Path | None, beside: Sequence[tuple[str, str]]) -> list[AskedModel]:
    from slm.errors import InputError
    from slm.terminal.arguments import one_of_each

    others = one_of_each(beside)
    if taken := {_BASE, _ADAPTER} & set(others):
        raise InputError(
            f"--beside {taken.pop()}=... has a name that MODEL and --adapter have", hint="Give it another one."
        )
    converted = adapter
    if adapter is not None and adapter.is_dir():
        converted = joints.adapter_gguf_of(adapter, model)
    asked = [AskedModel.of(joints, model, _BASE, converted)]
    return asked + [AskedModel.of(joints, other, name) for name, other in others.items()]


def evaluate_chat(
    joints: Joints, models: Sequence[AskedModel], items: Sequence[ChatItem], settings: ChatSettings
) -> None:
    """Ask every model all items, and show the counts side by side."""
    from slm.artifacts import sha256_file
    from slm.terminal.console import emit_json, progress
    from train.measure.answers.ask import ask, result_of

    results: list[dict[str, Any]] = []
    asked: list[tuple[str, Sequence[JudgedAnswer]]] = []
    for one in models:
        adapters = {_ADAPTER: one.adapter} if one.adapter is not None else {}
        with joints.open_engine(one.file, adapters, context=_CONTEXT) as engine:
            for name, adapter in [(one.name, None), *((_ADAPTER, _ADAPTER) for _ in adapters)]:
                started = time.monotonic()
                with progress(f"asking {name}", total=len(items), unit="items") as show:
                    answers = ask(engine, items, adapter, settings.max_tokens, show)
                seconds = time.monotonic() - started
                results.append(
                    result_of(name, one.file, one.called, one.adapter if adapter else None, answers, seconds)
                )
                asked.append((name, answers))
    if settings.as_json:
        file = {"file": settings.file.name, "sha256": sha256_file(settings.file), "items": len(items)}
        emit_json({"chat": {**file, "max_tokens": settings.max_tokens, "models": results}})
        return
    _show_chat(asked, results, settings)


def _show_chat(
    asked: Sequence[tuple[str, Sequence[JudgedAnswer]]], results: Sequence[dict[str, Any]], settings: ChatSettings
) -> None:
    from rich.table import Table

    from slm.terminal.console import out
    from train.measure.answers.ask import rows

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("language", "kind", *(name for name, _ in asked)):
        table.add_column(column, justify="left" if column in ("language", "kind") else "right", no_wrap=True)
    for row in rows(asked):
        table.add_row(*row)
    out().print(table)
    click.echo("right answers of all; in brackets the 95 % range of their share (Wilson)")
    for result in results:
        adapter = f" with {result['adapter']}" if result["adapter"] else ""
        size = f"{result['size_bytes'] / 1e6:,.0f} MB"
        click.echo(f"{result['name']}: {result['file']}{adapter}, {size}, {result['seconds']:.0f} s")
    for name, answers in asked:
        for wrong in [one for one in answers if not one.is_right][: settings.misses]:
            asks = wrong.item.messages[-1]["content"]
            click.echo(f"\n{name}, {wrong.item.id}: breaks {', '.join(wrong.broken)}\n  {asks!r}\n  {wrong.answer!r}")


def show_evaluation(figures: dict[str, LanguageFigures], *, as_json: bool) -> None:
    """The figures by language on stdout."""
    from slm.terminal.console import emit_json, out

    if as_json:
        emit_json({"by_language": {lang: value.as_json() for lang, value in figures.items()}})
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("language", "tokens", "loss", "perplexity", "bits per byte"):
        table.add_column(column, justify="left" if column == "language" else "right")
    for lang, value in figures.items():
        row = (f"{value.tokens:,}", f"{value.loss:.3f}", f"{value.perplexity:.2f}", f"{value.bits_per_byte:.3f}")
        table.add_row(lang, *row)
    out().print(table)
