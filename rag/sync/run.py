"""Brings an index into step with all its sources, one after the other; a fault of one does not end the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from rag.index.embed import Embedder
from rag.sources.confluence.rest.client import Client
from rag.sources.confluence.rest.site import open_site, site_address
from rag.stores.interface import IndexStore
from rag.sync.folders import sync_files
from rag.sync.report import Report
from rag.sync.space import How, SpaceSync
from slm.errors import InputError, SlmError


@dataclass(frozen=True)
class Wanted:
    """A space of a site that is to be in the index."""

    url: str
    space: str


def sync_index(
    store: IndexStore,
    wanted: Sequence[Wanted],
    make_client: Callable[[str], Client],
    make_embedder: Callable[[str | None], Embedder],
    how: How,
) -> list[Report]:
    """Sync all that the index knows and the spaces that are wanted besides; a report for each source.

    make_embedder gets the name of the one that the index was made with. Raises InputError when there is nothing to
    sync, and what `held` of the store raises.
    """
    generation = store.held() if store.exists() or not wanted else None
    sources: dict[str, Mapping[str, Any]] = dict(generation.sources) if generation else {}
    made_with = str(generation.made_with["name"]) if generation else None
    del generation
    for each in wanted:
        url = site_address(each.url)
        sources[f"{url}#{each.space}"] = {"kind": "confluence", "url": url, "space": each.space}
    if not sources:
        raise InputError(
            "the index knows no source to sync", hint="Add one with: slm rag add INDEX PATH, or with --confluence-url."
        )
    embedder = cache(lambda: make_embedder(made_with))
    reports = []
    files = {root: source for root, source in sources.items() if source.get("kind") == "files"}
    if files:
        report = Report("files" if len(files) > 1 else next(iter(files)))
        with _guarded(report):
            sync_files(store, files, embedder, report, sure=how.mass_delete, show=how.show)
        reports.append(report)
    for root, source in sources.items():
        if source.get("kind") == "confluence":
            report = Report(root)
            with _guarded(report):
                _space(store, source, make_client, embedder, how, report)
            reports.append(report)
    return reports


@contextmanager
def _guarded(report: Report) -> Iterator[None]:
    try:
        yield
    except SlmError as error:
        report.error = str(error)


def _space(
    store: IndexStore,
    source: Mapping[str, Any],
    make_client: Callable[[str], Client],
    embedder: Callable[[], Embedder],
    how: How,
    report: Report,
) -> None:
    site, client, space = open_site(make_client, str(source["url"]), str(source["space"]))
    with client:
        SpaceSync(store, site, str(source["url"]), space, embedder(), how, report, client.now).run()
