"""Exports and saved answers of Confluence: their current pages, each by one text and one id, and nothing else."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from rag.document import Document
from rag.sources.files import Reading, read_files
from rag.sources.reader import ReadOptions, markdown_of
from tests.tiny_confluence import SPACE, answer, entities, entity, html_index, html_page, macro, page, zipped

STORAGE = (
    '<h2>Hours</h2><p>Open from <time datetime="2026-05-01" /> on, '
    'ask <ac:link><ri:page ri:content-title="Desk"/></ac:link>.</p>'
    + macro("note", "<p>Closed on Sunday.</p>", title="Mind")
    + macro("expand", "<p>By bus 12.</p>", title="Way")
    + f"<p>{macro('status', title='DONE', colour='Green')}</p>"
    "<ac:task-list><ac:task><ac:task-id>1</ac:task-id><ac:task-status>complete</ac:task-status>"
    "<ac:task-body>Paint</ac:task-body></ac:task></ac:task-list>"
    '<ac:structured-macro ac:name="code"><ac:parameter ac:name="language">java</ac:parameter>'
    "<ac:plain-text-body><![CDATA[int a = 1;]]></ac:plain-text-body></ac:structured-macro>"
    '<table><tbody><tr><th>Day</th><th>Time</th></tr><tr><td rowspan="2">Mon</td><td>9</td></tr>'
    "<tr><td>10</td></tr></tbody></table>"
    '<p><ac:image ac:alt="Plan"><ri:attachment ri:filename="plan.png" /></ac:image> <ac:emoticon ac:name="tick" /></p>'
)
EXPORTED = (
    '<h2 id="Opening-Hours">Hours</h2><p>Open from <time datetime="2026-05-01" class="date-past">2026-05-01</time> on, '
    'ask <a href="Desk_12.html" data-linked-resource-id="12">Desk</a>.</p>'
    '<div class="confluence-information-macro confluence-information-macro-note"><p class="title">Mind</p>'
    '<span class="aui-icon aui-icon-small">x</span>'
    '<div class="confluence-information-macro-body"><p>Closed on Sunday.</p></div></div>'
    '<div id="expander-1" class="expand-container"><div class="expand-control"><span class="expand-control-icon">'
    '<img class="expand-control-image" src="images/icons/grey_arrow_down.png"></span>'
    '<span class="expand-control-text">Way</span>'
    '</div><div class="expand-content"><p>By bus 12.</p></div></div>'
    '<p><span class="status-macro aui-lozenge aui-lozenge-success">DONE</span></p>'
    '<ul class="inline-task-list" data-inline-tasks-content-id="11">'
    '<li data-inline-task-id="1" class="checked">Paint</li></ul>'
    '<div class="code panel pdl"><div class="codeContent panelContent pdl"><pre class="syntaxhighlighter-pre" '
    'data-syntaxhighlighter-params="brush: java; gutter: false">int a = 1;</pre></div></div>'
    '<div class="table-wrap"><table class="confluenceTable"><tbody><tr><th class="confluenceTh">Day</th>'
    '<th class="confluenceTh">Time</th></tr><tr><td rowspan="2" class="confluenceTd">Mon</td><td>9</td></tr>'
    "<tr><td>10</td></tr></tbody></table></div>"
    '<p><span class="confluence-embedded-file-wrapper"><img class="confluence-embedded-image" alt="Plan" '
    'src="attachments/11/5.png" data-linked-resource-default-alias="plan.png"></span> '
    '<img class="emoticon emoticon-tick" data-emoji-short-name=":check_mark:" alt="(tick)" '
    'src="images/icons/emoticons/check.png"></p>'
)


PAGES = ReadOptions()


def read(*paths: Path, wanted: ReadOptions = PAGES) -> Reading:
    return read_files(paths, none_ok=True, wanted=wanted)


def by_title(reading: Reading) -> dict[str, Document]:
    return {document.title: document for document in reading.documents}


def xml_zip(path: Path, *objects: str) -> Path:
    return zipped(path, {"entities.xml": entities(SPACE, *objects), "exportDescriptor.properties": "exportType=space"})


def test_a_page_is_the_same_text_and_id_by_xml_html_and_api(tmp_path: Path) -> None:
    xml = read(xml_zip(tmp_path / "x.zip", page("11", "Opening: hours", STORAGE)))
    html = read(zipped(tmp_path / "h.zip", {"HB/Opening_11.html": html_page("Opening: hours", EXPORTED)}))
    (tmp_path / "api.json").write_text(answer("11", "Opening: hours", STORAGE))
    (tmp_path / "view.json").write_text(json.dumps(
        {"results": [{"id": 11, "title": "Opening: hours", "body": {"view": {"value": EXPORTED}}}]}))  # fmt: skip
    readings = [xml, html, read(tmp_path / "api.json"), read(tmp_path / "view.json")]
    texts = {markdown_of(reading.documents[0]) for reading in readings}
    assert [reading.documents[0].meta.id for reading in readings] == ["confluence:11"] * 4
    assert len(texts) == 1, texts
    for part in (
        "# Opening: hours",
        "Note: Mind",
        "- [x] Paint",
        "```java",
        "| Mon | 10 |",
        "(image: Plan; plan.png) ✅",
    ):
        assert part in texts.copy().pop()


def test_an_xml_export_gives_its_current_pages_with_all_that_is_known_of_them(tmp_path: Path) -> None:
    objects = (
        page("1", "Home", "<p>Welcome.</p>" + macro("children")),
        page("2", "Leave", "<p>Twenty days. " + macro("profile", user='<ri:user ri:userkey="k1" />') + "</p>",
             parent="1", creationDate="2024-04-22 16:35:21.231", lastModificationDate="2024-05-01 08:00:00.000"),
        page("3", "Leave", "<p>Ten days.</p>", originalVersion="2"),
        page("4", "Leave", "<p>A draft.</p>", contentStatus="draft"),
        page("5", "Old", "<p>Deleted.</p>", contentStatus="deleted"),
        page("6", "Empty", "", parent="2"),
        entity("ConfluenceUserImpl", "k1", name="ann", email="ann@example.com"),
        entity("InternalUser", "77", credential="{PKCS5S2}hash", emailAddress="ann@example.com"),
        entity("PageTemplate", "78", content="<p>Template.</p>"),
        entity("Label", "l1", name="hr", namespace="global"), entity("Label", "l2", name="favourite", namespace="my"),
        entity("Labelling", "m1", {"label": ("Label", "l1"), "content": ("Page", "2")}),
        entity("Labelling", "m2", {"label": ("Label", "l2"), "content": ("Page", "2")}),
        entity("Attachment", "a1", {"containerContent": ("Page", "2")}, title="form.pdf", contentStatus="current"),
        entity("Attachment", "a2", {"containerContent": ("Page", "2")}, title="gone.pdf", contentStatus="deleted"),
        entity("ContentPermissionSet", "s1", {"owningContent": ("Page", "1")}, type="View"),
        entity("ContentPermission", "p1", {"owningSet": ("ContentPermissionSet", "s1")}, groupName="staff"),
        entity("Comment", "c1", {"containerContent": ("Page", "2"), "creator": ("ConfluenceUserImpl", "k1")}),
        entity("BodyContent", "b1", {"content": ("Comment", "c1")}, body="<p>Is it so?</p>", bodyType="2"),
    )  # fmt: skip
    reading = read(xml_zip(tmp_path / "e.zip", *objects), wanted=ReadOptions(base_url="https://wiki.example/"))
    pages = by_title(reading)
    assert sorted(pages) == ["Empty", "Home", "Leave"]
    leave = pages["Leave"].meta
    assert (leave.space, leave.ancestors, leave.labels, leave.version) == ("HB", ("Home",), ("hr",), 3)
    assert (leave.created, leave.modified) == ("2024-04-22T16:35:21.231", "2024-05-01T08:00:00.000")
    assert leave.url == "https://wiki.example/pages/viewpage.action?pageId=2"
    assert leave.restrictions == (("group:staff",),)  # of the page above
    assert pages["Home"].sections[0].text == "Welcome.\n\n- Leave"
    whole = "".join(map(markdown_of, reading.documents))
    assert "@ann" in whole and "form.pdf" in whole
    for hidden in (
        "Ten days",
        "draft",
        "Deleted",
        "Template",
        "example.com",
        "hash",
        "gone.pdf",
        "Is it so",
        "favourite",
    ):
        assert hidden not in whole
    assert [note.text for note in reading.notes] == [
        "left out: 1 deleted pages, 1 drafts, 1 old revisions; 1 attached files are not in the export: form.pdf"
    ]
    with_comments = by_title(read(tmp_path / "e.zip", wanted=ReadOptions(comments=True)))["Leave"]
    assert "Is it so?" in markdown_of(with_comments)


def include(title: str, kind: str = "include") -> str:
    return macro(kind, **{"": f'<ac:link><ri:page ri:content-title="{title}" /></ac:link>'})


def test_nothing_of_a_restricted_page_is_in_the_text_of_one_that_more_people_may_see(tmp_path: Path) -> None:
    objects = (
        page("1", "Home", "<p>Welcome.</p>" + macro("children", all="true") + include("Below")),
        page("2", "Plan to close", "<p>Secret.</p>" + macro("excerpt", "<p>Excerpt 4711.</p>"), parent="1"),
        page("3", "Below", "<p>Under it 4712.</p>" + include("Plan to close", "excerpt-include"), parent="2"),
        page("4", "Menu", include("Plan to close", "excerpt-include"), parent="1"),
        page("5", "Soups", "<p>Pea.</p>", parent="4"),
        entity("ContentPermissionSet", "s1", {"owningContent": ("Page", "2")}, type="View"),
        entity("ContentPermission", "p1", {"owningSet": ("ContentPermissionSet", "s1")}, groupName="board"),
    )
    reading = read(xml_zip(tmp_path / "e.zip", *objects))
    texts = {title: markdown_of(document) for title, document in by_title(reading).items()}
    assert texts["Home"] == "# Home\n\nWelcome.\n\n- Menu\n  - Soups\n\n(see: Below)\n"
    assert texts["Menu"] == "# Menu\n\n(see: Plan to close)\n"
    assert "Excerpt 4711." in texts["Below"]  # for the same readers
    notes = {Path(note.source).name: note.text for note in reading.notes}
    assert "not for all readers" in notes["1"] and "Plan to close" in notes["4"] and "3" not in notes


def test_keys_of_accounts_are_no_names_and_restrictions_know_people_by_them(tmp_path: Path) -> None:
    account = "557058:1a2b3c4d-aaaa-bbbb-cccc-ddddeeeeffff"
    objects = (
        page("1", "Home", '<p>Ask <ac:link><ri:user ri:userkey="k1" /></ac:link>.</p>'),
        entity("ConfluenceUserImpl", "k1", name=account),
        entity("ContentPermissionSet", "s1", {"owningContent": ("Page", "1")}, type="View"),
        entity("ContentPermission", "p1", {"owningSet": ("ContentPermissionSet", "s1"),
                                           "userSubject": ("ConfluenceUserImpl", "k1")}),
    )  # fmt: skip
    (home,) = read(xml_zip(tmp_path / "e.zip", *objects)).documents
    assert home.sections[0].text == "Ask @user."
    assert home.meta.restrictions == ((f"user:{account}",),)  # as the site's own API has it


def test_pages_of_confluence_3_are_read_as_wiki_markup(tmp_path: Path) -> None:
    (tmp_path / "entities.xml").write_text(entities(SPACE, page("1", "Old", "h2. Head\n* one {{two}}", kind="0")))
    assert markdown_of(read(tmp_path).documents[0]) == "# Old\n\n## Head\n\n- one `two`\n"


def test_a_damaged_entities_file_gives_what_is_sound_in_it(tmp_path: Path) -> None:
    text = entities(
        SPACE, page("1", "\x08First", "<p>a\x02b &#2;</p>"), page("2", "Second", "<p>c</p>"), page("3", "Third", "x")
    )
    file = tmp_path / "entities.xml"
    file.write_text('<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd" [<!ENTITY a "a">]>' + text[: text.index("Third")])
    reading = read(tmp_path)
    assert by_title(reading)["First"].sections[0].text == "ab"
    assert "Second" in by_title(reading) and "ends in the middle" in reading.notes[-1].text
    assert reading.spaces == set()  # what is missing may only be behind the cut


def test_an_unpacked_export_is_read_without_the_files_that_belong_to_it(tmp_path: Path) -> None:
    (tmp_path / "attachments" / "1" / "2").mkdir(parents=True)
    (tmp_path / "attachments" / "1" / "2" / "1").write_bytes(b"\x00")
    (tmp_path / "exportDescriptor.properties").write_text("exportType=space\n")
    (tmp_path / "entities.xml").write_text(entities(SPACE, page("1", "Home", "<p>a</p>")))
    reading = read(tmp_path)
    assert [document.source for document in reading.documents] == [f"{tmp_path}/entities.xml/1"]
    assert reading.skipped == [] and reading.spaces == {"HB"}
    (tmp_path / "entities.xml").unlink()
    assert "CSV" in read(tmp_path).skipped[0].reason


def test_an_html_export_gives_pages_with_their_place_and_not_its_index(tmp_path: Path) -> None:
    files = ('<div class="pageSection"><h2 id="attachments">Attachments:</h2><div class="greybox">'
             '<a href="attachments/11/5.pdf">form.pdf</a> (application/pdf)</div></div>')  # fmt: skip
    pages: dict[str, str | bytes] = {
        "HB/index.html": html_index({"11.html": "Leave : new", "Home_1.html": "Home"}),
        "HB/Home_1.html": html_page("Home", ""),
        "HB/11.html": html_page("Leave : new", "<style>.x{}</style><p>Twenty.</p>", above=["Home"], files=files),
        "HB/attachments/11/5.pdf": b"%PDF",
    }
    (tmp_path / "unpacked" / "HB" / "attachments" / "11").mkdir(parents=True)
    for name, content in pages.items():
        (tmp_path / "unpacked" / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for reading in (read(zipped(tmp_path / "h.zip", pages)), read(tmp_path / "unpacked" / "HB")):
        leave = by_title(reading)["Leave : new"]
        assert sorted(by_title(reading)) == ["Home", "Leave : new"]
        assert markdown_of(leave) == "# Leave : new\n\nTwenty.\n\n## Attachments\n\n- form.pdf\n"
        meta = leave.meta
        assert (meta.id, meta.space, meta.ancestors) == ("confluence:11", "HB", ("Home",))
        assert (meta.author, meta.modified) == ("Ann Author", "2024-05-14")
    assert read(tmp_path / "h.zip").spaces == {"HB"}
    del pages["HB/Home_1.html"]
    assert read(zipped(tmp_path / "part.zip", pages)).spaces == set()


def test_untrusted_zips_are_refused_or_read_without_what_is_wrong_in_them(tmp_path: Path) -> None:
    good = html_page("Good", "<p>fine</p>")
    bad = zipped(tmp_path / "bad.zip", {"HB/Good_1.html": good, "../../evil_2.html": html_page("Evil", "<p>out</p>"),
                                        "HB/Bomb_3.html": b"<p>" + b"0" * 40_000_000})  # fmt: skip
    reading = read(bad)
    reasons = {skipped.path.name: skipped.reason for skipped in reading.skipped}
    assert list(by_title(reading)) == ["Good"]
    assert "leads out" in reasons["2"] and "unpack" in reasons["3"]
    bomb = zipped(tmp_path / "bomb.zip", {"entities.xml": b" " * 50_000_000})
    assert "unpack" in read(bomb).skipped[0].reason
    (tmp_path / "no.zip").write_bytes(b"PK\x03\x04 nothing")
    assert "no zip archive" in read(tmp_path / "no.zip").skipped[0].reason
    assert "no export" in read(zipped(tmp_path / "other.zip", {"a.txt": "x"})).skipped[0].reason
    # A damaged entry is named, the others are read.
    path = zipped(tmp_path / "hurt.zip", {"HB/A_1.html": good, "HB/B_2.html": html_page("Second", "<p>x</p>" * 99)})
    with zipfile.ZipFile(path) as archive:
        at = archive.getinfo("HB/B_2.html").header_offset + 60
    raw = bytearray(path.read_bytes())
    raw[at : at + 20] = bytes(20)
    path.write_bytes(raw)
    reading = read(path)
    assert list(by_title(reading)) == ["Good"] and "damaged" in reading.skipped[0].reason


def test_saved_answers_give_pages_with_bodies_once_and_name_the_rest(tmp_path: Path) -> None:
    page_v2 = {"id": "5", "title": "Two", "status": "current", "body": {"storage": {"value": "<p>b</p>"}},
               "version": {"number": 4, "createdAt": "2024-01-01T00:00:00Z"},
               "_links": {"webui": "/spaces/HB/pages/5/Two",
                          "self": "https://e.example/wiki/api/v2/pages/5"}}  # fmt: skip
    (tmp_path / "list.json").write_text(json.dumps({"results": [page_v2, {"id": "6", "title": "No body"}]}))
    (tmp_path / "one.json").write_text(json.dumps(page_v2))
    (tmp_path / "comments.json").write_text(
        json.dumps({"results": [{"id": "c", "title": "", "body": page_v2["body"]}]})
    )
    (tmp_path / "other.json").write_text('{"a": 1}')
    (tmp_path / "cut.json").write_text('{"results": [')
    (tmp_path / "listed.json").write_text(json.dumps({"results": [{"id": "7", "title": "t", "type": "page"}]}))
    reading = read(tmp_path)
    (document,) = reading.documents
    assert (document.meta.space, document.meta.version) == ("HB", 4)
    assert document.meta.url == "https://e.example/wiki/spaces/HB/pages/5/Two"
    reasons = {skipped.path.name: skipped.reason for skipped in reading.skipped}
    assert set(reasons) == {"5", "6", "comments.json", "other.json", "cut.json", "listed.json"}
    assert "same page" in reasons["5"] and "without its body" in reasons["6"]
    assert "without their bodies" in reasons["listed.json"]


def test_loose_storage_files_are_known_by_what_is_in_them(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(macro("info", "<p>inside</p>"))
    (tmp_path / "b.xml").write_text("<h1>Title</h1><p>plain</p>")
    (tmp_path / "c.xml").write_text("<project><name>x</name></project>")
    (tmp_path / "d.xhtml").write_text(f"<html><body>{macro('expand', '<p>deep</p>', title='More')}</body></html>")
    (tmp_path / "e.html").write_text("<html><body><p>a web page</p></body></html>")
    reading = read(tmp_path)
    texts = {Path(document.source).name: markdown_of(document) for document in reading.documents}
    assert sorted(texts) == ["a.xml", "b.xml", "d.xhtml", "e.html"]
    assert texts["b.xml"] == "# Title\n\nplain\n" and "More\n\ndeep" in texts["d.xhtml"]
    assert [skipped.path.name for skipped in reading.skipped] == ["c.xml"]


def test_pages_of_one_answer_or_one_folder_show_and_list_each_other(tmp_path: Path) -> None:
    included = '<ac:structured-macro ac:name="include"><ac:parameter ac:name=""><ac:link><ri:page ri:content-title=' \
               '"Rules" /></ac:link></ac:parameter></ac:structured-macro>'  # fmt: skip
    own = {"restrictions": {"read": {"restrictions": {"group": {"results": [{"name": "staff"}]}}}}}
    pages = [
        json.loads(answer("1", "Home", f"<p>Hello.</p>{included}{macro('children')}")),
        json.loads(answer("2", "Rules", "<p>No dogs.</p>", ancestors=[{"title": "Home"}])),
        json.loads(answer("3", "Secret", "<p>8812</p>", parentId="1", **own)),
        json.loads(answer("4", "Gym", "<p>Open.</p>", parentId="1")),
        json.loads(answer("5", "Rules", "<p>New rules are coming.</p>", type="blogpost")),
    ]
    (tmp_path / "all.json").write_text(json.dumps({"results": pages}))
    home = markdown_of(by_title(read(tmp_path / "all.json"))["Home"])
    assert home == "# Home\n\nHello.\n\nNo dogs.\n\n- Rules\n- Gym\n"
    folder = tmp_path / "pages"
    folder.mkdir()
    (folder / "Home.xml").write_text(f"<p>Hello.</p>{included}")
    (folder / "rules.xml").write_text("<p>No dogs.</p>")
    assert markdown_of(by_title(read(folder))["Home"]) == "# Home\n\nHello.\n\nNo dogs.\n"
    (folder / "rules.xml").write_text(f"<p>No cats.</p>{included}")  # which includes itself
    assert "No cats." in markdown_of(by_title(read(folder))["Home"])


def test_of_two_exports_in_a_folder_the_newer_page_is_kept(tmp_path: Path) -> None:
    for name, version, text in (("a.zip", "3", "old"), ("b.zip", "4", "new"), ("c.zip", "2", "oldest")):
        xml_zip(tmp_path / name, page("1", "Home", f"<p>{text}</p>", version=version))
    reading = read(tmp_path)
    assert [document.sections[0].text for document in reading.documents] == ["new"]
    assert len(reading.skipped) == 2


@pytest.mark.parametrize("name", ["x.zip", "x.xml", "x.json", "x.html"])
def test_an_empty_file_is_skipped_with_its_reason(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert read(tmp_path).skipped[0].reason
