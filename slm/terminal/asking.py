"""What the commands that answer from documents share: who reads the passages, and when it refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from slm.errors import InputError
from slm.joints import Joints, Judge, LineScorer, PieceScores, Reader
from slm.terminal.arguments import FLOAT

_OPTIONS = (
    click.option(
        "--reader", default="auto", show_default=True, metavar="auto|point|model|FOLDER",
        help="Who answers: a reader that points at lines (auto: where one is there for the model), or the model.",
    ),
    click.option(
        "--refuse-at", type=FLOAT, metavar="P",
        help="Doubt from which on the reader refuses: 0 always, 1 almost never [default: as fitted, by language].",
    ),
)  # fmt: skip


def with_reader(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `reader` and `refuse_at`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def reader_for(joints: Joints, model: str, wanted: str, refuse_at: float | None) -> Reader | None:
    """Who reads for a model, None where the model itself answers. Raises click.BadParameter, and what joints raise."""
    if refuse_at is not None and not 0.0 <= refuse_at <= 1.0:
        raise click.BadParameter(f"{refuse_at:g} is not from 0 to 1", param_hint="--refuse-at")
    reader = joints.reader_of(model, wanted)
    if refuse_at is not None:
        if reader is None:
            raise click.BadParameter("there is no reader that could refuse", param_hint="--refuse-at")
        reader = replace(reader, refuse_at={"": refuse_at})
    return reader


def reader_of_index(
    joints: Joints, model: str, index: str | None, wanted: str, refuse_at: float | None
) -> Reader | None:
    """`reader_for` a command whose --rag INDEX may be missing: then there is nothing to read."""
    if index is not None:
        return reader_for(joints, model, wanted, refuse_at)
    for name, given in (("--reader", wanted != "auto"), ("--refuse-at", refuse_at is not None)):
        if given:
            raise click.BadParameter("it reads documents: name their index with --rag INDEX", param_hint=name)
    return None


def adapter_of(reader: Reader | None) -> dict[str, Path]:
    """The reader's adapter by its name, for opening an engine."""
    return {reader.name: reader.adapter} if reader else {}


def beside(adapters: Mapping[str, Path], reader: Reader | None) -> dict[str, Path]:
    """The user's adapters and the reader's. Raises InputError for an adapter of the reader's name."""
    if reader and reader.name in adapters:
        raise InputError(
            f"'{reader.name}' is the reader's name, and that of the adapter '{adapters[reader.name]}'",
            hint=f"Give the adapter another name: --adapter NAME={adapters[reader.name]}",
        )
    return {**adapters, **adapter_of(reader)}


def judge_of(scorer: LineScorer, reader: Reader, on_read: Callable[[PieceScores], object] = lambda _: None) -> Judge:
    """The reader at work in a model that has its adapter. on_read: is given what each reading took."""

    def judge(prompts: Sequence[Sequence[str]]) -> list[list[float]]:
        read = scorer.scores(prompts, reader.contrast, adapter=reader.name)
        on_read(read)
        return read.scores

    return judge
