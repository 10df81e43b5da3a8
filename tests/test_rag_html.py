"""Pages: what a reader of them sees reaches the index, whatever the authors left open, and nothing else does."""

from __future__ import annotations

import time

import pytest

from rag.document import Document
from rag.sources.confluence.html_export import nodes_of_html
from rag.sources.html.page import declared_charset, html_document, parse_html, read_html
from rag.sources.markdown.page import plain_markdown
from rag.sources.reader import markdown_of


def text_of(html: str) -> str:
    return "\n\n".join(section.text for section in html_document(html, "file").sections)


def test_unclosed_items_paragraphs_cells_and_terms_are_apart_as_html5_reads_them() -> None:
    html = "<ul><li>one<li>two</ul><p>a<p>b<dl><dt>x<dd>y<dt>z<dd>w</dl><table><tr><td>1<td>2<tr><td>3<td>4</table>"
    assert text_of(html) == "- one\n- two\n\na\n\nb\n\nx\n: y\n\nz\n: w\n\n|  |  |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |"


def test_labels_that_span_rows_or_columns_stand_in_each_of_them() -> None:
    html = (
        "<table><tr><th rowspan=2>Site<th colspan=2>Hours</tr><tr><th>Mon<th>Tue</tr>"
        "<tr><td rowspan=2>Nagoya<td>9<td>10</tr><tr><td colspan=2>closed</tr><tr><td colspan=3>All of it</table>"
    )
    assert text_of(html).split("\n") == [
        "| Site | Hours Mon | Hours Tue |", "| --- | --- | --- |", "| Nagoya | 9 | 10 |",
        "| Nagoya | closed | closed |", "| All of it |  |  |",
    ]  # fmt: skip


def test_a_table_in_a_cell_keeps_its_rows_under_their_header_and_code_its_lines() -> None:
    text = text_of(
        "<table><tr><th>Service<th>Ports</tr><tr><td>Web<td><table><tr><th>Port<th>Use</tr><tr><td>8443<td>admin</tr>"
        "<tr><td>443<td>a|b</tr></table></tr><tr><td>Shell<td><pre>cd  x\n  ls\n</pre></tr></table>"
        "<table><tr><td colspan=100000>wide</tr><tr><td>a<td colspan=2>b</tr></table>",
    )
    assert text == (
        "| Service | Ports |\n| --- | --- |\n| Web | Port, Use; Port: 8443, Use: admin; Port: 443, Use: a\\|b |\n"
        "| Shell | `cd x` `ls` |\n\n|  |  |\n| --- | --- |\n| wide |  |\n| a | b |"
    )


def test_a_cell_keeps_its_list_and_its_bars_in_one_row() -> None:
    html = "<table><tr><th>k<th>v<tr><td>x|y<td><ul><li>Mon 9<li>Tue 13</ul></table>"
    assert "| x\\|y | Mon 9; Tue 13 |" in text_of(html)


def test_tables_that_arrange_a_page_are_read_as_the_page_and_data_tables_in_them_as_tables() -> None:
    html = "<table><tr><td>Menu<td><h2>Fees</h2><table><tr><th>a<th>b<tr><td>1<td>2</table></table>"
    document = html_document(html, "file")
    assert document.sections[-1].text == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    assert document.sections[-1].headings in ((), ("Fees",))


def test_readings_of_rubies_are_dropped_and_words_stay_whole() -> None:
    html = (
        "<p><ruby>避難<rp>(</rp><rt>ひなん</rt><rp>)</rp></ruby><ruby>場<rt>ば</rt>所<rt>しょ</rt></ruby>は中央\n公園"
    )
    assert text_of(html) == "避難場所は中央公園"


@pytest.mark.parametrize(
    ("html", "text"),
    [("10<sup>-3</sup>", "10^-3"), ("E=mc<sup>2</sup>, H<sub>2</sub>O", "E=mc^2, H2O"), ("1<sup>st</sup>", "1st"),
     ("x<sup>n+1</sup>", "x^(n+1)"), ("x<sub>max</sub>", "x_max"),
     ("log<sub>10</sub>5, x<sub>1</sub><b>2</b>", "log10 5, x1 2"), ("10<sup>3</sup>5", "10^3 5"),
     ("101<sub>2</sub> = x<sup>2</sup><sub>1</sub>", "101_2 = x^2_1"), ("a<sub>1</sub>.5 H<sub>2</sub>.", "a1 .5 H2."),
     ("x<sub>1</sub><sub>2</sub>3", "x1_2 3"), ("2<sup>n</sup>3, 1<sup>st</sup>2", "2^n3, 1st2"),
     ("<math><msub><mi>log</mi><mn>10</mn></msub><mn>5</mn></math>", "log10 5"),
     ("<math><mn>2</mn><mfrac><mn>1</mn><mn>2</mn></mfrac><mn>3</mn></math>", "2 1/2 3"),
     ("<math><msub><mn>101</mn><mn>2</mn></msub> <msubsup><mi>x</mi><mn>1</mn><mn>2</mn></msubsup></math>",
      "101_2 x1^2"),
     ("<math><msup><mn>10</mn><mn>-3</mn></msup></math>", "10^-3"), ("hy&shy;phen&#8203;ated", "hyphenated"),
     ("👩&zwj;💻", "👩\u200d💻"), ("می&zwnj;خواهم", "می\u200cخواهم"), ("wo&zwj;rd", "word"),
     ("<del>100</del> 90", "~~100~~ 90"), ("か&#x3099;", "が")],
)  # fmt: skip
def test_small_marks_of_typesetting_become_plain_text(html: str, text: str) -> None:
    assert text_of(f"<p>{html}</p>") == text


def test_every_article_is_read_and_the_site_around_them_is_not() -> None:
    html = (
        "<body><header><h1>Notices</h1><nav>Menu</nav></header><article><h2>Lift</h2>out<aside>Beside</aside></article>"
        "<div><article><h2>Keys</h2>room 9</article></div><aside>Ads</aside><footer>Imprint</footer></body>"
    )
    document = html_document(html, "file")
    assert document.title == "Notices"
    assert [s.headings for s in document.sections] == [("Lift",), ("Keys",)]
    assert "Beside" in document.sections[0].text
    assert not any(word in markdown_of(document) for word in ("Menu", "Ads", "Imprint"))
    assert text_of("<nav><a href=x>Only this</a></nav>") == "Only this"


def test_the_frame_and_the_contents_of_a_manual_are_no_text() -> None:
    contents = "<div class='toc'><p>Contents</p><dl><dt><a href=a>1.1. Keys</a><dt><a>1.2. Doors</a></dl></div>"
    page = (
        "<div class=navheader><table><tr><th>Chapter 1</th></tr><tr><td><a href=x>Prev</a></td></tr></table></div>"
        f"<h1>Chapter 1</h1>{contents}<h2>1.1. Keys</h2><p>At the desk.</p><div class=navfooter><a>Next</a></div>"
    )
    assert text_of(page).split("\n\n")[-1] == "At the desk."
    assert not any(word in text_of(page) for word in ("Prev", "Next", "Contents", "1.2. Doors"))
    assert "1.2. Doors" in text_of(contents)  # all there is
    told = "<h1>Issue 5</h1><div class='toc wide'><p>A long story about a lighthouse, <a>page 3</a></p></div><p>x"
    assert "lighthouse" in text_of(told)
    # One in another one.
    assert "Doors" not in text_of(f"<div class=toc><div class='toc'>{contents}</div></div><p>Only this")


def test_articles_beside_the_main_part_are_read_in_the_order_of_the_page() -> None:
    html = (
        "<article>before<article>inner</article></article><main><p>main</p><article>inside</article></main>"
        "<div role=article>after</div><aside><article>advert</article></aside><article hidden>unseen</article>"
    )
    assert text_of(html) == "before\n\ninner\n\nmain\n\ninside\n\nafter"


def test_a_main_part_that_a_script_would_fill_is_no_reason_to_leave_out_what_is_beside_it() -> None:
    assert text_of("<main> <script>fill()</script></main><div>The text.</div><nav>Menu</nav>") == "The text."


def test_a_mark_inside_the_same_mark_says_nothing_more_but_exponents_do() -> None:
    assert text_of("<code>a <code>b</code> <tt>c</tt></code> <s>x<del>y</del></s>") == "`a b c` ~~xy~~"
    assert text_of("<p>2<sup>3<sup>4</sup></sup> <q>a <q>b</q></q>") == "2^(3^4) “a “b””"


def test_text_inside_a_form_is_read_and_its_controls_are_not() -> None:
    html = "<form><h1>Leave</h1><p>Needs form L-9.<input value=secret><button>Send</button><select><option>a</select>"
    assert text_of(html) == "Needs form L-9."


def test_a_button_that_is_a_heading_is_read_and_one_beside_its_words_is_not() -> None:
    html = (
        "<h2 class=accordion-header><button>How many days off?</button></h2><p>Twenty.</p>"
        "<button type=button><h3>Who pays?</h3></button><p>ACME.<button>Send</button></p>"
        "<h2>Fees <button>Edit</button></h2><p>30.</p><h2>4. <button>Keys</button></h2><p>Desk.</p>"
        "<h2><button hidden>no</button></h2><details><summary><button>More</button></summary>Detail 5.</details>"
    )
    sections = html_document(html, "file").sections
    assert [(section.headings[-1], section.text) for section in sections] == [
        ("How many days off?", "Twenty."), ("Who pays?", "ACME."), ("Fees", "30."),
        ("4. Keys", "Desk.\n\nMore\n\nDetail 5."),
    ]  # fmt: skip


@pytest.mark.parametrize("attribute", ["class='overflow-hidden'", "data-x='hidden display:none'", "title='hidden'",
                                       "style='overflow:hidden'", "hidden=until-found"])  # fmt: skip
def test_attributes_that_only_contain_the_word_hide_nothing(attribute: str) -> None:
    assert text_of(f"<div {attribute}>The fee is 30.</div>") == "The fee is 30."


@pytest.mark.parametrize("attribute", ["hidden", "HIDDEN=''", "style='color:red; DISPLAY : none !important'",
                                       "style='visibility:hidden'", "aria-hidden=true"])  # fmt: skip
def test_attributes_that_hide_do(attribute: str) -> None:
    assert text_of(f"<p>a<p {attribute}>no<b>thing</b></p><p>b") == "a\n\nb"


def test_tabs_and_details_that_a_click_shows_are_read() -> None:
    html = "<div role=tabpanel hidden>Windows: winget</div><details><summary>More</summary><p>Detail 5.</details>"
    assert text_of(html) == "Windows: winget\n\nMore\n\nDetail 5."


def test_code_becomes_a_fence_with_its_language_that_its_own_fences_do_not_end() -> None:
    html = '<pre><code class="hljs language-md">```\n&lt;b hidden&gt;\n```</code></pre>'
    assert text_of(html) == "````md\n```\n<b hidden>\n```\n````"
    assert text_of("<p>Use <code>a`b</code></p>") == "Use ``a`b``"


def test_xhtml_keeps_code_in_cdata_and_closes_what_closes_itself() -> None:
    html = (
        '<html xmlns="http://www.w3.org/1999/xhtml"><h1>Restore</h1><pre class="language-bash">'
        "<![CDATA[if [ $? -gt 0 ]; then x; fi]]></pre><p>See <i/>Vault.</p></html>"
    )
    assert text_of(html) == "```bash\nif [ $? -gt 0 ]; then x; fi\n```\n\nSee Vault."
    assert text_of('<html title="a > b" xmlns="x"><p>See <i/>Vault.<script src="x"/> It is open.</p></html>') == (
        "See Vault. It is open."
    )
    page = '<?xml version="1.0"?><page><div/><script src="x"/><h1>Gate</h1><p>The gate closes.</p></page>'
    assert (html_document(page, "file").title, text_of(page)) == ("Gate", "The gate closes.")


@pytest.mark.parametrize(
    "page",
    ['<?xml version="1.0" encoding="Shift_JIS"?><html><body>%s', '<meta charset="x-sjis">%s', "%s",
     "<!-- " + "x" * 3000 + ' --><meta http-equiv=Content-Type content="text/html; charset=windows-31j">%s',
     '<meta charset="euc-jp">%s', '<meta name="d" content="a > b" charset="Shift_JIS">%s',
     "<META content='text/html; x=\">\"; charset=Shift_JIS' http-equiv=Content-Type>%s"],
)  # fmt: skip
def test_pages_are_read_in_the_encoding_that_they_declare_where_the_bytes_agree(page: str) -> None:
    words = "①倉庫の棚卸は三月に行います。担当は㈱青葉商会です。"
    read = read_html((page % f"<p>{words}</p>").encode("cp932"), "file")
    assert read.document.sections[0].text == words
    assert bool(read.note) == ("euc-jp" in page)
    assert read_html(f'<meta charset="Shift_JIS"><p>{words}'.encode(), "file").document.sections[0].text == words
    assert declared_charset(b"<p>none") == ""
    assert declared_charset(b'<meta content="a > b"> charset=euc-jp <meta name=x charset=Shift_JIS>') == "Shift_JIS"
    begun = time.process_time()
    for unit in (b"<meta ", b'<meta a="', b"<meta a='\"", b"<meta a= ", b"<meta>", b"= "):
        assert declared_charset(b"<meta " + unit * 200_000) == ""
    assert time.process_time() - begun < 4


def test_no_nesting_is_too_deep_and_no_page_of_junk_takes_long() -> None:
    assert text_of("<div>" * 20_000 + "deep") == "deep"
    assert "deep" in text_of("<ul><li>" * 400 + "deep") and "deep" in text_of("<blockquote>" * 3000 + "deep")
    start = time.process_time()
    for unit in ("<div>", "<ul><li>", "<table><tr><td>", "<a x='", "<", "<!--", "<b><p>", "<td rowspan=99 colspan=99>"):
        for head in ("", "<?xml version='1.0'?>"):
            html_document(head + unit * (200_000 // len(unit)), "file")
    assert time.process_time() - start < 60


@pytest.mark.parametrize("unit", ["<rt>", "<rp>", "<rtc>", "<optgroup>", "<ruby></ruby><rt>", "<p><rt>"])
def test_what_closes_itself_in_its_own_place_alone_is_not_nested_without_end_elsewhere(unit: str) -> None:
    start = time.process_time()
    assert text_of(f"<div>{unit * (200_000 // len(unit))}</div><p>behind") == "behind"
    assert time.process_time() - start < 4


@pytest.mark.parametrize("name", ["b", "font"])
def test_formatting_that_is_never_closed_does_not_multiply(name: str) -> None:
    """Each paragraph opens again whatever is still open: of 2,000 with attributes of their own came 2 million."""
    page = "".join(f"<p><{name} id={n}>word {n}" for n in range(2000))
    start = time.process_time()
    text = text_of(page + f"<p>plain <{name}>x</{name}>")
    assert time.process_time() - start < 4
    assert all(f"word {n}" in text for n in range(2000)) and "plain x" in text.replace("`", "").replace("*", "")


def test_readings_of_many_rubies_without_end_tags_are_dropped() -> None:
    assert text_of("<ruby>漢<rt>かん</ruby>" * 3000) == "漢" * 3000


def test_an_attribute_of_a_megabyte_and_embedded_files_leave_nothing() -> None:
    data = "data:image/png;base64," + "QUJD" * 250_000
    assert text_of(f'<p><img src="{data}" alt="plan"> and <a href="{data}">words</a> {data}</p>') == "plan and words"


def test_a_document_as_markdown_is_read_as_the_same_document() -> None:
    html = "<h1>T</h1><p>a</p><h2>B</h2><p>b</p><h3>C</h3><p>c</p><h2>B</h2><p>d</p>"
    document = html_document(html, "file")
    assert markdown_of(document) == "# T\n\na\n\n## B\n\nb\n\n### C\n\nc\n\n## B\n\nd\n"
    assert isinstance(document, Document)


def test_a_gutter_is_a_column_of_numbers_beside_code_and_nothing_else() -> None:
    assert text_of("<div class=gutter><p>All of the page.</div>") == "All of the page."
    assert text_of("<div class='row gutter'>2024</div><p>x") == "2024\n\nx"
    code = "<figure><table><tr><td class=gutter><pre>1<br>2</pre><td class=code><pre>a\nb</pre></table></figure>"
    assert "1" not in text_of(code) and "a\nb" in text_of(code)
    assert text_of("<pre><span class=lineno>1 </span>x = 1</pre>") == "```\nx = 1\n```"
    assert "Read" in text_of("<article class=gutter><p>Read <code>this</code>.</article>")


@pytest.mark.parametrize("style", ["visibility:hidden", "VISIBILITY: collapse", "font-size:0",
                                   "font-size: 0px !important", "font:0/0 a"])  # fmt: skip
@pytest.mark.parametrize("undone", ["visibility:visible;font-size:14px", "font:12px serif;visibility: visible"])
def test_what_a_child_shows_again_is_read_and_its_hidden_neighbours_are_not(style: str, undone: str) -> None:
    html = (
        f"<p>a</p><div style='{style}'>no<p>no <b style='{undone}'>shown</b></p><p style='font-size:2em'>no</p></div>b"
    )
    assert text_of(html) == "a\n\nshown\n\nb"
    assert text_of(f"<p>a<table style='{style}'><tr><td>no</table><img alt=no style='{style}'>") == "a"
    assert markdown_of(html_document(f"<h1 style='{style}'>no</h1>b", "file")).find("no") < 0
    kept = plain_markdown(f"a <span style='{style}'>x <b style='{undone}'>shown</b></span> <i style='{style}'>no</i>")
    assert "shown" in kept and "no" not in kept


@pytest.mark.parametrize(
    "attribute", ["style='opacity:0'", "style='display:none'", "hidden", "style='visibility:hidden'"]
)
def test_a_page_that_waits_for_its_script_to_be_shown_is_read(attribute: str) -> None:
    assert text_of(f"<html><body {attribute}><p>Text.</p><p style='opacity:0'>no</p></body></html>") == "Text."


@pytest.mark.parametrize("style", [
    "position:absolute;left:-10000px", "text-indent:-9999px", "height:0;overflow:hidden", "clip-path:inset(100%)",
    "transform: scale(0)", "color:#fff; background-color: #fff", "TEXT-INDENT: -100em", "color:White;background:white",
])  # fmt: skip
def test_text_that_a_style_puts_out_of_sight_is_not_read(style: str) -> None:
    assert text_of(f"<p>a</p><div style='{style}'>no <b style='color:red'>no</b></div>b") == "a\n\nb"


@pytest.mark.parametrize("style", [
    "position:relative;left:-10px", "text-indent:-2em", "height:0", "overflow:hidden;height:20px", "color:#fff",
    "color:#fff;background:#000", "transform:scale(0.5)", "left:-10000px", "clip-path:inset(5%)",
])  # fmt: skip
def test_text_that_a_style_only_shapes_is_read(style: str) -> None:
    assert text_of(f"<p>a</p><div style='{style}'>yes</div>") == "a\n\nyes"


def test_a_comment_that_closes_at_once_hides_nothing() -> None:
    for comment in ("<!-->", "<!--->", "<!---->", "<!-- -->"):
        assert plain_markdown(f"a {comment}b\n\nc -->").split() == ["a", "b", "c", "-->"]
        assert "b" in text_of(f"<html xmlns='x'><body>a {comment}b<p>c<!-- d --></body>")


def test_a_page_that_is_written_into_a_frame_is_a_part_of_the_page() -> None:
    inner = "<style>no</style><h2>Fees</h2><p>It is 30 &amp;amp; more.<script>no</script><p hidden>no"
    page = f"<p>a<iframe srcdoc='{inner}' src=x>no</iframe><p>b<iframe src=x>no</iframe><iframe srcdoc>no</iframe>"
    sections = html_document(page, "file").sections
    assert [(section.headings, section.text) for section in sections] == [
        ((), "a"),
        (("Fees",), "It is 30 & more.\n\nb"),
    ]
    assert text_of("<p>a</p><iframe srcdoc='<nav>no</nav><main>b</main>'></iframe><p>c") == "a\n\nb\n\nc"
    deeper = f"<iframe srcdoc='<p>c<iframe srcdoc=&quot;<p>d&quot;></iframe>'></iframe><iframe srcdoc='{inner}' hidden>"
    assert text_of(deeper) == "c\n\nd"
    assert plain_markdown(f"a\n\n<iframe srcdoc='{inner}'></iframe>\n\nb").split() == [
        "a", "##", "Fees", "It", "is", "30", "&", "more.", "b",
    ]  # fmt: skip
    assert "| x | y |" in text_of("<table><tr><td>x<td><iframe srcdoc='<p>y'></iframe><tr><td>1<td>2</table>")


def test_a_processing_instruction_is_passed_over_wherever_it_stands() -> None:
    page = '<?php x ?><body><h1>Keys</h1><p>At the<?mso-fld x?> desk.</p><nav>Menu<?y?></nav><?php include "a.php"; ?>'
    assert text_of(page) == "At the desk." and html_document(page, "file").title == "Keys"
    assert text_of("<pre>a<?x?>b</pre><p style='font-size:0'>no<?x?></p>") == "```\nab\n```"
    assert text_of("<pre><?x?><span class=linenos><?x?>1 </span>x = 1</pre>") == "```\nx = 1\n```"
    assert text_of("<main><?x?></main><math><msup><?x?><mn>10</mn><mn>3</mn></msup></math>") == "10^3"
    cell = "<table><tr><?x?><td>A<?mso-fld x?></td><td>B</td></tr><tr><td>1<td>2</table>"
    assert "| A | B |" in text_of(cell) and "| A | B |" in plain_markdown(cell)
    assert [child.name for child in nodes_of_html(parse_html("<p>a<?x?></p><?y?>").body).elements()] == ["body"]


@pytest.mark.parametrize("value", ["", "=1", "='1'", '="<b>"', " = x"])
def test_a_tag_with_very_many_attributes_is_read_in_time_and_nothing_behind_it_is_lost(value: str) -> None:
    many = " ".join(f"a{i}{value}" for i in range(40_000))
    begun = time.process_time()
    assert text_of(f"<p {many}>first</p><p class=x>second</p>") == "first\n\nsecond"
    assert plain_markdown(f"<pre {many}>first</pre>\n\nsecond").split()[1::2] == ["first", "second"]
    assert text_of("<a " * 40_000 + ">end</a>") == "end"
    assert time.process_time() - begun < 4


# Time


@pytest.mark.parametrize(
    "unit",
    ["<code>x", "x <code> y", "<code>`", "<code>x\n\n", "<sub>x", "<sup>x", "<sub></sub>", "x<sub>1</sub>2",
     "<q>x", "<del>x", "<p><code>x",
     "<main><h1>x",
     "<span class=linenos>1", "<span class=linenos>1</span>", "<div class=gutter>1", "<article>x", "<main>x</main>",
     "<iframe srcdoc=x></iframe>",
     "<article>x</article>", "<h1></h1>", "<aside></aside>", "<nav>x</nav><main>x</main>", "<button><h2>x",
     "<h2><button>x</button>", "<dl><dt>x<dd>y"],
)  # fmt: skip
@pytest.mark.parametrize("around", ["", "<div>" * 900])
def test_elements_that_are_never_closed_take_time_in_proportion_to_their_number(unit: str, around: str) -> None:
    taken = []
    for count in (240, 960):  # below the number of tags from which on a page is made shallow
        begun = time.process_time()
        html_document(around[: 5 * (980 - count)] + unit * count, "file")
        taken.append(time.process_time() - begun)
    assert taken[1] < 10 * taken[0] + 0.2, taken


def test_a_dialog_that_is_closed_is_not_read_and_the_text_of_a_field_is() -> None:
    html = "<p>a</p><dialog><p>Accept all</p></dialog><dialog open><p>Closed on Friday</p></dialog>"
    html += "<p>Say:</p><textarea>I agree to the <b>terms</b>.</textarea><select><option>no</select>"
    assert text_of(html) == "a\n\nClosed on Friday\n\nSay:\n\nI agree to the <b>terms</b>."
