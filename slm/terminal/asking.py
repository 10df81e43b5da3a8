"""What the commands that answer from documents share: who reads the passages, and when it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click

from slm.joints import Joints, Reader
from slm.terminal.arguments import FLOAT

_OPTIONS = (
    click.option(
        "--reader", default="auto", show_default=True, metavar="auto|point|model|FOLDER",
        help="Who answers: a reader that points at lines (auto: where its weights are here), or the model.",
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


def reader_for(joints: Joints, wanted: str, refuse_at: float | None) -> Reader | None:
    """Who reads documents, None where the model itself answers. Raises click.BadParameter, and what joints raise."""
    _check_doubt(refuse_at)
    reader = joints.reader_of(wanted)
    if refuse_at is not None:
        if reader is None:
            raise click.BadParameter("there is no reader that could refuse", param_hint="--refuse-at")
        reader = replace(reader, refuse_at={"": refuse_at})
    return reader


def reader_of_index(joints: Joints, index: str | None, wanted: str, refuse_at: float | None) -> Reader | None:
    """`reader_for` a command whose --rag INDEX may be missing: then there is nothing to read."""
    check_reading(index, wanted, refuse_at)
    return reader_for(joints, wanted, refuse_at) if index is not None else None


def ranking_reader(joints: Joints, wanted: str | None) -> Reader | None:
    """Who ranks what was found, where that is asked for. Raises click.BadParameter, and what joints raise."""
    if wanted in ("auto", "model"):
        raise click.BadParameter(f"'{wanted}' is no reader: point, or a reader's folder", param_hint="--rerank")
    return joints.reader_of(wanted) if wanted is not None else None


def check_reading(index: str | None, wanted: str, refuse_at: float | None) -> None:
    """Raise click.BadParameter for what says how documents are read where there are none, or is no doubt."""
    _check_doubt(refuse_at)
    for name, given in (("--reader", wanted != "auto"), ("--refuse-at", refuse_at is not None)):
        if given and index is None:
            raise click.BadParameter("it reads documents: name their index with --rag INDEX", param_hint=name)


def _check_doubt(refuse_at: float | None) -> None:
    if refuse_at is not None and not 0.0 <= refuse_at <= 1.0:
        raise click.BadParameter(f"{refuse_at:g} is not from 0 to 1", param_hint="--refuse-at")


def nobody_answers() -> click.UsageError:
    """There is neither a reader nor a model."""
    return click.UsageError("no reader answers, so a model has to: name one with --model")
