"""What a synced page shows of others (texts, titles, names, comments): it follows them, and shows nobody too much."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rag.index.store import open_generation
from tests.tiny_sync import HOST, KINDS, Runs, runs

__all__ = ["runs"]  # a fixture


def include(title: str, kind: str = "include") -> str:
    named = f'<ac:parameter ac:name=""><ac:link><ri:page ri:content-title="{title}"/></ac:link></ac:parameter>'
    return f'<ac:structured-macro ac:name="{kind}">{named}</ac:structured-macro>'


CHILDREN = '<p>Below:</p><ac:structured-macro ac:name="children"></ac:structured-macro>'


@KINDS
def test_a_page_follows_the_one_that_it_includes(runs: Callable[..., Runs], cloud: bool) -> None:
    run = runs(cloud=cloud, pages=1)
    outer = run.site.add("Outer", f"<p>Own words.</p>{include('page 0')}{include('Later')}").id
    assert (run().added, run().same) == (2, 2)
    assert "Text 0 of the first version." in run.texts()[outer] and "(see: Later)" in run.texts()[outer]
    run.site.edit("1001", "<p>The gate opens at 7:45.</p>")
    assert run().changed == 2  # it and the page that shows it
    assert "7:45" in run.texts()[outer] and "first version" not in run.texts()[outer]
    run.site.add("Later", "<p>Written last.</p>")
    assert (run().added, "Written last." in run.texts()[outer]) == (1, True)
    run.site.delete("1001")
    run()
    assert "7:45" not in run.texts()[outer] and run().changed == 0


@KINDS
def test_a_page_that_shows_nothing_of_its_own_gets_text_with_the_one_it_includes(
    runs: Callable[..., Runs], cloud: bool
) -> None:
    run = runs(cloud=cloud, pages=1)
    run.site.edit("1001", "")
    outer = run.site.add("Outer", include("Page 0")).id
    run.site.add("Third", "<p>text</p>")
    assert (run().added, outer in run.texts()) == (1, False)
    run.site.edit("1001", "<p>Now there is some.</p>")
    assert (run().added, "Now there is some." in run.texts()[outer]) == (2, True)


@KINDS
def test_nothing_of_a_restricted_page_is_in_the_text_of_one_that_more_people_may_see(
    runs: Callable[..., Runs], cloud: bool
) -> None:
    run = runs(cloud=cloud, pages=1)
    page = run.site.pages["1001"]
    page.readers = ["group:board"]
    below = run.site.add("Below", "<p>Under it 4711.</p>", parent="1001").id
    outer = run.site.add("Outer", include("Page 0") + include("Below") + CHILDREN).id
    run.site.add("Plan to close", "<p>x</p>", parent=outer, readers=["group:board"])
    run.site.add("Menu", "<p>y</p>", parent=outer)
    inner = run.site.add("Inner", include("Below"), parent="1001").id
    run()
    texts = run.texts()
    assert "Text 0" not in texts[outer] and "4711" not in texts[outer] and "Plan to close" not in texts[outer]
    assert "- Menu" in texts[outer] and "(see: Below)" in texts[outer]
    assert "4711" in texts[inner] and "4711" in texts[below]  # for the same readers
    page.readers = []
    run()
    assert "Text 0" in run.texts()[outer] and "4711" in run.texts()[outer]
    page.readers = ["group:board"]
    run()
    assert "Text 0" not in run.texts()[outer] and "4711" not in run.texts()[outer]


@KINDS
def test_a_list_of_pages_below_follows_what_is_there(runs: Callable[..., Runs], cloud: bool) -> None:
    run = runs(cloud=cloud, pages=1)
    run.site.edit("1001", CHILDREN)
    first = run.site.add("Rota", "<p>a</p>", parent="1001").id
    run.site.add("Deep", "<p>b</p>", parent=first)
    run()
    assert run.texts()["1001"].endswith("- Rota")
    run.site.add("Keys", "<p>c</p>", parent="1001")
    run()
    assert run.texts()["1001"].endswith("- Keys\n- Rota")
    run.site.delete(first)
    run()
    assert run.texts()["1001"].endswith("Below:\n\n- Keys")
    assert run().same == len(run.texts())


@KINDS
def test_people_are_called_by_their_names_and_asked_for_once(runs: Callable[..., Runs], cloud: bool) -> None:
    run = runs(cloud=cloud, pages=0)
    key = "account-id" if cloud else "userkey"
    body = "".join(
        f'<p>Ask <ac:link><ri:user ri:{key}="{one}"/></ac:link>.</p>' for one in ("557058:1a2b", "557058:none")
    )
    for n in range(3):
        run.site.add(f"P{n}", body)
    report = run()
    assert not report.unread and not report.error
    assert set(run.texts().values()) == {"Ask @Aoi Tanaka.\n\nAsk @user."}
    assert sum("/rest/api/user" in request for request in run.site.requests) == 2


@KINDS
def test_comments_are_read_when_they_are_asked_for_and_from_then_on(runs: Callable[..., Runs], cloud: bool) -> None:
    run = runs(cloud=cloud, pages=3)
    comment = run.site.comment(run.site.pages["1002"], "<p>Is it true that <em>KX-250</em> is out?</p>").id
    run()
    assert "KX-250" not in str(run.texts())
    assert (run(comments=True).changed, run().same) == (1, 3)
    assert "Comments" in chunk_headings(run) and "Aoi Tanaka: Is it true that KX-250 is out?" in run.texts()["1002"]
    run.site.edit(comment, "<p>KX-300 it is.</p>")
    assert (run().changed, "KX-300" in run.texts()["1002"]) == (1, True)
    run.site.comment(run.site.pages["1003"], "<p>Second.</p>")
    run.site.delete(comment)
    assert (run().changed, "KX-300" in str(run.texts()), "Second." in run.texts()["1003"]) == (2, False, True)
    run.site.faults.no_search = cloud  # Cloud alone can do without the search
    assert not run().changed and "Second." in run.texts()["1003"]
    run.site.faults.no_search = False
    assert (run(comments=False).changed, "Second." in str(run.texts()), run().changed) == (1, False, 0)


def chunk_headings(run: Runs) -> list[str]:
    return [heading for chunk in open_generation(run.path).chunks for heading in chunk.headings]


@KINDS
def test_a_site_that_tells_no_names_is_asked_once_and_told_of_by_none(runs: Callable[..., Runs], cloud: bool) -> None:
    run = runs(cloud=cloud, pages=0)
    key = "account-id" if cloud else "userkey"
    run.site.add("P", "".join(f'<p>Ask <ac:link><ri:user ri:{key}="k{n}"/></ac:link>.</p>' for n in range(9)))
    answer = run.site._user

    def denied(query: dict[str, str]) -> tuple[int, dict[str, str], Any]:
        return (403, {}, {"message": "Forbidden"}) if query else answer(query)

    run.site._user = denied  # type: ignore[method-assign]
    assert run().added == 1
    assert sum("/rest/api/user" in request for request in run.site.requests) <= 3
    assert HOST in str(run.generation.documents)
