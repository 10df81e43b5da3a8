"""A sync with a Confluence space, against a site with the faults of real ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.fake_confluence import FakeConfluence
from tests.tiny_sync import HOST, KINDS, Runs, runs

__all__ = ["runs"]  # a fixture


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
    deleted = chance.sample(sorted(site.shown()), 40)
    for id_ in deleted:
        site.delete(id_)
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


@KINDS
def test_only_what_changed_is_read_and_embedded(runs: Callable[..., Runs], cloud: bool) -> None:
    run = runs(cloud=cloud)
    run()
    run.embedder.embedded.clear()
    run.site.edit("1003", "<p>Another text.</p>")
    run.site.delete("1004")
    run.site.add("New", "<p>A new text.</p>")
    report = run()
    assert (report.added, report.changed, report.same, len(report.gone)) == (1, 1, 28, 1)
    assert len(run.embedder.embedded) == 2 and run.in_step()
    assert sum("body" in request for request in run.site.requests) <= 2
    generation = run.generation.folder.name
    assert run().same == 30 and run.generation.folder.name == generation, "nothing changed, and it was written anew"


@KINDS
def test_labels_moves_and_restrictions_are_noticed_though_they_make_no_version(
    runs: Callable[..., Runs], cloud: bool
) -> None:
    run = runs(cloud=cloud, pages=3)
    run()
    first, second, third = run.site.pages.values()
    second.parent, third.parent = first.id, second.id
    first.readers, third.readers = ["group:staff"], ["user:aoi", "group:board"]
    third.labels = ["secret"]
    run.embedder.embedded.clear()
    assert run().changed == 3 and run.embedder.embedded == []
    meta = next(e["meta"] for s, e in run.generation.documents.items() if s.endswith(third.id))
    assert meta["labels"] == ["secret"] and meta["ancestors"] == ["Page 0", "Page 1"]
    assert meta["id"] == f"confluence:{third.id}" and meta["space"] == "DOCS" and meta["version"] == 1
    assert meta["restrictions"] == [["group:staff"], ["group:board", "user:aoi"]]
    assert run().same == 3


@KINDS
def test_a_wrong_space_and_a_wrong_token_are_errors_that_do_not_show_the_token(
    runs: Callable[..., Runs], cloud: bool
) -> None:
    run = runs(cloud=cloud, pages=2)
    (report,) = run.all("NOWHERE")
    assert "unknown space 'NOWHERE'; known: DOCS, OTHER" in report.error
    (report,) = run.all("OTHER")
    assert "shows this account no page at all" in report.error
    run.token = "wrong-token"
    assert "does not accept the token" in run().error and "wrong-token" not in run().error
    assert not run.path.exists()


@KINDS
def test_a_token_that_expires_ends_the_run_and_the_next_one_goes_on(runs: Callable[..., Runs], cloud: bool) -> None:
    run = runs(cloud=cloud, pages=100, cap=20)
    run.site.faults.token_until = 19 if cloud else 13
    report = run()
    assert "does not accept the token" in report.error and report.gone == []
    assert 0 < report.added < 100 and len(run.generation.documents) == report.added
    run.site.faults.token_until = 0
    again = run()
    assert (again.added, again.same) == (100 - report.added, report.added) and run.in_step()


@KINDS
def test_most_of_a_space_is_not_removed_unasked(runs: Callable[..., Runs], cloud: bool) -> None:
    run = runs(cloud=cloud)
    run()
    for n in range(16):
        run.site.delete(str(1001 + n))
    run.site.edit("1030", "<p>Still edited.</p>")
    report = run()
    assert "16 of the 30 pages" in report.error and "--allow-mass-delete" in report.error
    assert len(run.generation.documents) == 30 and "Still edited." in run.texts()["1030"]
    assert len(run(mass_delete=True).gone) == 16 and run.in_step()


@KINDS
def test_a_page_that_the_account_may_still_read_is_not_removed_when_a_listing_lacks_it(
    runs: Callable[..., Runs], cloud: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs(cloud=cloud)
    run()
    whole = run.site.answer

    def short(target: str, headers: Any) -> Any:
        status, more, body = whole(target, headers)
        return status, more, body.replace(b'"id": "1007"', b'"id": ""') if "limit" in target else body

    monkeypatch.setattr(run.site, "answer", short)
    report = run()
    assert report.gone == [] and not report.complete and "was not listed" in report.notes[0]
    assert "1007" in run.texts()


@KINDS
def test_a_page_that_moves_to_another_synced_space_is_there_once(runs: Callable[..., Runs], cloud: bool) -> None:
    run = runs(cloud=cloud)
    run.site.add("Other", "<p>Other text.</p>", space="OTHER")
    run.all("DOCS", "OTHER")
    run.site.move("1005", "OTHER")
    docs, other = run.all("DOCS", "OTHER")
    assert (docs.gone, other.changed, other.added) == ([], 1, 0)
    assert len(run.generation.documents) == 31
    run.site.move("1006", "ELSEWHERE") if "ELSEWHERE" in run.site.spaces else run.site.delete("1006")
    assert [len(report.gone) for report in run.all("DOCS", "OTHER")] == [1, 0]


@KINDS
def test_pages_without_text_are_read_once_and_emptied_ones_stop_answering(
    runs: Callable[..., Runs], cloud: bool
) -> None:
    run = runs(cloud=cloud, pages=3)
    run.site.add("Blank", "<p> </p>")
    report = run()
    assert (report.added, report.skipped) == (3, [("Blank", "it holds no visible text")]) and report.complete
    run.site.edit("1002", "")
    assert run().gone[0][1] == "it is empty now"
    report = run()
    assert (report.same, len(report.skipped)) == (2, 2)
    assert not any("/1004" in request or "/1002" in request for request in run.site.requests)


@KINDS
def test_what_the_site_shows_is_read_where_the_storage_format_fails(runs: Callable[..., Runs], cloud: bool) -> None:
    run = runs(cloud=cloud, no_storage=("1002",))
    assert run().added == 30 and "Text 1 of" in run.texts()["1002"]


@KINDS
def test_what_the_site_shows_is_read_where_the_storage_format_is_empty(runs: Callable[..., Runs], cloud: bool) -> None:
    run = runs(cloud=cloud, pages=9, native=("1002", "1005"))
    assert (run().added, run().same) == (9, 9) and run.in_step()


@KINDS
def test_lists_without_bodies_are_read_page_by_page(runs: Callable[..., Runs], cloud: bool) -> None:
    run = runs(cloud=cloud, bare=True)
    assert run().added == 30 and run.in_step()


def test_restrictions_that_cannot_be_read_are_told_and_those_known_stay(runs: Callable[..., Runs]) -> None:
    run = runs(cloud=True, pages=2)
    run.site.pages["1001"].readers = ["group:staff"]
    run()
    run.site.faults.no_search = True
    run.site.add("New", "<p>A new text.</p>")
    report = run()
    assert "labels and restrictions were not read" in report.notes[0] and not report.complete
    rules = {e["title"]: e["meta"].get("restrictions", []) for e in run.generation.documents.values()}
    assert rules == {"Page 0": [["group:staff"]], "Page 1": [], "New": [["unknown"]]}
    run.site.faults.no_search = False
    assert run().changed == 1


def test_an_included_page_is_part_of_the_text(runs: Callable[..., Runs]) -> None:
    run = runs(cloud=False, pages=1)
    run.site.add("Outer", '<ac:structured-macro ac:name="include"><ac:parameter ac:name=""><ac:link>'
                 '<ri:page ri:content-title="Page 0"/></ac:link></ac:parameter></ac:structured-macro>')  # fmt: skip
    run()
    assert "Text 0 of the first version." in run.texts()["1002"]


@KINDS
def test_attached_files_are_documents_under_their_page_with_its_restrictions(
    runs: Callable[..., Runs], cloud: bool
) -> None:
    run = runs(cloud=cloud, pages=2)
    page = run.site.pages["1001"]
    page.readers = ["group:staff"]
    file = run.site.attach(page, "規程 2024.md", "# Rules\n\nThe gate opens at 6:15.\n")
    run.site.attach(page, "photo.png", "no text")
    assert (run().added, run().same) == (3, 3)
    source, entry = next(item for item in run.generation.documents.items() if "#" in item[0])
    assert source == f"{HOST}{run.site.context}/pages/viewpage.action?pageId=1001#%E8%A6%8F%E7%A8%8B%202024.md"
    assert entry["title"] == "規程 2024.md" and entry["meta"]["ancestors"] == ["Page 0"]
    assert entry["meta"]["restrictions"] == [["group:staff"]]
    run.site.edit(file.id, "# Rules\n\nThe gate opens at 7:45.\n")
    assert run().changed == 1 and "7:45" in str(run.texts())
    run.site.delete(file.id)
    assert [why for _, why in run().gone] == ["it is no longer there"] and "7:45" not in str(run.texts())
