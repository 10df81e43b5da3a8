"""A whole benchmark of engines: each started anew in its turn, and what comes out as figures and as a table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from serve.bench.engine.contenders import EngineContender, EngineSetup, ours, peers
from serve.bench.engine.plan import COLD_START, MEMORY, EnginePlan, MadePrompts, figures, taken, turns
from serve.bench.process import resident_mb
from serve.bench.report import cell, ratio, times
from slm.errors import EngineError
from slm.native.process import cpu_name
from slm.terminal.console import note
from slm.weights.gguf_reader import read_gguf


def bench_engines(setup: EngineSetup, wanted: Sequence[str], missing: Sequence[str] = ()) -> dict[str, Any]:
    """Measure ours and the wanted peers in turns.

    Returns {model, cpu, threads, plan, engines: [{name, http, figure: median or None}], ratios: {peer: {figure: times
    that ours is better}}, missing: [why one, or a figure of it, is not there]}; a peer is compared with ours over
    HTTP where it is a server. Raises EngineError when ours does not start; a peer that does not is missing.
    """
    own = ours(setup)
    found, not_there = peers(setup, wanted)
    words = [*missing, *not_there]
    metadata = read_gguf(setup.model).metadata
    prompts = MadePrompts(metadata["tokenizer.ggml.tokens"], metadata.get("tokenizer.ggml.token_type"))
    who = {one.name: one for one in (*own, *found)}
    rounds: dict[str, list[Mapping[str, float | None]]] = {name: [] for name in who}
    for number, name in turns([*who], setup.plan.repeat):
        if name not in who:
            continue
        note(f"round {number} of {setup.plan.repeat}: {name}")
        try:
            one, problems = _one_turn(who[name], prompts, setup.plan)
        except EngineError as error:
            if who[name] in own:
                raise
            del who[name]
            words.append(f"{name} is not measured: {error}")
            continue
        rounds[name].append(one)
        words += [line for problem in problems if (line := f"{name}, {problem}") not in words]
    rows = [{"name": name, "http": one.http, **medians(rounds[name])} for name, one in who.items()]
    return {
        "model": setup.model.name,
        "cpu": cpu_name(),
        "threads": setup.cores,
        "plan": asdict(setup.plan),
        "engines": rows,
        "ratios": ratios_of(rows[: len(own)], rows[len(own) :], setup.plan),
        "missing": words,
    }


def _one_turn(
    contender: EngineContender, prompts: MadePrompts, plan: EnginePlan
) -> tuple[dict[str, float | None], list[str]]:
    """(figures, why one is missing) of an engine that is started for it. Raises EngineError when it does not start."""
    started = time.perf_counter()
    with contender.open() as (pid, ask):
        ask([prompts.next(plan.short)], 1)
        start = {COLD_START: time.perf_counter() - started, MEMORY: resident_mb(pid)}
        found, problems = taken(ask, prompts, plan)
        return {**found, **start}, problems


def medians(rounds: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """The median of each figure over the rounds that have it; None where none has."""
    merged: dict[str, float | None] = {}
    for key in rounds[0] if rounds else ():
        known = [value for one in rounds if (value := one[key]) is not None]
        merged[key] = round(statistics.median(known), 4) if known else None
    return merged


def ratios_of(
    own: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], plan: EnginePlan
) -> dict[str, dict[str, float | None]]:
    """By peer and figure how many times better ours of the same kind (by pipe or over HTTP) is."""
    return {
        peer["name"]: {
            figure.key: ratio(_like(own, peer)[figure.key], peer[figure.key], figure.more_is_better)
            for figure in figures(plan)
        }
        for peer in others
    }


def _like(own: Sequence[Mapping[str, Any]], peer: Mapping[str, Any]) -> Mapping[str, Any]:
    return next(one for one in own if one["http"] == peer["http"])


def engine_table(result: Mapping[str, Any], plan: EnginePlan) -> tuple[list[str], list[list[str]]]:
    """(headings, rows) of the table: a column for each figure, a row for each engine, below a peer's its ratios."""
    columns = figures(plan)
    rows = []
    for one in result["engines"]:
        name = one["name"]
        rows.append([name, *(cell(one[figure.key]) for figure in columns)])
        if compared := result["ratios"].get(name):
            rows.append(["ours / it", *(times(compared[figure.key]) for figure in columns)])
    return ["", *(figure.title for figure in columns)], rows
