"""A whole benchmark: contenders one at a time in processes of their own, in turns over several rounds.

It knows who is measured and for how long, not how figures are shown.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slm.errors import EngineError
from slm.native.heap import whole_blocks, without_whole_blocks
from slm.native.process import child_environment
from slm.native.threads import TRAINING_SPINS, settle_openmp, without_settling
from slm.terminal.console import note
from train.bench.clock import read_steps
from train.bench.contenders import OURS, OURS_TOP, PEERS, TRAINER, TRL, TRL_DEFAULTS, TrainBenchPlan
from train.bench.data import BenchData, write_data


@dataclass(frozen=True)
class TrainBenchOptions:
    """What is run. steps: of each contender (0: as many as fit into `seconds`); rounds: medians are taken over them.

    examples: how many the data are repeated to, without those of more than `longest` tokens.
    time_limit_s: after so much a contender is ended, and what it had done until then is its result.
    """

    data: Path
    steps: int = 30
    seconds: float = 0.0
    rounds: int = 1
    time_limit_s: float = 240.0
    examples: int = 2000
    longest: int = 1024
    batch_size: int = 8
    learning_rate: float = 5e-4
    rank: int = 8
    alpha: float = 16.0
    top_layers: int = 0
    seed: int = 0


def missing_peers(peers: Sequence[str]) -> list[str]:
    """A sentence for each peer that cannot be run here."""
    absent = [package for package in ("trl", "datasets") if importlib.util.find_spec(package) is None]
    if not absent:
        return []
    install = f"no {' and no '.join(absent)} (Python 3.11: pip install -c constraints.txt '.[peers]')"
    return [f"{PEERS[key]} is not measured: {install}" for key in peers if key != "trainer"]


def bench_training(base: Path, peers: Sequence[str], options: TrainBenchOptions) -> dict[str, Any]:
    """Measure ours and the peers (keys of PEERS) on one base.

    Returns {model, data, options, contenders: [{name, steps, seconds, supervised_tokens_per_s, tokens_per_s,
    peak_rss_mb, held_out_loss, completed, error, times_faster}], missing}; figures are medians over the rounds,
    times_faster is against Trainer + PEFT and None without it; error: the last words of a peer that failed. Raises
    EngineError when ours fails.
    """
    missing = missing_peers(peers)
    for line in missing:
        note(line)
    gone = {name for name in (TRL, TRL_DEFAULTS) if any(line.startswith(name) for line in missing)}
    names = [OURS, *([OURS_TOP] if options.top_layers else [])]
    names += [PEERS[key] for key in PEERS if key in peers and PEERS[key] not in gone]
    with tempfile.TemporaryDirectory(prefix="slm-bench-") as scratch:
        used = options.steps * options.batch_size or None  # one epoch: all see the same examples
        data = write_data(
            base,
            options.data,
            Path(scratch),
            count=options.examples,
            used=used,
            longest=options.longest,
            seed=options.seed,
        )
        taken: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for number in range(options.rounds):
            for name in reversed(names) if number % 2 else names:
                if name == TRL_DEFAULTS and taken[name]:
                    continue  # its time limit once is long enough
                note(f"{base.name}, round {number + 1} of {options.rounds}: {name}")
                folder = Path(scratch) / f"{number}-{names.index(name)}"
                folder.mkdir()
                taken[name] += _measure(name, _plan(base, data, folder, options), data, options)
    contenders = [_over_rounds(parts) for parts in _grouped(taken)]
    usual = next((one for one in contenders if one["name"] == TRAINER), None)
    for one in contenders:
        one["times_faster"] = _times(one, usual)
    return {
        "model": base.name,
        "data": {"file": str(options.data), **data.as_json()},
        "options": {key: value for key, value in asdict(options).items() if key != "data"},
        "contenders": contenders,
        "missing": missing,
    }


def _plan(base: Path, data: BenchData, folder: Path, options: TrainBenchOptions) -> TrainBenchPlan:
    return TrainBenchPlan(
        base=str(base.resolve()),
        train_file=str(data.train_file),
        held_out_file=str(data.held_out_file),
        ids_file=str(data.ids_file),
        folder=str(folder),
        steps=options.steps,
        seconds=options.seconds,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        rank=options.rank,
        alpha=options.alpha,
        top_layers=options.top_layers,
        seed=options.seed,
    )


def _measure(name: str, plan: TrainBenchPlan, data: BenchData, options: TrainBenchOptions) -> list[dict[str, Any]]:
    """One contender's figures; where only the top layers learn, those of each epoch."""
    try:
        ended = _train(name, plan, options.time_limit_s)
    except EngineError as problem:
        if name not in PEERS.values():
            raise
        return [_figures(name, 0, 0.0, [], data, {}, plan) | {"error": problem.found}]
    steps = read_steps(plan.clock_file)
    result = json.loads(plan.result_file.read_text(encoding="utf-8")) if ended else {}
    if name == OURS_TOP and ended and plan.steps:
        half = steps[plan.steps]["seconds"]
        spans = [("epoch 1", 0.0, half), ("epoch 2", half, steps[-1]["seconds"])]
        return [
            _figures(f"{OURS}, top {plan.top_layers}, {label}", plan.steps, end - start, steps, data, result, plan)
            for label, start, end in spans
        ]
    count, seconds = (steps[-1]["step"], steps[-1]["seconds"]) if steps else (0, 0.0)
    return [_figures(name, count, seconds, steps, data, result, plan)]


def _figures(
    name: str,
    count: int,
    seconds: float,
    steps: Sequence[dict[str, Any]],
    data: BenchData,
    result: dict[str, Any],
    plan: TrainBenchPlan,
) -> dict[str, Any]:
    """Tokens are those of the examples seen: exact for whole epochs, else the mean of the data."""
    share = count * plan.batch_size / data.examples
    return {
        "name": name,
        "steps": count,
        "seconds": seconds,
        "supervised_tokens_per_s": share * data.supervised / seconds if count else None,
        "tokens_per_s": share * data.tokens / seconds if count else None,
        "peak_rss_mb": max((step["peak_rss_mb"] for step in steps), default=None),
        "held_out_loss": result.get("held_out_loss"),
        "completed": bool(result),
        "error": "",
    }


def _train(name: str, plan: TrainBenchPlan, limit_s: float) -> bool:
    """Run one contender in a process of its own; False when the time limit ended it. Raises EngineError."""
    file = Path(plan.folder) / "plan.json"
    file.write_text(json.dumps(asdict(plan)), encoding="utf-8")
    environment = without_settling(without_whole_blocks(child_environment()))
    if name in (OURS, OURS_TOP):  # as `slm train` does before it loads torch
        environment = whole_blocks(environment)
        settle_openmp(TRAINING_SPINS, environment)
    command = [sys.executable, "-m", "train.bench.contenders", name, str(file)]
    words = Path(plan.folder) / "said.txt"
    with words.open("wb") as said:
        try:
            child = subprocess.run(
                command, stdout=said, stderr=said, stdin=subprocess.DEVNULL, env=environment, timeout=limit_s
            )
        except subprocess.TimeoutExpired:
            return False
    if child.returncode:
        last = words.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise EngineError(f"the contender '{name}' failed (exit {child.returncode})", found=last[0][:300])
    return True


def _grouped(taken: dict[str, list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    """The same figures, one list for each row of the table."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for parts in taken.values():
        for part in parts:
            rows.setdefault(part["name"], []).append(part)
    return list(rows.values())


def _over_rounds(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the figures; `completed` only when every round was, `error` the first round's that had one."""
    row: dict[str, Any] = {"name": parts[0]["name"], "completed": all(part["completed"] for part in parts)}
    row["error"] = next((part["error"] for part in parts if part["error"]), "")
    for key in ("steps", "seconds", "supervised_tokens_per_s", "tokens_per_s", "peak_rss_mb", "held_out_loss"):
        known = [part[key] for part in parts if part[key] is not None]
        row[key] = round(statistics.median(known), 4) if known else None
    return row


def _times(one: dict[str, Any], usual: dict[str, Any] | None) -> float | None:
    speeds = one["supervised_tokens_per_s"], usual and usual["supervised_tokens_per_s"]
    return round(speeds[0] / speeds[1], 3) if speeds[0] and speeds[1] else None
