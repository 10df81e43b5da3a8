"""Reliability of `slm train sft` by hand: the run is killed (SIGKILL) again and again and has to end as if unbroken.

A run that nobody disturbs comes first. Then the same command runs into another folder and is killed at random moments,
some of them while a checkpoint or the adapter is being written; each time it goes on with --resume. At the end the two
adapters are compared. Prints a table of what was found beside what is allowed, and exits 1 when a check failed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from slm.errors import SlmError  # noqa: E402
from train.adapter.opened import check_adapter  # noqa: E402
from train.run.folder import folder_of  # noqa: E402
from train.run.history import read_history  # noqa: E402
from train.run.saved_states import whole_checkpoints  # noqa: E402

Row = tuple[str, str, str, bool]
_WAIT_S = 0.002


def command(base: str, data: Path, output: Path, more: list[str]) -> list[str]:
    """The training command of all runs; a checkpoint every second, so that kills often meet one being written."""
    return [
        sys.executable, "-m", "slm_cli", "train", "sft", "--base", base, "--data", str(data), "-o", str(output),
        "--save-every-s", "1", "--json", *more,
    ]  # fmt: skip


def writing(output: Path) -> list[Path]:
    """Half-written folders that are there right now: of checkpoints, or of the adapter itself."""
    places = [(folder_of(output) / "checkpoints", ".step-*.part"), (output.parent, f".{output.name}.*.part")]
    return [path for folder, pattern in places if folder.is_dir() for path in folder.glob(pattern)]


def kill_once(argv: list[str], output: Path, rng: random.Random, *, span_s: float, meet: str) -> tuple[int, str]:
    """Run the command until a moment and kill it there; (its exit code, what it was killed in).

    meet: "" for a random moment, "checkpoint" or "adapter" to wait until one is being written.
    """
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    at, caught = time.monotonic() + rng.uniform(0.0, span_s), ""
    while process.poll() is None:
        now = [] if not meet else writing(output)
        wanted = [path for path in now if path.name.startswith(".step-") == (meet == "checkpoint")]
        if time.monotonic() >= at and (wanted or not meet):
            if wanted:
                time.sleep(rng.uniform(0.0, 0.02))
            caught = meet or "anywhere"
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(_WAIT_S)
    error = process.communicate()[1]
    return process.returncode, caught if process.returncode in (0, -signal.SIGKILL) else error[-600:]


def difference(one: Path, two: Path) -> float:
    """The largest difference between two adapters' values; infinity when their tensors are others."""
    from safetensors.torch import load_file

    left, right = (load_file(folder / "adapter_model.safetensors") for folder in (one, two))
    if left.keys() != right.keys():
        return float("inf")
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def losses(output: Path) -> dict[int, float]:
    """The loss of every step in an adapter's history."""
    return {r["step"]: r["loss"] for r in read_history(output / "run" / "history.jsonl") if "loss" in r}


def soak(base: str, data: Path, folder: Path, kills: int, more: list[str], seed: int = 0) -> list[Row]:
    """Train once in peace and once under `kills` kills, and compare."""
    whole, broken = folder / "whole" / "a", folder / "broken" / "a"
    started = time.monotonic()
    subprocess.run(command(base, data, whole, more), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    span = time.monotonic() - started
    rng, outcomes, faults, killed = random.Random(seed), dict[str, int](), list[str](), 0
    argv = command(base, data, broken, more)
    for number, meet in enumerate(_moments()):
        if killed == kills:
            break
        resume = ["--resume"] if number else []
        code, what = kill_once([*argv, *resume], broken, rng, span_s=span, meet=meet)
        if code == -signal.SIGKILL:
            killed += 1
            outcomes[what] = outcomes.get(what, 0) + 1
        elif code:
            faults.append(f"run {number} ended with {code}: {what}")
        else:
            outcomes["came through"] = outcomes.get("came through", 0) + 1
        faults += _false_ones(broken, base)
        if code == 0:  # done already: the next kill meets a new run
            faults += [] if difference(whole, broken) == 0.0 else [f"run {number} ended with another adapter"]
            shutil.rmtree(broken)
        print(f"{killed} of {kills} kills: exit code {code}, {what or 'came through'}", file=sys.stderr, flush=True)
    end = subprocess.run([*argv, "--resume"], cwd=ROOT, capture_output=True, text=True)
    faults += [] if end.returncode == 0 else [f"the last resume: {end.stderr[-600:]}"]
    found = ", ".join(f"{count} {what}" for what, count in outcomes.items())
    apart = difference(whole, broken) if end.returncode == 0 else float("inf")
    same = end.returncode == 0 and losses(whole) == losses(broken)
    left = sorted(path.name for path in broken.parent.iterdir() if path.name != broken.name)
    figures: dict[str, Any] = json.loads(end.stdout) if end.returncode == 0 else {}
    return [
        (f"{killed} kills of a run of {span:.0f} s", "; ".join([found, *faults[:3]]), "each goes on", not faults),
        ("steps", str(figures.get("steps")), str(len(losses(whole))), figures.get("steps") == len(losses(whole))),
        ("the adapters' largest difference", f"{apart:g}", "0", apart == 0.0),
        ("the losses of all steps", "equal" if same else "differ", "equal", same),
        ("left behind", ", ".join(left) or "nothing", "nothing", not left),
    ]  # fmt: skip


def _moments() -> Iterator[str]:
    """Every fourth kill meets a checkpoint being written, every fifth the adapter, the others fall anywhere."""
    for number in itertools.count(1):
        yield "adapter" if number % 5 == 0 else "checkpoint" if number % 4 == 0 else ""


def _false_ones(output: Path, base: str) -> Iterator[str]:
    """Faults of what a kill left: an adapter folder that is there has to be whole, and so has a checkpoint."""
    if output.exists():
        try:
            check_adapter(output, Path(base)) if Path(base).is_dir() else None
            difference(output, output)
        except (SlmError, OSError, ValueError) as error:
            yield f"a broken adapter: {error}"
    for checkpoint in whole_checkpoints(folder_of(output) / "checkpoints"):
        try:
            checkpoint.tensors()
        except Exception as error:
            yield f"a broken checkpoint passed for a good one: {error}"


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m-instruct", help="checkpoint folder or catalog name")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "instruct.jsonl")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("more", nargs="*", help="options of `slm train sft`, after --")
    values = parser.parse_args()
    from rich.table import Table

    from slm.terminal.console import out

    more = values.more or [
        "--lang",
        "en",
        "--max-steps",
        "30",
        "--max-length",
        "256",
        "--drop-long",
        "--eval-every",
        "10",
    ]
    with tempfile.TemporaryDirectory(prefix="slm-soak-") as scratch:
        rows = soak(values.base, values.data.resolve(), Path(scratch), values.kills, more, values.seed)
    table = Table("check", "found", "allowed", "")
    for what, found, allowed, good in rows:
        table.add_row(what, found, allowed, "ok" if good else "FAILED")
    out().print(table)
    sys.exit(not all(row[3] for row in rows))


if __name__ == "__main__":
    main()
