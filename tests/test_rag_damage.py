"""An index that is damaged, full disks, and the command that makes an index anew."""

from __future__ import annotations

import errno
import json
import random
import resource
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest
from click.testing import CliRunner, Result

from rag.cli.rag import rag
from rag.index.generation import part as part_module
from rag.index.generation.arrays import save_arrays
from rag.index.generation.inventory import FORMAT
from rag.index.generation.part import part_files
from rag.index.names import index_path
from rag.index.retrieve import search
from rag.index.store import open_generation
from rag.index.update import add_documents, remove_documents
from rag.index.variants import comparable
from slm.artifacts import is_disk_full, new_file, new_folder, require_space, sha256_file
from slm.errors import DamagedFileError, ResourceError, UnsupportedError
from tests.path_joints import PathJoints
from tests.tiny_rag import PairEmbedder, own_home, page

__all__ = ["own_home"]  # a fixture

PARTS = [*(f"part-1/{file}" for file in part_files("flat")), "documents.jsonl", "manifest.json", "CURRENT"]
HARM = ["missing", "empty", "half", "random", "one byte"]


def run(*args: str) -> Result:
    return CliRunner().invoke(rag, list(args), obj=PathJoints())


def harm(file: Path, how: str) -> None:
    raw = file.read_bytes()
    if how == "missing":
        file.unlink()
    elif how == "one byte":
        at = len(raw) // 2
        file.write_bytes(raw[:at] + bytes([raw[at] ^ 0x80]) + raw[at + 1 :])
    else:
        noise = random.Random(len(raw)).randbytes(len(raw))
        file.write_bytes({"empty": b"", "half": raw[: len(raw) // 2], "random": noise}[how])


@pytest.mark.parametrize("how", HARM)
@pytest.mark.parametrize("name", PARTS)
def test_damage_to_any_part_is_one_clear_error_that_names_the_command(tmp_path: Path, name: str, how: str) -> None:
    path = tmp_path / "i"
    add_documents(path, [page("a.md", "apples"), page("b.md", "pears")], PairEmbedder())
    file = path / name if name == "CURRENT" else path / "gen-1" / name
    harm(file, how)
    command = rf"is damaged: .*slm rag add {path} PATH\.\.\. --fresh"
    with pytest.raises(DamagedFileError, match=command):
        open_generation(path)
    with pytest.raises(DamagedFileError, match=command):  # of the page that is edited the old chunks are read
        add_documents(path, [page("a.md", "figs")], PairEmbedder())
    if name.startswith("part-1/") and how in ("random", "one byte"):  # only a reader of the file can tell
        remove_documents(path, ["a.md"])
    else:
        with pytest.raises(DamagedFileError, match=command):
            remove_documents(path, ["a.md"])
    with pytest.raises(DamagedFileError, match=command):
        open_generation(path)
    change = add_documents(path, [page("c.md", "figs")], PairEmbedder(), fresh=True)
    assert (change.added, change.chunks) == (1, 1)
    assert [chunk.text for chunk in open_generation(path).chunks] == ["figs"]
    assert len(list(path.glob("gen-*"))) == 1


def test_the_hinted_command_makes_a_damaged_index_anew_from_where_it_came(tmp_path: Path) -> None:
    folder = tmp_path / "hand book"
    folder.mkdir()
    (folder / "a.md").write_text("# Canteen\n\nThe canteen closes at 13:40.\n")
    assert run("add", "handbook", str(folder)).exit_code == 0
    harm(index_path("handbook") / "gen-1" / "part-1" / "vectors.npy", "half")
    error = run("search", "handbook", "canteen").exception
    assert isinstance(error, DamagedFileError)
    command = shlex.split(error.hint.partition("slm rag ")[2])
    assert command == ["add", "handbook", folder.as_posix(), "--fresh"]
    assert run(*command).exit_code == 0
    assert "13:40" in run("search", "handbook", "canteen").stdout


def test_making_an_index_anew_forgets_what_it_held_and_may_change_the_embedder(tmp_path: Path) -> None:
    add_documents(tmp_path / "i", [page("a.md", "apples")], PairEmbedder())
    other = PairEmbedder("others", 32)
    add_documents(tmp_path / "i", [page("b.md", "pears")], other, fresh=True)
    generation = open_generation(tmp_path / "i")
    assert list(generation.documents) == ["b.md"] and generation.manifest["embedder"]["name"] == "others"


def test_a_folder_in_the_place_of_a_file_of_the_index_does_not_keep_it_from_being_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "i"
    for part in ("CURRENT", "documents.jsonl", "manifest.json"):
        add_documents(path, [page("a.md", "apples")], PairEmbedder(), fresh=True)
        file = path / part if part == "CURRENT" else open_generation(path).folder / part
        file.unlink()
        file.mkdir()
        (file / "x").write_text("in the way")
        with pytest.raises(DamagedFileError, match="--fresh"):
            open_generation(path)
        add_documents(path, [page("b.md", "pears")], PairEmbedder(), fresh=True)
        assert list(open_generation(path).documents) == ["b.md"]


def test_a_full_disk_while_vectors_are_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "vectors.npy").symlink_to("/dev/full")
    with pytest.raises(OSError) as full:
        save_arrays(tmp_path, {"vectors": np.ones((1000, 8), dtype=np.float32)})
    assert full.value.errno == errno.ENOSPC


@pytest.fixture
def short_files() -> Iterator[None]:
    """No file may get longer than 10,000 bytes: numpy then writes an array in part, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("short_files")
def test_an_array_that_was_written_in_part_is_a_full_disk_like_any_other(tmp_path: Path) -> None:
    vectors = {"vectors": np.ones((1000, 8), dtype=np.float32)}
    with pytest.raises(OSError, match="requested and") as short:
        save_arrays(tmp_path, vectors)
    assert short.value.errno is None and is_disk_full(short.value) and not is_disk_full(OSError("else"))
    said = rf"no disk space left while writing '{tmp_path / 'index'}'"
    with pytest.raises(ResourceError, match=said), new_folder(tmp_path / "index", "index") as (folder, _):
        save_arrays(folder, vectors)
    with pytest.raises(ResourceError, match=said), new_file(tmp_path / "index") as file:
        vectors["vectors"].tofile(file)


@pytest.mark.parametrize(
    ("needed", "free", "said"),
    [
        (240_000, 220_000, r"for 240 kB in .* \(found: 220 kB free\)"),
        (420_000, 4096, r"for 420 kB in .* \(found: 4 kB free\)"),
        (12_300_000, 9_800_000, r"for 12 MB in .* \(found: 9,800 kB free\)"),
    ],
)
def test_the_figures_of_a_small_disk_tell_something(
    needed: int, free: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(ResourceError, match=f"no disk space {said}"):
        require_space(tmp_path / "not there", needed)


def test_a_full_disk_or_memory_leaves_the_old_generation_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, embedder = tmp_path / "i", PairEmbedder()
    add_documents(path, [page("a.md", "apples")], embedder)

    def full(folder: Any, arrays: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def exhausted(folder: Any, arrays: Any) -> None:
        raise MemoryError

    for fault, said in ((full, "no disk space left"), (exhausted, "not enough memory")):
        with monkeypatch.context() as patch:
            patch.setattr(part_module, "save_arrays", fault)
            with pytest.raises(ResourceError, match=said):
                add_documents(path, [page("b.md", "pears")], embedder)
        assert sorted(p.name for p in path.iterdir()) == [".embedded", ".lock", "CURRENT", "gen-1"]
        assert list(open_generation(path).documents) == ["a.md"]
    embedder.embedded.clear()
    add_documents(path, [page("b.md", "pears")], embedder)
    assert embedder.embedded == [], "what was embedded before the disk was full is not embedded again"
    assert sorted(p.name for p in path.iterdir()) == [".lock", "CURRENT", "gen-2"]


def as_format_3(path: Path) -> Path:
    """Rewrite an index as it was before generations had parts; the file of its manifest."""
    generation = open_generation(path)
    folder = generation.folder
    store = faiss.index_factory(64, "IDMap2,Flat", faiss.METRIC_INNER_PRODUCT)
    vectors = np.stack([generation.vector(row) for row in range(len(generation.chunks))])
    store.add_with_ids(vectors, np.arange(len(vectors)) + 7)
    rows = [{"id": row + 7, **asdict(chunk)} for row, chunk in enumerate(generation.chunks)]
    shutil.rmtree(folder / "part-1")
    (folder / "documents.jsonl").unlink()
    (folder / "chunks.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    faiss.write_index(store, str(folder / "vectors.faiss"))
    for name in ("lexical.npz", "terms.json"):
        (folder / name).write_text("not read any more")
    names = ("chunks.jsonl", "vectors.faiss", "lexical.npz", "terms.json")
    manifest = {key: value for key, value in generation.manifest.items() if key not in ("parts", "next_part")}
    manifest.update(format=3, documents=generation.documents, next_id=len(rows) + 7)
    manifest.update(files={name: sha256_file(folder / name) for name in names})
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder / "manifest.json"


def as_format_2(path: Path) -> Path:
    """Rewrite an index as it was before its chunks had a context line."""
    file = as_format_3(path)
    chunks = path / "gen-1" / "chunks.jsonl"
    rows = [json.loads(line) for line in chunks.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        del row["context"]
    chunks.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    manifest = json.loads(file.read_text())
    files = {**manifest["files"], "chunks.jsonl": sha256_file(chunks)}
    file.write_text(json.dumps({**manifest, "format": 2, "files": files}))
    return file


def as_format_1(path: Path) -> Path:
    """Rewrite an index as the first release left it: no format, checksums or roots."""
    file = as_format_2(path)
    manifest = json.loads(file.read_text())
    del manifest["format"], manifest["files"], manifest["sources"]
    for entry in manifest["documents"].values():
        del entry["text_sha256"], entry["roots"]
    file.write_text(json.dumps(manifest))
    return file


@pytest.mark.parametrize("as_format", [as_format_1, as_format_2, as_format_3])
def test_an_index_of_an_earlier_format_opens_and_goes_on(tmp_path: Path, as_format: Callable[[Path], object]) -> None:
    path, embedder = tmp_path / "i", PairEmbedder()
    add_documents(path, [page("a.md", "髙橋さんの席", lang="ja"), page("b.md", "pears")], embedder)
    as_format(path)
    embedder.embedded.clear()
    generation = open_generation(path)
    assert generation.chunks[search(generation, embedder, "高橋", 1, "lexical")[0].row].source == "a.md"
    change = add_documents(path, [page("b.md", "pears"), page("c.md", "figs")], embedder)
    assert (change.added, change.unchanged, len(embedder.embedded)) == (1, 1, 1)
    again = open_generation(path)
    assert again.manifest["format"] == FORMAT and sorted(again.documents) == ["a.md", "b.md", "c.md"]
    for row, chunk in enumerate(again.chunks):
        assert np.allclose(again.vector(row), embedder.queries([comparable(chunk.indexed_text)])[0], atol=1e-6)
    remove_documents(path, ["b.md"])
    assert [chunk.text for chunk in open_generation(path).chunks] == ["髙橋さんの席", "figs"]
    assert {chunk.context for chunk in again.chunks} == {"Page > Heading"}


@pytest.mark.parametrize("name", ["chunks.jsonl", "vectors.faiss", "manifest.json"])
@pytest.mark.parametrize("how", ["missing", "empty", "half", "random"])
def test_damage_to_an_index_of_the_first_release_is_found_too(tmp_path: Path, name: str, how: str) -> None:
    add_documents(tmp_path / "i", [page("a.md", "apples"), page("b.md", "pears")], PairEmbedder())
    as_format_1(tmp_path / "i")
    assert len(open_generation(tmp_path / "i").chunks) == 2
    harm(tmp_path / "i" / "gen-1" / name, how)
    with pytest.raises(DamagedFileError, match="--fresh"):
        open_generation(tmp_path / "i")


def test_an_index_of_a_newer_format_is_refused_by_its_format(tmp_path: Path) -> None:
    add_documents(tmp_path / "i", [page("a.md", "apples")], PairEmbedder())
    file = tmp_path / "i" / "gen-1" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": FORMAT + 1}))
    with pytest.raises(UnsupportedError, match=rf"newer version.*format {FORMAT + 1}.*--fresh"):
        open_generation(tmp_path / "i")


@pytest.mark.parametrize(
    "change",
    [
        {"parts": []}, {"parts": {"part-1": 3}}, {"parts": {}}, {"embedder": {}}, {"chunks": "x"}, {"chunks": 2},
        {"format": "2"}, {"format": 3}, {"kind": "run"}, {"files": {}}, {"sources": {"a": {}}},
    ],
)  # fmt: skip
def test_a_manifest_that_is_json_but_no_manifest_is_damage(tmp_path: Path, change: dict[str, Any]) -> None:
    add_documents(tmp_path / "i", [page("a.md", "apples")], PairEmbedder())
    file = tmp_path / "i" / "gen-1" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(DamagedFileError, match="--fresh"):
        open_generation(tmp_path / "i")
