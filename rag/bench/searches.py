"""How long searches with filters take, whatever store is asked: the search alone, its query embedded beforehand."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rag.bench.synthetic import SyntheticEmbedder
from rag.index.embed import Vectors
from rag.index.variants import comparable
from slm.joints import EVERYTHING, Filters

WARM_UP, RESULTS = 20, 5
FILTERS = {
    "none": EVERYTHING,
    "space, language and date": Filters(spaces=("S3",), languages=("en", "ja"), since="2024-03-01"),
    "who asks": Filters(viewer=("user:guest",)),
}


class KnownQueries(SyntheticEmbedder):
    """Has embedded its queries beforehand; others are embedded when they come."""

    def __init__(self, queries: Sequence[str]) -> None:
        super().__init__()
        texts = [comparable(query) for query in queries]
        self._known = dict(zip(texts, super().queries(texts), strict=True))

    def queries(self, texts: Sequence[str]) -> Vectors:
        if any(text not in self._known for text in texts):
            return super().queries(texts)
        return np.stack([self._known[text] for text in texts])


def search_times(ask: Callable[[str], object], queries: Sequence[str]) -> tuple[list[float], list[float]]:
    """(milliseconds waited, milliseconds of all cores) of each query, those of the warm-up first."""
    waited, computed = [], []
    for query in queries:
        begun, worked = time.perf_counter(), time.process_time()
        ask(query)
        waited.append(1000 * (time.perf_counter() - begun))
        computed.append(1000 * (time.process_time() - worked))
    return waited, computed


def shown_times(waited: Sequence[float]) -> dict[str, Any]:
    """{n, p50_ms, p95_ms, max_ms} of the times behind the warm-up."""
    times = waited[WARM_UP:]
    p50, p95, most = (round(float(value), 2) for value in np.percentile(times, [50, 95, 100]))
    return {"n": len(times), "p50_ms": p50, "p95_ms": p95, "max_ms": most}
