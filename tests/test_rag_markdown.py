"""Markdown files: front matter only where it is, code as it stands, links as their words, hidden text left out."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag.sources.markdown.front_matter import split_front_matter, title_of
from rag.sources.markdown.page import markdown_document, plain_markdown
from rag.sources.markdown.scan import scan


@pytest.mark.parametrize(
    ("text", "title", "rest"),
    [
        ("---\ntitle: 'Wifi'\nowner: x\n---\nText", "Wifi", "Text"),
        ("---\ntitle: >-\n  Guest wifi\n  for visitors\n---\n\nText", "Guest wifi for visitors", "\nText"),
        ('+++\ntitle = "Lockers"\ntags = ["a"]\n+++\nText', "Lockers", "Text"),
        ("---\ntitle: Foo: bar\ndate: 2024-01-01\n---\nText", "Foo: bar", "Text"),
        ("---\ntitle: 出張規程\n作成者: 田中\n更新日: 2024-01-01\n---\n本文", "出張規程", "本文"),
        ("---\n作成者: 田中\ntags: [規程]\n---\n本文", "", "本文"),
        ("---\ntitle: 規程: 旅費\n作成者: 田中\n---\n本文", "規程: 旅費", "本文"),
        ("---\nTitle: A\n...\nText", "A", "Text"),
        ("---\ntitle: A\n---", "A", ""),
        ("---\n---\n# Badge\n\n---\n\nend", "", "# Badge\n\n---\n\nend"),
    ],
)
def test_front_matter_gives_the_title_and_goes(text: str, title: str, rest: str) -> None:
    said, body = split_front_matter(text)
    assert (title_of(said), body) == (title, rest)


@pytest.mark.parametrize(
    "text",
    [
        "---\n\n**Subject: Fire drill**\n\nThe assembly point is north.\n\n---\n\nQuestions?",
        "---\nNote: the lift is out of order.\n---\nEnd",
        "---\nPlease note: closed on Monday.\n---\nEnd",
        "---\n件名: 防災訓練\n---\n本文",
        "---\n件名: 防災訓練\n日時: 三月一日\n---\n本文",
        "---\n- a\n- b\n---\nEnd",
        "---\nno end",
        "+++\nnot toml\n+++\nEnd",
        "---\n" + "[" * 3000 + "\n---\nEnd",
        "Text\n---\ntitle: x\n---\n",
    ],
)
def test_a_file_that_begins_with_a_rule_keeps_all_its_text(text: str) -> None:
    assert split_front_matter(text) == ({}, text)


@pytest.mark.parametrize(
    "code",
    ["```sh\n~~~\n# no heading\n<div hidden>kept</div>\n<!-- kept -->\n```",
     "````md\n```html\n<!-- kept -->\n```\n````",
     "~~~ text\n```\n<!-- kept -->\n~~~", "Run:\n\n    # install\n    <!-- kept -->\n\n    [a](b)\n\nDone.",
     "Use `` ` <!-- kept --> `` and `[a](b)`.", "- item\n\n  ```\n  <!-- kept -->\n  ```",
     "> ```\n> <b hidden>x</b>\n> ```",
     "```\nunclosed <!-- kept -->"],
)  # fmt: skip
def test_code_is_not_touched(code: str) -> None:
    assert plain_markdown(code) == code


def test_a_fence_behind_a_list_mark_ends_where_it_ends() -> None:
    document = markdown_document("# T\n\n- ```sh\n  # no heading\n  ```\n\n## Next\n\nText", "file")
    assert [section.headings for section in document.sections] == [(), ("Next",)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[the (big) plan](docs/plan_(v2).md)", "the (big) plan"), ('![alt](i.png "t")', "alt"),
        ("[![logo](a.png) home](b 'c')", "logo home"), ("[Wiki][w] [w] [none]", "Wiki w [none]"),
        ("<https://a.example/x>", "https://a.example/x"), ("a [b [c] d](e)", "a b [c] d"),
        ("![my plan](my plan.png)", "my plan"), ("\\[no](x) f[0] (y)", "\\[no](x) f[0] (y)"),
        ("[x](<a b> \"t\")", "x"), ("Footnote[^1].\n\n[^1]: Note", "Footnote[^1].\n\n[^1]: Note"),
        ("generic List<String>, <your-name>, 5 < 6", "generic List<String>, <your-name>, 5 < 6"),
        ("10<sup>-3</sup> <b>bold</b> H<sub>2</sub>O", "10^-3 bold H2O"), ("a &lt;b&gt; &amp; c", "a <b> & c"),
        ("log<sub>10</sub>5 101<sub>2</sub> 10<sup>3</sup><b>5</b>", "log10 5 101_2 10^3 5"),
        ("x<sub>1</sub>`2` x<sub>1</sub> 2", "x1`2` x1 2"),
        ("<ruby>避難<rt>ひなん</rt></ruby>所", "避難所"), ("a<!-- no -->b <!-- open", "ab <!-- open"),
        ('x <span style="display:none">no `code` no</span>y', "x y"),
        ('<Tab label="Mac">press <Key k={1}>Cmd</Key></Tab> <T> </T>', "press Cmd <T> </T>"),
    ],
)  # fmt: skip
def test_links_images_and_tags_leave_their_words(text: str, words: str) -> None:
    known = plain_markdown(text + "\n\n[w]: https://wiki.example/a 'A wiki'\n")
    assert known.strip() == words


@pytest.mark.parametrize("attribute", ['class="overflow-hidden"', 'data-x="hidden treasure"', "hidden=until-found"])
def test_attributes_that_only_contain_the_word_hide_nothing(attribute: str) -> None:
    text = f"<div {attribute}>\n\nThe fee is 30.\n\n</div>\n\nEnd."
    assert plain_markdown(text).split() == ["The", "fee", "is", "30.", "End."]


def test_html_in_markdown_is_read_as_in_pages() -> None:
    text = '<h2 class="hidden-print">Prices</h2>\n\n<table><tr><th>a<th>b</tr><tr><td rowspan=2>1<td>2<tr><td>3</table>'
    section = markdown_document(text, "file").sections[-1]
    assert section.text == "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 1 | 3 |"
    assert plain_markdown("<script>\nno\n</script>yes").strip() == "yes"


@pytest.mark.parametrize(
    ("cell", "text"),
    [("<ul><li>Password</li><li>Passkey</li></ul>", "Password; Passkey"), ("<ol><li>a<li>b\\|c</ol>", "a; b\\|c"),
     ("by <ul><li>x</li></ul> or y", "by x or y"), ("<p>a</p><p>b</p>", "a b"), ("a<br>b<br/>c", "a b c"),
     ("<div>a</div><div>b</div>", "a b"), ("<h3>a</h3>b<hr>c", "a b c"), ("<li>a</li><li>b</li>", "a b"),
     ("<pre>a  b</pre>", "`a b`"), ("<dl><dt>a<dd>b</dl>", "a; b"), ("<ul></ul>", ""),
     ("<table><tr><td>a<td>b</table>", "a; b"), ("10<sup>3</sup> <code>x</code>", "10^3 `x`")],
)  # fmt: skip
def test_elements_in_a_cell_of_a_table_stay_on_its_line(cell: str, text: str) -> None:
    table = f"| Way | How |\n| --- | --- |\n| Login | {cell} |\n| Door | key |"
    lines = plain_markdown(table).split("\n")
    assert [" ".join(line.split()) for line in lines] == [
        "| Way | How |", "| --- | --- |", " ".join(f"| Login | {text} |".split()), "| Door | key |",
    ]  # fmt: skip


def test_embedded_images_are_dropped_at_once() -> None:
    data = "data:image/png;base64," + "QUJD" * 200_000
    text = f"![][image1]\n\nRoom 214. ![plan]({data})\n\n[image1]: <{data}>\n"
    start = time.process_time()
    assert plain_markdown(text).split() == ["Room", "214.", "plan"]
    assert time.process_time() - start < 5


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("`~<>!-[]() \n\t#ab\\=\"'/1."), max_size=120))
def test_the_parts_of_any_text_are_the_text(text: str) -> None:
    assert "".join(part.text for part in scan(text)) == text
    plain_markdown(text)


def test_no_junk_takes_long() -> None:
    units = ["[", "![", "`", "`a", "``a`b", "<", "<a x=\"", "<a ", "](", "[a](", "[a](b \"", "[a][", "[a]: x\n",
             "<!--", "<div hidden>", "&", "> ", "- ", "    x\n", "```\n", "\\", "<http://", "---\n",
             "e\u0301", "\u200d"]  # fmt: skip
    for unit in units:
        times = []
        for size in (20_000, 160_000):
            start = time.process_time()
            markdown_document(unit * (size // len(unit)), "file")
            times.append(time.process_time() - start)
        assert times[1] < 1 + 25 * times[0], unit
