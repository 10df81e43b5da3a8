"""How long commands take until a person can go on: ours beside `llm` and `llama-cli`, in turns.

A command that prints is timed to its end, a chat to the first sign of its prompt on a terminal (a PTY). Nothing is
warm but the disk's cache: every figure is a process of its own. It knows nothing of how figures are shown.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm.errors import EngineError
from slm.native.process import child_environment
from slm.native.threads import without_settling
from slm.terminal.console import shorten

# What is timed -> seconds it may take on a quiet machine.
GOALS = {"help_s": 0.12, "list_s": 0.2, "prompt_s": 0.7}
_PATIENCE_S = 120.0
_ESCAPE = re.compile(rb"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_=>])")


@dataclass(frozen=True)
class Starter:
    """A program and the command lines that are timed, by the figure they give. mark: what its prompt looks like."""

    name: str
    commands: Mapping[str, Sequence[str]]
    mark: bytes = rb"(?:^|\n)[\w.:@+-]+>"


def starters(model: Path) -> tuple[list[Starter], list[str]]:
    """Ours and the peers on PATH, and which are not there. `llm` has no model of its own to chat with."""
    ours = [sys.executable, "-m", "slm_cli"]
    found = [
        Starter(
            "slm", {"help_s": [*ours, "--help"], "list_s": [*ours, "models"], "prompt_s": [*ours, "chat", str(model)]}
        )
    ]
    missing = []
    for name in ("llm", "llama-cli"):
        program = shutil.which(name)
        if program is None:
            missing.append(f"{name} is not measured: it is not on PATH")
        elif name == "llm":
            found.append(Starter(name, {"help_s": [program, "--help"], "list_s": [program, "models"]}))
        else:
            chat = [program, "-m", str(model), "-c", "4096"]
            found.append(Starter(name, {"help_s": [program, "--help"], "prompt_s": chat}, rb"(?:^|\n)> "))
    return found, missing


def bench_start(model: Path, rounds: int) -> dict[str, Any]:
    """{"programs": [{"name", figure: median seconds or None}], "missing": [why]}, after one round that does not count.

    Raises EngineError where a command of ours fails; a peer that fails is missing.
    """
    programs, missing = starters(model.resolve())
    taken: dict[str, dict[str, list[float]]] = {program.name: {} for program in programs}
    for number in range(rounds + 1):
        for program in list(programs):
            try:
                for figure, argv in program.commands.items():
                    mark = program.mark if figure == "prompt_s" else None
                    seconds = _to_prompt(argv, mark) if mark else _to_end(argv)
                    if number:
                        taken[program.name].setdefault(figure, []).append(seconds)
            except EngineError as error:
                if program.name == "slm":
                    raise
                programs.remove(program)
                missing.append(f"{program.name} is not measured: {error.what}")
    rows = [
        {"name": program.name, **{
            figure: round(statistics.median(taken[program.name][figure]), 3) if figure in program.commands else None
            for figure in GOALS
        }} for program in programs
    ]  # fmt: skip
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return {
        "model": str(model), "rounds": rounds, "programs": rows, "missing": missing, "goals": GOALS, "load_1min": load,
    }  # fmt: skip


def _environment() -> dict[str, str]:
    return without_settling({**child_environment(), "TERM": "xterm-256color"})


def _to_end(argv: Sequence[str]) -> float:
    """Seconds until a command has ended. Raises EngineError with its last words."""
    with tempfile.TemporaryFile() as said:
        started = time.perf_counter()
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=_environment(), timeout=_PATIENCE_S
        )
        seconds = time.perf_counter() - started
        if done.returncode:
            said.seek(0)
            raise _failed(argv, said.read(), done.returncode)
    return seconds


def _to_prompt(argv: Sequence[str], mark: bytes) -> float:
    """Seconds until a program on a terminal shows what `mark` matches."""
    import pty

    ours, theirs = pty.openpty()
    started = time.perf_counter()
    process = subprocess.Popen(
        argv, stdin=theirs, stdout=theirs, stderr=theirs, env=_environment(), start_new_session=True
    )
    os.close(theirs)
    said = b""
    try:
        while time.perf_counter() - started < _PATIENCE_S:
            if not select.select([ours], [], [], 1.0)[0]:
                continue
            try:
                piece = os.read(ours, 1 << 16)
            except OSError:  # it has ended: a terminal without a process behind it
                piece = b""
            if not piece:
                with suppress(subprocess.TimeoutExpired):  # it has let go of the terminal, and is about to end
                    process.wait(5.0)
                break
            said += piece
            if re.search(mark, _ESCAPE.sub(b"", said).replace(b"\r", b"")):
                return time.perf_counter() - started
        raise _failed(argv, said, process.poll())
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _failed(argv: Sequence[str], said: bytes, code: int | None) -> EngineError:
    lines = _ESCAPE.sub(b"", said).decode("utf-8", "replace").strip().splitlines()
    how = "showed no prompt" if code is None or code == 0 else f"ended with {code}"
    words = f": {shorten(lines[-1], 200)}" if lines else ""
    return EngineError(f"'{' '.join([Path(argv[0]).name, *argv[1:]])}' {how}{words}")
