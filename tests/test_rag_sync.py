"""A sync with a Confluence space, against a site with the faults of real ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rag.index.store import Generation, open_generation
from rag.sources.confluence.rest.client import Client
from rag.sources.confluence.rest.credentials import Credentials
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
        return sync_index(self.path, wanted, client, lambda name: self.embedder, How(**how))

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


def churn(site: FakeConfluence, chance: random.Random) -> Callable[[], None]:
    """Edits, deletes, moves away and creates pages while the site is being listed."""

    def once() -> None:
        ids = list(site.shown())
        site.edit(chance.choice(ids), f"<p>Edited at {site.clock:%H:%M:%S}.</p>")
        if chance.random() < 0.4:
            site.delete(chance.choice(ids))
        if chance.random() < 0.2:
            site.move(chance.choice(ids), "OTHER")
        if chance.random() < 0.4:
            site.add("New", f"<p>Written at {site.clock:%H:%M:%S}.</p>")

    return once


@KINDS
def test_with_all_faults_on_nothing_is_lost_doubled_or_wrongly_deleted(runs: Callable[..., Runs], cloud: bool) -> None:
    chance = random.Random(7)
    run = runs(
        cloud=cloud, pages=1900, cap=60, miscount=True, promise=True, wait_every=7, heavy=12, fail_every=11,
        slow_every=13, broken_every=17, minute=True, zone=9,
    )  # fmt: skip
    site = run.site
    for n in range(100):  # more in a row than one answer holds
        site.add(f"Secret {n}", "<p>Not for this account.</p>", hidden=True)
    for n in range(100):
        site.add(f"Late {n}", f"<p>Late text {n}.</p>")
    calm, site.faults = site.faults, replace(site.faults, churn=churn(site, chance))
    site.faults.no_storage = ("1005", "1900")

    before = dict(site.shown())
    first = run()
    assert not first.error and not first.unread, first.as_dict()
    staying = {id_ for id_ in before if id_ in site.shown()}
    held = run.texts()
    assert staying <= held.keys(), "lost"
    assert len(run.generation.documents) == len(held) == first.added - len(first.gone), "doubled"
    assert not [source for source, _ in first.gone if source.rpartition("=")[2] in site.shown()], "wrongly deleted"
    assert "Secret" not in str(run.generation.documents)

    for id_ in chance.sample(sorted(staying), 50):
        site.edit(id_, f"<p>Second version of {id_}.</p>")
    deleted = [id_ for id_ in chance.sample(sorted(site.shown()), 40) if not site.delete(id_)]
    second = run()
    assert not second.error and not second.unread, second.as_dict()
    assert not [source for source, _ in second.gone if source.rpartition("=")[2] in site.shown()], "wrongly deleted"
    assert not run.texts().keys() & set(deleted)

    site.faults = calm
    third = run()
    counted = third.added + third.changed + third.same + len(third.skipped)
    assert not third.error and counted == len(site.shown())
    site.faults.no_storage = ()
    run()
    assert run.in_step()
