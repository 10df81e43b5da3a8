"""The storage format as Markdown: what a reader of the page sees is there once, and nothing else is."""

from __future__ import annotations

import itertools
import time

import pytest

from rag.sources.confluence.body.adf import storage_of_adf
from rag.sources.confluence.body.around import Around
from rag.sources.confluence.body.storage import markdown_of_nodes, read_nodes
from rag.sources.confluence.body.wiki import storage_of_wiki
from tests.tiny_confluence import macro, markdown


@pytest.mark.parametrize(
    ("storage", "right"),
    [
        ('<p>See <ac:link><ri:page ri:content-title="Vault" /></ac:link>.</p>', "See Vault."),
        ('<ac:link><ri:page ri:content-title="V"/><ac:link-body><b>the</b> vault</ac:link-body></ac:link>',
         "the vault"),
        ("<ac:link ac:anchor='x'><ac:plain-text-link-body><![CDATA[a [b]]]></ac:plain-text-link-body></ac:link>",
         "a [b]"),
        ('<ac:link><ri:attachment ri:filename="plan.pdf"/><ac:link-body>Plan</ac:link-body></ac:link>',
         "Plan (plan.pdf)"),
        ('<ac:link><ri:space ri:space-key="HR"/></ac:link>', "HR"),
        ('<p>due<time datetime="2026-05-01" />and</p>', "due 2026-05-01 and"),
        ('<p>締切は<time datetime="2026-05-01" />です</p>', "締切は2026-05-01です"),
        ('<p>Ask <ac:link><ri:user ri:account-id="557058:1a2b" /></ac:link>.</p>', "Ask @user."),
        ('<p>Ask <ac:link><ri:user ri:username="bob" /></ac:link>.</p>', "Ask @bob."),
        ('<p>Ask <ac:link><ri:user ri:username="bob@example.com" /></ac:link>.</p>', "Ask @user."),
        ('<p>ok <ac:emoticon ac:name="tick" /></p>', "ok ✅"),
        ('<p>ok <ac:emoticon ac:name="blue-star" ac:emoji-id="1f642" ac:emoji-fallback=":x:" /></p>', "ok 🙂"),
        ("<h2>避難<span>場</span>所<ac:inline-comment-marker ac:ref='7c1f'>案内</ac:inline-comment-marker></h2>",
         "## 避難場所案内"),
        ("<p>1 &lt; 2 &amp;&amp; caf&eacute;&nbsp;&hellip; &unknown; &#8;</p>", "1 < 2 && café … &unknown;"),
        ("<ac:placeholder>type here</ac:placeholder><p>text</p>", "text"),
        ("<p><unknown-tag>kept</unknown-tag></p>", "kept"),
        ('<p>Ask <ac:link><ri:user ri:username="5b10a2844c20165700ede21g" /></ac:link>.</p>',
         "Ask @5b10a2844c20165700ede21g."),
        ('<p>Ask <ac:link><ri:user ri:username="5b10a2844c20165700ede21f" /></ac:link>.</p>', "Ask @user."),
        (macro("widget", url='<ri:url ri:value="https://v.example/watch?v=1" />', width="400"),
         "https://v.example/watch?v=1"),
        ('<ac:structured-macro ac:name="mathblock"><ac:plain-text-body><![CDATA[\\frac{a}{b}]]></ac:plain-text-body>'
         "</ac:structured-macro>", "\\frac{a}{b}"),
    ],
)  # fmt: skip
def test_small_things_are_what_the_page_shows(storage: str, right: str) -> None:
    assert markdown(storage) == right


def test_macros_show_their_content_and_none_of_their_settings() -> None:
    storage = (
        macro("info", "<p>Body one.</p>", title="Heads up", icon="false")
        + macro("expand", "<h3>Inside</h3><p>Body two.</p>", title="More", breakoutWidth="760")
        + macro("panel", "<p>Body three.</p>", bgColor="#E6FCFF", panelIconId="1f308")
        + macro("never-heard-of", "<p>Body four.</p>", secret="noise", title="also noise")
        + f"<p>{macro('status', title='障害', colour='Red')}\n{macro('status', title='完了', colour='Green')}</p>"
        + f"<p>see {macro('jira', key='ABC-12', serverId='5aa69414')} and {macro('mathinline', body='x^2')}</p>"
        + macro("jira", jqlQuery="key in (ABC-1, ABC-2)", columns="type,status")
        + macro("toc", maxLevel="3")
        + macro("style", ".x { color: red }")
        + macro("drawio", diagramName="network plan", zoom="1")
        + macro("view-file", name='<ri:attachment ri:filename="budget.xlsx" />', height="250")
    )
    written = markdown(storage)
    shown = ("Info: Heads up", "Body one.", "More", "### Inside", "Body two.", "Body three.", "Body four.", "障害 完了",
             "see ABC-12 and x^2", "ABC-1 ABC-2", "(diagram: network plan)", "budget.xlsx")  # fmt: skip
    assert [part for part in shown if written.count(part) != 1] == []
    noise = ("#E6FCFF", "noise", "5aa69414", "uuid", "Red", "color", "250", "false", "760", "1f308", "ac:")
    assert [part for part in noise if part in written] == []


def test_a_macro_without_anything_to_show_is_named_beside_the_text_and_not_in_it() -> None:
    written = markdown_of_nodes(read_nodes("<p>a</p>" + macro("weather-forecast", city="Kyoto")))
    assert (written.markdown, list(written.missed)) == ("a", ["weather-forecast"])
    assert "weather-forecast" in written.note
    # One that is not known and has something in it shows that, and is named beside the text as well.
    written = markdown_of_nodes(read_nodes(macro("weather-table", "<p>Rain.</p>") + macro("info", "<p>Sun.</p>")))
    assert (written.markdown, list(written.strange)) == ("Rain.\n\nInfo:\n\nSun.", ["weather-table"])
    assert "weather-table" in written.note and "info" not in written.note


def test_titles_of_tabs_and_buttons_are_text_and_a_markdown_macro_is_no_code() -> None:
    shown = markdown(
        macro("ui-tab", "<p>Eight to six.</p>", title="Opening hours") + macro("tab", "<p>a</p>", title="Second")
        + macro("ui-button", title="Book a room", url="https://e.example", icon="x1")
        + '<ac:structured-macro ac:name="markdown"><ac:plain-text-body><![CDATA['
        "## Steps\n\n1. *Knock*\n2. Enter <b>\n\n| Day | Fee |\n|---|---|\n| Mon | 10 |"
        "]]></ac:plain-text-body></ac:structured-macro>"
    )  # fmt: skip
    for part in ("Opening hours\n\nEight to six.", "Second\n\na", "Book a room",
                 "## Steps", "1. Knock\n2. Enter", "| Mon | 10 |"):  # fmt: skip
        assert part in shown, (part, shown)
    assert [part for part in ("x1", "https", "```") if part in shown] == []


def test_code_keeps_every_character_its_language_and_its_title() -> None:
    code = "if (a < b && c[0]) {\n    x = ']]';  // <tag> &amp;\n\n}"
    body = f"<ac:plain-text-body><![CDATA[{code}]]></ac:plain-text-body>"
    named = '<ac:parameter ac:name="language">java</ac:parameter><ac:parameter ac:name="title">A.java</ac:parameter>'
    assert markdown(f'<ac:structured-macro ac:name="code">{named}{body}</ac:structured-macro>') == (
        f"A.java\n\n```java\n{code}\n```"
    )
    old = '<ac:macro ac:name="code"><ac:default-parameter>sql</ac:default-parameter>'
    assert markdown(f"{old}{body}</ac:macro>") == f"```sql\n{code}\n```"
    brackets = "<ac:plain-text-body><![CDATA[if [[ -f x ]] >log; then]]></ac:plain-text-body>"
    for own in (brackets, brackets.replace("]]>", "]] >")):
        written = markdown(f'<ac:structured-macro ac:name="code">{own}</ac:structured-macro><p>b</p>')
        assert written == "```\nif [[ -f x ]] >log; then\n```\n\nb"
    lang = '<ac:parameter ac:name="language">html/xml</ac:parameter>'
    assert markdown(f'<ac:structured-macro ac:name="code">{lang}{body}</ac:structured-macro>').startswith("```html\n")
    # As an XML export writes the inner end of a CDATA section.
    assert "<tag>" in markdown(f'<ac:macro ac:name="code">{body.replace("]]>", "]] >")}</ac:macro><p>b</p>')
    split = "<ac:plain-text-body><![CDATA[a]]]]><![CDATA[>b]]></ac:plain-text-body>"
    assert markdown(f'<ac:structured-macro ac:name="noformat">{split}</ac:structured-macro>') == "```\na]]>b\n```"


def test_tasks_have_their_state_on_the_line_of_their_text_in_cells_too() -> None:
    def task(status: str, body: str) -> str:
        return f"<ac:task><ac:task-id>7</ac:task-id><ac:task-status>{status}</ac:task-status><ac:task-body>{body}</ac:task-body></ac:task>"  # noqa: E501

    done, todo = task("complete", "<p>Buy <b>beans</b></p>"), task("incomplete", "掃除")
    assert markdown(f"<ac:task-list>\n{done}\n{todo}\n</ac:task-list>") == "- [x] Buy beans\n- [ ] 掃除"
    nested = task("complete", f"<span>outer</span><ac:task-list>{task('incomplete', 'inner')}</ac:task-list>")
    assert markdown(f"<ac:task-list>{nested}</ac:task-list>") == "- [x] outer\n  - [ ] inner"
    row = f"<tr><td>A</td><td><ac:task-list>{done}</ac:task-list></td></tr>"
    table = f"<table><tr><th>Who</th><th>What</th></tr>{row}</table>"
    assert "| A | [x] Buy beans |" in markdown(table)


def test_images_say_their_words_their_file_and_their_caption_once() -> None:
    image = '<ac:image ac:alt="{}" ac:title="{}" ac:width="760"><ri:attachment ri:filename="a b.png" /><ac:caption><p>{}</p></ac:caption></ac:image>'  # noqa: E501
    assert markdown(image.format("Floor plan", "Building 2", "Way out")) == (
        "(image: Floor plan; Building 2; a b.png)\n\nWay out"
    )
    assert markdown(image.format("Way out", "", "Way out")) == "(image: a b.png)\n\nWay out"
    assert markdown(image.format("a b.png", "", "")) == "(image: a b.png)"
    url = '<ac:image><ri:url ri:value="https://e.example/x/map.png?token=eyJhbGciOi" /></ac:image>'
    assert markdown(url) == "(image: map.png)"


def test_the_editors_own_nodes_are_written_once_and_their_copy_only_without_them() -> None:
    node = '<ac:adf-node type="panel"><ac:adf-attribute key="panel-type">note</ac:adf-attribute><ac:adf-content>{}</ac:adf-content></ac:adf-node>'  # noqa: E501
    copy = '<ac:adf-fallback><div class="panel"><p>Mind the gap.</p></div></ac:adf-fallback>'
    both = f"<ac:adf-extension>{node.format('<p>Mind the gap.</p>')}{copy}</ac:adf-extension>"
    assert markdown(both) == "Note:\n\nMind the gap."
    assert markdown(f"<ac:adf-extension>{node.format('')}{copy}</ac:adf-extension>") == "Mind the gap."
    two = node.format("<p>One.</p>") + node.format("<p>Two.</p>")
    assert markdown(f"<ac:adf-extension>{two}{copy}</ac:adf-extension>") == "Note:\n\nOne.\n\nNote:\n\nTwo."


def test_tables_keep_merged_and_nested_cells_and_long_ones_repeat_their_header() -> None:
    inner = "<table><tbody><tr><td>x</td><td>y</td></tr></tbody></table>"
    storage = (
        "<table><colgroup><col /></colgroup><tbody><tr><th>Group</th><th>Kind</th><th>Note</th></tr>"
        f"<tr><td rowspan='2'>Users</td><td>Status</td><td>{inner}</td></tr>"
        "<tr><td>History</td><td><ul><li>a<ul><li>b</li></ul></li></ul></td></tr></tbody></table>"
    )
    assert markdown(storage).split("\n")[2:] == ["| Users | Status | x; y |", "| Users | History | a; b |"]
    rows = "".join(f"<tr><td>name {n}</td><td>{'value ' * 20}{n}</td></tr>" for n in range(30))
    lines = markdown(f"<table><tbody><tr><th>Name</th><th>Value</th></tr>{rows}</tbody></table>").split("\n")
    heads = [number for number, line in enumerate(lines) if line == "| Name | Value |"]
    assert sum(line.startswith("| name ") for line in lines) == 30
    assert len(heads) > 3 and max(b - a for a, b in itertools.pairwise(heads)) < 12


def test_includes_show_the_other_page_and_cycles_end() -> None:
    def include(title: str, kind: str = "include") -> str:
        return macro(kind, **{"": f'<ac:link><ri:page ri:content-title="{title}" /></ac:link>'})

    pages = {
        "B": "<p>From B.</p>" + include("C"),
        "C": "<p>From C.</p>" + include("B"),
        "D": "<p>not this</p>" + macro("excerpt", "<p>Only this.</p>"),
        "Bomb": include("Bomb2") * 50, "Bomb2": include("Bomb3") * 50, "Bomb3": include("Bomb4") * 50,
        "Bomb4": "<p>boom</p>" * 50,
    }  # fmt: skip
    around = Around("HB", "A", lambda space, title: read_nodes(pages[title]) if title in pages else None)
    written = markdown(include("B") + include("D", "excerpt-include") + include("Gone"), around)
    assert written == "From B.\n\nFrom C.\n\n(B: a page that includes itself)\n\nOnly this.\n\n(see: Gone)"
    begun = time.process_time()
    assert "(see: Bomb" in markdown(include("Bomb"), around)
    assert time.process_time() - begun < 30


def test_damaged_pages_are_read_all_the_same() -> None:
    assert markdown("<p>a\x02b\x00</p><h2>open") == "ab\n\n## open"
    assert markdown("<p>a <b>b</p> c</b></i></ac:layout> d") == "a b\n\nc d"
    assert markdown('<p attr="unclosed>text</p><p>more</p>').endswith("more")
    assert markdown("<p>x</p><ac:structured-macro ac:name='code'><ac:plain-text-body><![CDATA[cut o").endswith(
        "cut o\n```"
    )
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;"><!ENTITY e SYSTEM "file:///etc/passwd">]><p>&b;&e;z</p>'
    assert markdown(bomb) == "&b;&e;z"


DEEP = {
    "div": "<div>", "macro": '<ac:structured-macro ac:name="expand"><ac:rich-text-body>',
    "link": "<ac:link><ac:link-body>", "image": "<ac:image><ac:caption>", "list": "<ul><li>a",
    "adf": '<ac:adf-extension><ac:adf-node type="panel"><ac:adf-content>', "table": "<table><tr><td>",
    "task": "<ac:task-list><ac:task><ac:task-body>", "include": '<ac:macro ac:name="include"><ac:parameter ac:name="">',
    "attached": '<a data-linked-resource-default-alias="x.pdf" data-linked-resource-type="attachment">',
    "note": '<div class="confluence-information-macro confluence-information-macro-note"><p class="title">',
    "quote": '<a b="', "tag": "<a ", "cdata": "<![CDATA[", "doctype": "<!DOCTYPE x [", "script": "<script>",
}  # fmt: skip


@pytest.mark.parametrize("kind", DEEP)
def test_nothing_is_too_deep_and_time_grows_with_the_length(kind: str) -> None:
    def seconds(count: int) -> float:
        begun = time.process_time()
        markdown(DEEP[kind] * count + "x")
        return time.process_time() - begun

    seconds(500)
    small, large = seconds(2500), seconds(10_000)
    assert large < max(12 * small, 1.5), (small, large)


def test_wiki_markup_of_old_pages_is_read_as_the_page_shows_it() -> None:
    text = (
        "{toc}\nh2. Title *bold*\nSome _text_ with {{mono}}, [words|http://e.example], [DEV:Page One], [^f.pdf] "
        "\\[no\\]\nsecond line\n\n* one\n** two\n# first\n\n||Name||Value||\n|a|[b|Page]|\n\n{code:java|title=A.java}\n"
        "h1. int a = *b*; // {x}\n{code}\n{info:title=Heads up}\nInside\n{info}\n!plan.png|alt=Floor plan!\n"
        "{color:red}red{color} {status:title=DONE|colour=Green} {jira:ABC-1}\n----\nbq. quoted"
    )
    assert markdown(storage_of_wiki(text)) == (
        "## Title bold\n\nSome text with `mono`, words, Page One, f.pdf [no]\nsecond line\n\n- one\n  - two\n\n1. first"
        "\n\n| Name | Value |\n| --- | --- |\n| a | b |\n\nA.java\n\n```java\nh1. int a = *b*; // {x}\n```\n\n"
        "Info: Heads up\n\nInside\n\n(image: Floor plan; plan.png)\n\nred DONE ABC-1\n\n* * *\n\n> quoted"
    )


def test_a_page_that_has_only_the_editors_format_is_read() -> None:
    def node(kind: str, *content: str, **attributes: str) -> str:
        given = ", ".join(f'"{key}": "{value}"' for key, value in attributes.items())
        return f'{{"type": "{kind}", "attrs": {{{given}}}, "content": [{", ".join(content)}]}}'

    def text(words: str) -> str:
        return f'{{"type": "text", "text": "{words}"}}'

    document = node(
        "doc", node("heading", text("Head"), level="2"), node("panel", node("paragraph", text("1 < 2"))),
        node("taskList", node("taskItem", text("did"), state="DONE", localId="uuid")),
        node("paragraph", node("status", text="OK", color="green"), node("date", timestamp="1704067200000")),
    )  # fmt: skip
    assert markdown(storage_of_adf(document)) == "## Head\n\n1 < 2\n\n- [x] did\n\nOK 2024-01-01"
    assert storage_of_adf("[" * 100_000) == ""
