"""`slm rag sync` as a command: sites on a port, folders, exit codes, tokens, and a process that is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from rag.answer.retriever import open_retriever
from rag.cli.rag import rag
from rag.cli.sync import Interval, _wait
from rag.index.names import index_path
from rag.index.store import open_generation
from rag.sources.confluence.rest.client import Client
from rag.sources.confluence.rest.credentials import Credentials
from rag.stores.files import FileStore
from rag.sync.run import Wanted, sync_index
from rag.sync.space import How
from slm.errors import InputError, UnknownNameError
from tests.fake_confluence import EMAIL, TOKEN, FakeConfluence, serving, transport
from tests.path_joints import PathJoints
from tests.tiny_rag import PairEmbedder, own_home

__all__ = ["own_home"]  # a fixture


def run(*args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(rag, ["sync", "i", *args], obj=PathJoints())
    assert result.exit_code == code or (code and result.exception), result.exception or result.output
    assert TOKEN not in result.output + str(result.exception), "a token was shown"
    return result


@pytest.fixture(params=[True, False], ids=["cloud", "data-center"])
def site(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FakeConfluence, str]]:
    fake = FakeConfluence(cloud=request.param)
    fake.add("Canteen", "<p>The canteen closes at 13:40.</p>")
    fake.add("社員食堂", "<p>社員食堂は13時40分に閉まります。</p>")
    monkeypatch.setenv("CONFLUENCE_TOKEN", TOKEN)
    if request.param:
        monkeypatch.setenv("CONFLUENCE_EMAIL", EMAIL)
    with serving(fake) as url:
        yield fake, url


def test_a_space_is_synced_edited_and_synced_again_and_answers_follow(site: tuple[FakeConfluence, str]) -> None:
    fake, url = site
    first = run("--confluence-url", url + "/display/DOCS", "--space", "DOCS")
    assert f"{url}#DOCS: 2 added, 0 changed, 0 same, 0 gone, 0 skipped" in first.stdout
    with open_retriever("i") as running:
        question = "When does the canteen close?"
        assert "13:40" in running.search(question, 1)[0].text
        follows(fake, url, lambda: running.search(question, 1)[0].text)


def follows(fake: FakeConfluence, url: str, running: Callable[[], str]) -> None:
    fake.edit("1001", "<p>The canteen closes at 14:10.</p>")
    fake.delete("1002")
    second = run()
    assert "0 added, 1 changed, 0 same, 1 gone, 0 skipped" in second.stdout
    assert "14:10" in running(), "what is running answers from the old generation"
    found = CliRunner().invoke(rag, ["search", "i", "When does the canteen close?", "--json"], obj=PathJoints())
    (result,) = json.loads(found.stdout)["results"]
    assert "14:10" in result["text"] and result["source"] == f"{url}/pages/viewpage.action?pageId=1001"
    report = json.loads(run("--full", "--json").stdout)["sources"][0]
    assert (report["changed"], report["same"], report["error"]) == (1, 0, None)


def test_what_was_not_read_fails_only_a_strict_run(site: tuple[FakeConfluence, str]) -> None:
    fake, url = site
    fake.pages["1002"].body = "<ac:structured-macro" + "x" * 10
    whole = fake.answer

    def denied(target: str, headers: Any) -> Any:
        if "1002?" in target:
            return 403, {}, b"{}"
        status, more, body = whole(target, headers)
        return status, more, body

    fake.answer = denied  # type: ignore[method-assign]
    fake.faults.bare = True
    args = ("--confluence-url", url, "--space", "DOCS")
    assert "1 added" in run(*args).stdout and "may not read" in run().stderr
    run("--strict", code=1)


def test_wrong_tokens_and_spaces_exit_with_one_and_leave_no_index(
    site: tuple[FakeConfluence, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, url = site
    assert "unknown space 'NONE'" in run("--confluence-url", url, "--space", "NONE", code=1).stdout
    file = tmp_path / "token"
    file.write_text("an-old-token\n")
    wrong = run("--confluence-url", url, "--space", "DOCS", "--token-file", str(file), code=1)
    assert "has expired" in wrong.stdout and str(file) in wrong.stdout and "an-old-token" not in wrong.output
    file.write_text(TOKEN + "\n")
    monkeypatch.delenv("CONFLUENCE_TOKEN")
    assert "no token" in run("--confluence-url", url, "--space", "DOCS", code=1).stdout
    secret = url.replace("http://", f"http://aoi:{TOKEN}@")
    assert isinstance(run("--confluence-url", secret, "--space", "DOCS", code=1).exception, InputError)
    run("--confluence-url", url, "--space", "DOCS", "--token-file", str(file))


def test_a_page_of_html_in_the_place_of_a_site_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONFLUENCE_TOKEN", TOKEN)
    fake = FakeConfluence(cloud=False)
    fake.answer = lambda target, headers: (200, {}, b"<!doctype html><html>Log in</html>")  # type: ignore[method-assign]
    with serving(fake) as url:
        assert "a login page" in run("--confluence-url", url, "--space", "DOCS", code=1).stdout
    fake.answer = lambda target, headers: (302, {"location": "https://evil.example/x?y"}, b"")  # type: ignore[method-assign]
    with serving(fake) as url:
        assert "to 'evil.example/x'" in run("--confluence-url", url, "--space", "DOCS", code=1).stdout


def test_folders_that_were_added_are_synced_and_removed_ones_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / f"{name}.md").write_text(f"# {name}\n\nText of {name}.\n")
    single = tmp_path / "single.md"
    single.write_text("# Single\n\nAlone.\n")
    assert CliRunner().invoke(rag, ["add", "i", str(folder), str(single)], obj=PathJoints()).exit_code == 0
    (folder / "a.md").write_text("# a\n\nAnother text.\n")
    (folder / "b.md").unlink()
    (folder / "d.md").write_text("# d\n\nNew.\n")
    assert "files: 1 added, 1 changed, 2 same, 1 gone, 0 skipped" in run().stdout
    single.unlink()
    assert "3 same, 1 gone" in run().stdout and "3 same, 0 gone" in run().stdout
    folder.rename(tmp_path / "away")
    gone = run(code=1)
    assert "there is no file or folder" in gone.stdout and "3 documents" in gone.stdout
    (tmp_path / "away").rename(folder)
    assert CliRunner().invoke(rag, ["remove", "i", str(folder)], obj=PathJoints()).exit_code == 0
    nothing = run(code=1).exception
    assert isinstance(nothing, InputError) and "no source to sync" in nothing.what


def test_a_folder_that_is_suddenly_empty_keeps_its_documents_and_other_sources_go_on(
    site: tuple[FakeConfluence, str], tmp_path: Path
) -> None:
    _, url = site
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.md").write_text("# a\n\nText of a.\n")
    CliRunner().invoke(rag, ["add", "i", str(folder)], obj=PathJoints())
    (folder / "a.md").unlink()
    both = run("--confluence-url", url, "--space", "DOCS", code=1)
    assert "1 of the 1 documents" in both.stdout and "2 added" in both.stdout
    assert "1 gone" in run("--allow-mass-delete").stdout


def test_an_index_that_is_not_there_and_options_that_do_not_fit_are_refused() -> None:
    assert isinstance(run(code=1).exception, UnknownNameError)
    assert "name one site and its spaces" in run("--space", "DOCS", code=2).stderr
    assert "name one site and its spaces" in run("--confluence-url", "https://a.example", code=2).stderr
    assert "no time" in run("--every", "soon", code=2).stderr


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("15m", 900), ("2h", 7200), ("1d", 86400), ("30", 30)])
def test_a_time_is_read_with_its_unit(text: str, seconds: float) -> None:
    assert Interval().convert(text, None, None) == seconds
    with pytest.raises(click.BadParameter):
        Interval().convert("0m", None, None)


def test_a_service_syncs_again_after_each_wait_and_goes_on_after_a_round_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.md").write_text("# a\n\nText of a.\n")
    CliRunner().invoke(rag, ["add", "i", str(folder)], obj=PathJoints())
    waits: list[float] = []
    pointer = index_path("i") / "CURRENT"

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 1:
            (folder / "b.md").write_text("# b\n\nText of b.\n")
        elif len(waits) == 2:
            shutil.move(pointer, tmp_path / "away")
        elif len(waits) == 3:
            shutil.move(tmp_path / "away", pointer)
        else:
            raise KeyboardInterrupt

    monkeypatch.setattr("rag.cli.sync.time", SimpleNamespace(sleep=sleep))
    ended = run("--every", "2m", code=1)
    assert waits == [120.0] * 4
    counts = [line.partition(": ")[2] for line in ended.stdout.splitlines() if " added" in line]
    assert [line[:7] for line in counts] == ["0 added", "1 added", "0 added"], ended.stdout
    assert "this time it failed" in ended.stderr


def test_a_watched_folder_ends_the_wait_when_a_file_changes(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.md").write_text("# a\n\nText of a.\n")
    CliRunner().invoke(rag, ["add", "i", str(folder)], obj=PathJoints())
    edits = threading.Thread(target=_edit_for_long, args=(folder / "a.md", ended := threading.Event()))
    edits.start()
    begun = time.monotonic()
    _wait(FileStore(index_path("i")), 600, watch=True)
    ended.set()
    edits.join()
    assert time.monotonic() - begun < 300


def _edit_for_long(file: Path, ended: threading.Event) -> None:
    number = 0
    while not ended.wait(0.2):
        number += 1
        file.write_text(f"# a\n\nText of a, {number} times edited.\n")


STEPS = ("replace", "fsync", "rename", "mkdir", "unlink", "rmdir", "chmod")


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do some work in a process that is killed before its so-manieth change of the disk; whether it was."""
    child = os.fork()
    if child == 0:
        left = step

        def counted(original: Any) -> Any:
            def call(*args: Any, **named: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args, **named)

            return call

        for name in STEPS:
            setattr(os, name, counted(getattr(os, name)))
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_a_sync_killed_at_any_step_leaves_the_old_or_the_new_generation(tmp_path: Path) -> None:
    fake = FakeConfluence(cloud=False)
    for n in range(6):
        fake.add(f"Page {n}", f"<p>Old text {n}.</p>")

    def sync(path: Path) -> None:
        def client(base: str) -> Client:
            return Client(base, Credentials(TOKEN), transport=transport(fake))

        (report,) = sync_index(
            FileStore(path), [Wanted("http://wiki.example", "DOCS")], client, lambda name: PairEmbedder(), How()
        )
        assert not report.error

    def texts(path: Path) -> list[str]:
        return sorted(chunk.text for chunk in open_generation(path).chunks)

    sync(tmp_path / "start")
    old = texts(tmp_path / "start")
    fake.edit("1001", "<p>New text.</p>")
    fake.delete("1002")
    shutil.copytree(tmp_path / "start", tmp_path / "end")
    sync(tmp_path / "end")
    new, seen = texts(tmp_path / "end"), set()
    step = 0
    while True:
        path = tmp_path / f"at-{step}"
        shutil.copytree(tmp_path / "start", path)
        killed = killed_at(step, partial(sync, path))
        state = texts(path)
        assert state in (old, new), step
        seen.add(tuple(state))
        sync(path)
        assert texts(path) == new and len(list(path.glob("gen-*"))) == 1, step
        assert not [entry for entry in path.iterdir() if entry.name.endswith((".part", ".old"))], step
        if not killed:
            break
        step += 1
    assert step > 10 and seen == {tuple(old), tuple(new)}
    assert not index_path("i").exists()
