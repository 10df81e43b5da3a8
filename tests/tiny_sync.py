"""Syncs of an index with a site that is none, for tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rag.index.store import Generation, open_generation
from rag.sources.confluence.rest.client import Client
from rag.sources.confluence.rest.credentials import Credentials
from rag.stores.files import FileStore
from rag.sync.report import Report
from rag.sync.run import Wanted, sync_index
from rag.sync.space import How
from tests.fake_confluence import TOKEN, FakeConfluence, Faults, transport
from tests.tiny_rag import PairEmbedder

KINDS = pytest.mark.parametrize("cloud", [True, False], ids=["cloud", "data-center"])
HOST = "http://wiki.example"


class Runs:
    """Syncs of one index with one site. `waits`: the seconds that were to be waited."""

    def __init__(self, site: FakeConfluence, path: Path) -> None:
        self.site, self.path, self.waits = site, path, list[float]()
        self.embedder = PairEmbedder()
        self.token = TOKEN

    def all(self, *spaces: str, **how: Any) -> list[Report]:
        def client(base: str) -> Client:
            return Client(base, Credentials(self.token), transport=transport(self.site), sleep=self.waits.append)

        wanted = [Wanted(HOST + self.site.context, space) for space in spaces or ("DOCS",)]
        self.site.requests.clear()
        return sync_index(FileStore(self.path), wanted, client, lambda name: self.embedder, How(**how))

    def __call__(self, **how: Any) -> Report:
        (report,) = self.all(**how)
        return report

    @property
    def generation(self) -> Generation:
        return open_generation(self.path)

    def texts(self) -> dict[str, str]:
        """The text of each page of the index, by id."""
        texts: dict[str, str] = {}
        for chunk in self.generation.chunks:
            id_ = chunk.source.rpartition("pageId=")[2]
            texts[id_] = texts.get(id_, "") + chunk.text
        return texts

    def in_step(self, space: str = "DOCS") -> bool:
        """Whether the index holds exactly the space's pages, each as it is now."""
        texts = self.texts()
        shown = {id_: page.body for id_, page in self.site.shown(space).items()}
        assert texts.keys() == shown.keys(), (len(texts), len(shown), sorted(texts.keys() ^ shown.keys())[:5])
        return all(f"<p>{texts[id_]}</p>" == body for id_, body in shown.items())


@pytest.fixture
def runs(tmp_path: Path) -> Callable[..., Runs]:
    def of(*, cloud: bool, pages: int = 30, **faults: Any) -> Runs:
        site = FakeConfluence(cloud=cloud, faults=Faults(**faults))
        for n in range(pages):
            site.tick(4 * 3600)
            site.add(f"Page {n}", f"<p>Text {n} of the first version.</p>")
        return Runs(site, tmp_path / "i")

    return of
