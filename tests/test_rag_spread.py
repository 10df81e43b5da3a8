"""Reading and embedding by others, whose results come in any order: the index is the one of one process.

Who does the work is a stand-in here (`tests/test_cluster.py` has Ray itself): what it is handed crosses by pickle.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rag.index.embedders import spread as spread_embedding
from rag.index.embedders.spread import SpreadEmbedder
from rag.index.store import open_inventory
from rag.index.update import add_documents
from rag.sources import spread as spread_reading
from rag.sources.files import read_files
from rag.sources.reader import ReadOptions
from rag.sources.spread import read_spread
from rag.stores.postgres.database import Database
from slm.errors import EngineError, MismatchError, MissingFileError
from slm.native.ray_data import ActorPlan
from tests.own_postgres import database, postgres, with_index
from tests.tiny_rag import PairEmbedder, page

__all__ = ["database", "postgres"]  # fixtures
PLAN = ActorPlan(2, 1)
RUNS: list[int] = []  # how many items each call of `mapped` was for


def shuffled(
    kind: Callable[..., Callable[[Any], Any]], opening: tuple[Any, ...], items: Sequence[Any], plan: ActorPlan
) -> Iterator[tuple[int, Any]]:
    """As `slm.native.ray_data.mapped`, by two workers in this process."""
    RUNS.append(len(items))
    workers = [kind(*pickle.loads(pickle.dumps(opening))) for _ in range(2)]
    numbers = list(range(len(items)))
    random.Random(3).shuffle(numbers)
    for number in numbers:
        yield number, pickle.loads(pickle.dumps(workers[number % 2](pickle.loads(pickle.dumps(items[number])))))


@pytest.fixture(autouse=True)
def _by_stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread_embedding, "mapped", shuffled)
    monkeypatch.setattr(spread_reading, "mapped", shuffled)
    monkeypatch.setattr(ActorPlan, "of_cluster", classmethod(lambda cls: PLAN))


def files_of(index: Path) -> dict[str, bytes]:
    """What a generation holds, by name."""
    folder = open_inventory(index).folder
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_vectors_that_come_in_any_order_make_the_same_index(tmp_path: Path) -> None:
    documents = [page(f"{n}.md", f"Page {n} about matter {n} of {n * 7}.") for n in range(300)]
    told: list[tuple[int, int]] = []
    add_documents(tmp_path / "here", documents, PairEmbedder())
    there = SpreadEmbedder(PairEmbedder(), PairEmbedder, PLAN)
    add_documents(tmp_path / "there", documents, there, lambda done, total: told.append((done, total)))
    assert files_of(tmp_path / "here") == files_of(tmp_path / "there")
    assert told[-1] == (300, 300) and len(told) == 5


def vectors_of(store: Database) -> dict[tuple[str, str], bytes]:
    with store.contents() as contents:
        return {
            (held.source, chunk.text): vector.tobytes()
            for held in contents.documents
            for chunk, vector in zip(held.chunks, held.vectors, strict=True)
        }


def test_a_database_is_filled_by_one_run_of_the_actors_with_the_vectors_of_one_machine(database: str) -> None:
    """And what was there before is not embedded again."""
    pages = [page(f"{n}.md", f"Page {n % 200} about matter {n % 200 * 7}.") for n in range(300)]
    here, there = Database(with_index(database, "here")), Database(with_index(database, "there"))
    here.add(pages, PairEmbedder())
    spread, told = SpreadEmbedder(PairEmbedder(), PairEmbedder, PLAN), list[tuple[int, int]]()
    RUNS.clear()
    assert there.add(pages, spread, lambda done, total: told.append((done, total))).added == 300
    assert RUNS == [5] and told[-1] == (300, 300) and len(told) == 5
    changed = [*pages[:150], *(page(f"{n}.md", f"Page {n} is new.") for n in range(150, 300))]
    here.add(changed, PairEmbedder())
    assert there.add(changed, spread).replaced == 150 and RUNS == [5, 3]
    assert vectors_of(here) == vectors_of(there)


def test_a_run_into_a_database_that_is_broken_off_keeps_whole_documents(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = [page(f"{n}.md", f"Page {n} about matter {n * 7}.") for n in range(300)]
    store, spread = Database(with_index(database, "i")), SpreadEmbedder(PairEmbedder(), PairEmbedder, PLAN)

    def breaking(*work: Any) -> Iterator[tuple[int, Any]]:
        yield from list(shuffled(*work))[:3]
        raise EngineError("the work on Ray broke off")

    monkeypatch.setattr(spread_embedding, "mapped", breaking)
    with pytest.raises(EngineError, match="broke off"):
        store.add(pages, spread)
    kept = set(store.held().documents)
    assert 64 <= len(kept) < 300 and {source for source, _ in vectors_of(store)} == kept
    monkeypatch.setattr(spread_embedding, "mapped", shuffled)
    change = store.add(pages, spread)
    assert (change.added, change.unchanged) == (300 - len(kept), len(kept))


def older() -> PairEmbedder:
    """What a machine has on which nobody upgraded."""
    embedder = PairEmbedder()
    embedder.identity = replace(embedder.identity, revision="0")
    return embedder


def test_a_machine_with_another_embedder_is_refused(tmp_path: Path) -> None:
    there = SpreadEmbedder(PairEmbedder(), older, PLAN)
    with pytest.raises(MismatchError, match="another machine has the embedder"):
        add_documents(tmp_path / "index", [page("a.md", "A page.")], there)
    assert not (tmp_path / "index" / "CURRENT").exists()


def test_files_that_are_read_elsewhere_give_the_same_reading(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number:02}.md").write_text(f"# Page {number}\n\nText of {number}.\n", encoding="utf-8")
    (tmp_path / "05.md").write_text("", encoding="utf-8")
    (tmp_path / "07.pdf").write_bytes(b"no pdf at all")
    here, there = read_files([tmp_path]), read_files([tmp_path], by=read_spread)
    assert here.documents == there.documents and len(here.documents) == 19
    assert here.skipped == there.skipped and len(here.skipped) == 2
    assert here.files == there.files and here.notes == there.notes


def test_a_file_that_another_machine_does_not_have_ends_the_reading(tmp_path: Path) -> None:
    """It must not be taken for a file that is gone, whose document would leave the index."""
    with pytest.raises(MissingFileError, match="is not on the machine"):
        list(read_spread([tmp_path / "gone.md"], ReadOptions()))
