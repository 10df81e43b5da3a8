"""What a command gets of other rooms: from the roof all of it, without the roof an error that says so."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import slm_cli
from slm.joints import Joints, pass_joints

DOORS: dict[str, tuple[Any, ...]] = {
    "open_engine": (Path("m.gguf"), {}),
    "open_retriever": ("handbook",),
    "reader_of": ("auto",),
    "checkpoint_of": ("model",),
    "adapter_of": (Path("adapter"), Path("base")),
    "gguf_of": ("model",),
    "adapter_gguf_of": (Path("adapter"), "model"),
    "converter": (),
    "index_states": (),
}


@pytest.mark.parametrize("door", DOORS)
def test_a_command_without_the_roof_says_that_it_has_none_when_it_needs_another_room(door: str) -> None:
    @click.command()
    @pass_joints
    def command(joints: Joints) -> None:
        getattr(joints, door)(*DOORS[door])

    with pytest.raises(RuntimeError, match="without the roof; run it through `slm`"):
        CliRunner().invoke(command, catch_exceptions=False)


def test_a_command_without_the_roof_runs_while_it_needs_no_other_room() -> None:
    @click.command()
    @click.argument("word")
    @pass_joints
    def command(joints: Joints, word: str) -> None:
        """Says a word."""
        click.echo(word)

    assert CliRunner().invoke(command, ["hello"], catch_exceptions=False).stdout == "hello\n"
    assert command.help == "Says a word."


def test_the_roof_has_every_door_with_the_signature_that_rooms_call() -> None:
    doors = {name: door for name, door in vars(Joints).items() if inspect.isfunction(door) and not name.startswith("_")}
    assert set(doors) == set(DOORS)
    for name, door in doors.items():
        own = vars(slm_cli.Roof)[name]
        assert inspect.signature(own) == inspect.signature(door)
