"""An index of parts: edits cost what was edited, and the whole equals one made anew; killed at every step; readers."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rag.document import Document, Section
from rag.index.generation.merging import groups_of, is_worn
from rag.index.generation.postings import build_postings, merged_postings
from rag.index.lexical.pairs import terms_of
from rag.index.retrieve import search
from rag.index.store import Generation, open_generation
from rag.index.update import add_documents, remove_documents
from tests.tiny_rag import PairEmbedder, own_home, page

__all__ = ["own_home"]  # a fixture

WORDS = ("apples", "pears", "休暇の申請", "会議室", "plums", "経費の精算", "figs", "社員食堂", "badge", "入館証")
QUERIES = ("apples and pears", "休暇", "会議室の予約", "figs", "証", "badge 経費")


def long_page(source: str, chance: random.Random) -> Document:
    """A page of one to four sections."""
    sections = [
        Section((f"Heading {n}",), " ".join(chance.choices(WORDS, k=chance.randint(1, 12))))
        for n in range(chance.randint(1, 4))
    ]
    return Document(f"Page {source}", source, chance.choice(("en", "ja")), tuple(sections))


def held(generation: Generation) -> dict[tuple[str, int], Any]:
    """All that is to be the same however an index came about, by source and number of the chunk."""
    scores = [generation.lexical.scores(query) for query in QUERIES]
    return {
        (chunk.source, chunk.ordinal): (
            chunk, [float(score[row]) for score in scores], generation.vector(row).tolist(),
            bool(generation.facets.in_language(np.asarray([row]), chunk.lang)[0]),
        )
        for row, chunk in enumerate(generation.chunks)
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_an_index_that_was_changed_many_times_equals_one_that_is_made_anew(tmp_path: Path, seed: int) -> None:
    chance, embedder, pages = random.Random(seed), PairEmbedder(), dict[str, Document]()
    for _ in range(25):
        names = [f"p{chance.randint(0, 30)}.md" for _ in range(chance.choice((1, 1, 2, 12)))]
        if pages and chance.random() < 0.3:
            gone = chance.choice(sorted(pages))
            remove_documents(tmp_path / "i", [gone])
            del pages[gone]
            continue
        pages.update({name: long_page(name, chance) for name in names})
        add_documents(tmp_path / "i", [pages[name] for name in dict.fromkeys(names)], embedder)
    generation = open_generation(tmp_path / "i")
    add_documents(tmp_path / "new", list(pages.values()), embedder)
    assert held(generation) == held(open_generation(tmp_path / "new"))
    assert [entry["chunks"] for entry in generation.documents.values()] == [
        sum(chunk.source == source for chunk in generation.chunks) for source in generation.documents
    ]
    for leg in ("dense", "lexical", "fused"):
        found = [generation.chunks[hit.row].source for hit in search(generation, embedder, "会議室 apples", 8, leg)]
        assert set(found) <= set(pages)


def test_an_edit_of_one_page_embeds_its_changed_chunk_and_touches_no_other_file(tmp_path: Path) -> None:
    path, embedder = tmp_path / "i", PairEmbedder()
    pages = [Document("T", f"{n}.md", "en", (Section(("A",), f"apples {n}"), Section(("B",), f"pears {n}")))
             for n in range(60)]  # fmt: skip
    add_documents(path, pages, embedder)
    before = {file.name: file.stat().st_ino for file in (path / "gen-1" / "part-1").iterdir()}
    embedder.embedded.clear()
    add_documents(path, [Document("T", "7.md", "en", (pages[7].sections[0], Section(("B",), "figs")))], embedder)
    assert embedder.embedded == ["T > B\nfigs"]
    assert {file.name: file.stat().st_ino for file in (path / "gen-2" / "part-1").iterdir()} == before
    assert not (path / "gen-1").exists()
    generation = open_generation(path)
    assert [len(part) for part in generation.loaded] == [120, 2] and len(generation.chunks) == 120
    assert search(generation, embedder, "pears 7", 1, "lexical")[0].row != 15
    assert {generation.chunks[hit.row].text for hit in search(generation, embedder, "figs", 5, "lexical")} == {"figs"}


def test_a_page_that_only_moves_is_not_written_again(tmp_path: Path) -> None:
    path, embedder = tmp_path / "i", PairEmbedder()
    add_documents(path, [page(f"{n}.md", f"apples {n}") for n in range(9)], embedder)
    moved = Document("Page", "x/3.md", "en", (Section(("Heading",), "apples 3"),))
    embedder.embedded.clear()
    from rag.index.change.gone import Seen

    change = add_documents(path, [moved], embedder, seen=Seen(roots={"3.md": ["3.md"]}))
    generation = open_generation(path)
    assert (change.moved, embedder.embedded, len(generation.loaded)) == (1, [], 1)
    assert "x/3.md" in {chunk.source for chunk in generation.chunks} and "3.md" not in generation.documents


def test_parts_grow_in_steps_and_stay_few() -> None:
    parts: dict[str, tuple[int, int]] = {}
    written = 0
    for number in range(2000):
        groups = groups_of(parts, 5)
        merged = {tuple(names): sum(parts[n][1] for n in names if n) + 5 * ("" in names) for names in groups}
        written += sum(size for names, size in merged.items() if "" in names)
        parts = {names[0] if "" not in names else str(number): (size, size) for names, size in merged.items()}
        assert len(parts) <= 13
    assert sum(size for size, _ in parts.values()) == 10_000
    assert written < 10_000 * 12, "a chunk is written some log2(n) times, not n times"
    assert groups_of({"large": (50_000, 50_000), "small": (8, 8)}, 6) == [["large"], ["small", ""]]
    assert groups_of({"empty": (9, 0), "a": (4, 4)}, 0) == [["a"]]
    assert is_worn(10, 4) and not is_worn(10, 5)


def test_merged_words_are_those_of_all_texts_at_once() -> None:
    texts = [["apples", "apples", "休暇"], ["pears"], [], ["休暇", "暇の"], ["figs", "pears", "pears"]]
    first, second = build_postings(texts[:3]), build_postings(texts[3:])
    kept = np.asarray([0, -1, 1]), np.asarray([2, 3])
    merged = merged_postings([(first, kept[0]), (second, kept[1])])
    whole = build_postings([texts[0], texts[2], texts[3], texts[4]])
    for name in ("terms", "term_starts", "starts", "rows", "counts", "lengths", "pairs", "pair_terms"):
        assert np.array_equal(getattr(merged, name), getattr(whole, name)), name
    assert whole.pairs_with("暇") == ["休暇", "暇の"] and whole.span("nothing") is None
    assert whole.term(0) == b"apples" and len(whole) == 5 and terms_of("休暇の") == ["休暇", "暇の"]


def test_files_are_copied_where_a_file_system_has_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Any, target: Any) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    embedder = PairEmbedder()
    add_documents(tmp_path / "i", [page(f"{n}.md", f"apples {n}") for n in range(9)], embedder)
    add_documents(tmp_path / "i", [page("9.md", "pears")], embedder)
    generation = open_generation(tmp_path / "i")
    assert len(generation.loaded) == 2 and len(generation.chunks) == 10


# Killed at every step


class Killed:
    """A system whose process is killed before the nth time that it makes, links, moves or removes something."""

    CALLS = ((os, "link"), (os, "replace"), (os, "fsync"), (os, "unlink"), (os, "mkdir"), (os, "rmdir"))

    def __init__(self, last: int) -> None:
        self.left = last

    def install(self) -> None:
        for owner, name in self.CALLS:
            setattr(owner, name, self.counted(getattr(owner, name)))

    def counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **options: Any) -> Any:
            if not self.left:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1
            return call(*args, **options)

        return counting


def killed_runs(start: Path, path: Path, change: Callable[[], object]) -> Iterator[int]:
    """Run a change in a child that is killed before its first step, before its second, ... until it ends well."""
    for step in range(1000):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(start, path)
        child = os.fork()
        if not child:
            Killed(step).install()
            try:
                change()
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        yield step
        if not os.WIFSIGNALED(status):
            return
    raise AssertionError("it never ended")


def test_a_process_killed_at_any_step_leaves_the_old_or_the_new_generation_and_the_next_one_goes_on(
    tmp_path: Path,
) -> None:
    start, path, embedder = tmp_path / "start", tmp_path / "i", PairEmbedder()
    add_documents(start, [page(f"{n}.md", f"apples {n}") for n in range(9)], embedder)
    add_documents(start, [page("9.md", "pears")], embedder)
    old = {chunk.text for chunk in open_generation(start).chunks}
    new = old - {"apples 3"} | {"figs"}
    seen = []

    def edit() -> object:
        return add_documents(path, [page("3.md", "figs")], embedder)

    for step in killed_runs(start, path, edit):
        texts = {chunk.text for chunk in open_generation(path).chunks}
        assert texts in (old, new), f"step {step}"
        seen.append(texts == new)
        edit()
        assert {chunk.text for chunk in open_generation(path).chunks} == new
        assert len(list(path.glob("gen-*"))) == 1 and not list(path.glob(".*.part")), f"step {step}"
    assert len(seen) > 30 and not seen[0] and seen[-1] and seen == sorted(seen), "old up to one step, new from there on"


# Readers


def test_a_reader_goes_on_with_its_generation_and_opens_the_next_one_without_reading_all_again(tmp_path: Path) -> None:
    path, embedder = tmp_path / "i", PairEmbedder()
    add_documents(path, [page(f"{n}.md", f"apples {n}") for n in range(9)], embedder)
    before = open_generation(path)
    add_documents(path, [page("9.md", "pears")], embedder)
    assert not before.folder.exists()
    assert [chunk.text for chunk in before.chunks][8] == "apples 8" and len(before.chunks) == 9
    assert search(before, embedder, "apples 8", 1, "lexical")[0].row == 8
    after = open_generation(path, before)
    assert after.loaded[0] is before.loaded[0] and len(after.chunks) == 10
    assert after.chunks[-1].text == "pears" and after.chunks[8:] == [after.chunks[8], after.chunks[9]]
    with pytest.raises(IndexError):
        after.chunks[10]
