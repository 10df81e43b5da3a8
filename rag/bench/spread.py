"""How fast the machines of a Ray cluster embed beside this machine's own way: the same batches, and the same vectors.

With a Ray of this machine alone both have the same cores, and what is measured is what Ray costs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rag.bench.run import WARM_UP_TEXTS
from rag.index.change.embedded import BATCH, chunked
from rag.index.embed import Vectors, open_embedder
from rag.index.embedders.base import passages_of
from rag.index.embedders.spread import SpreadEmbedder
from rag.index.variants import comparable
from rag.sources.files import read_files
from slm.native.ray_cluster import connected
from slm.native.ray_data import ActorPlan

GOAL = 0.9  # of the chunks a second of one machine's own way
_Batches = Sequence[Sequence[str]]


def measure_spread(
    paths: Sequence[Path], embedder: str, address: str, rounds: int, on_step: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Chunks a second, in turns, medians over the rounds.

    Returns {embedder, chunks, machines, cores, here: {seconds, chunks_per_s}, there: {seconds, chunks_per_s, first_s,
    later_per_s}, ratio, ratio_later, same, goal}. first_s: until the first batch came, with the start of the actors and
    the opening of the embedder; later: from then on. ratio: there beside here, all counted; ratio_later: without that
    start. same: all vectors are equal to the bit. Raises as `slm.native.ray_cluster.connected` and `open_embedder`.
    """
    with connected(address):
        plan, local = ActorPlan.of_cluster(), open_embedder(embedder)
        texts = [comparable(chunk.indexed_text) for chunk in chunked(read_files(paths).documents, local)]
        new = list(dict.fromkeys(texts))
        batches = [new[start : start + BATCH] for start in range(0, len(new), BATCH)]
        spread = SpreadEmbedder(local, partial(open_embedder, embedder), plan)
        local.passages(new[:WARM_UP_TEXTS])
        here, there, firsts, same = [], [], [], True
        for number in range(rounds):
            on_step(f"round {number + 1} of {rounds}: {len(new)} chunks here, then on Ray")
            ours, seconds, _ = _timed(passages_of(local, batches))
            here.append(seconds)
            theirs, seconds, first = _timed(spread.in_batches(batches))
            there.append(seconds)
            firsts.append(first)
            same = same and ours == theirs
    return (
        {"embedder": f"{local.identity.name} [{local.identity.revision}]"}
        | figures_of(batches, here, there, firsts)
        | {"machines": plan.actors, "cores": plan.cores, "same": same, "goal": GOAL}
    )


def figures_of(
    batches: _Batches, here: Sequence[float], there: Sequence[float], firsts: Sequence[float]
) -> dict[str, Any]:
    """What the seconds of the rounds come to; firsts: until the first batch came from Ray."""
    count, later = sum(map(len, batches)), sum(map(len, batches[1:]))
    ours, theirs = statistics.median(here), statistics.median(there)
    after = statistics.median(whole - first for whole, first in zip(there, firsts, strict=True))
    rate = later / after if later and after > 0 else None
    return {
        "chunks": count,
        "here": {"seconds": round(ours, 3), "chunks_per_s": round(count / ours, 2)},
        "there": {
            "seconds": round(theirs, 3), "chunks_per_s": round(count / theirs, 2),
            "first_s": round(statistics.median(firsts), 3), "later_per_s": None if rate is None else round(rate, 2),
        },
        "ratio": round(ours / theirs, 3), "ratio_later": None if rate is None else round(rate * ours / count, 3),
    }  # fmt: skip


def _timed(results: Iterable[tuple[Sequence[str], Vectors]]) -> tuple[dict[str, bytes], float, float]:
    """(vectors by text, seconds, seconds until the first batch)."""
    begun, first = time.perf_counter(), 0.0
    found: dict[str, bytes] = {}
    for batch, vectors in results:
        first = first or time.perf_counter() - begun
        found.update((text, vector.tobytes()) for text, vector in zip(batch, vectors, strict=True))
    return found, time.perf_counter() - begun, first
