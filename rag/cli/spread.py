"""`--on ray`: who reads and who embeds for `slm rag add`, this machine or those of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rag.index.embed import Embedder
    from rag.sources.files import ReadEach

ON = click.option(
    "--on", "address", metavar="ray[://HOST[:PORT]]",
    help="Read and embed on the machines of a Ray cluster, which see the files at the same paths [default: here].",
)  # fmt: skip


@dataclass(frozen=True)
class Workers:
    """Who reads, and whether passages are embedded elsewhere."""

    read: ReadEach
    elsewhere: bool

    def embedder(self, name: str) -> Embedder:
        """The embedder of that name, whose passages these workers embed. Raises as `open_embedder`."""
        from rag.index.embed import open_embedder

        local = open_embedder(name)
        if not self.elsewhere:
            return local
        from rag.index.embedders.spread import SpreadEmbedder
        from slm.native.ray_data import ActorPlan

        return SpreadEmbedder(local, partial(open_embedder, name), ActorPlan.of_cluster())


@contextmanager
def workers(address: str | None) -> Iterator[Workers]:
    """Those that `--on` names, until the end of the block. Raises as `slm.native.ray_cluster.connected`."""
    from rag.sources.files import read_here

    if address is None:
        yield Workers(read_here, elsewhere=False)
        return
    from rag.sources.spread import read_spread
    from slm.native.ray_cluster import connected

    with connected(address):
        yield Workers(read_spread, elsewhere=True)
