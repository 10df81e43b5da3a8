"""Answers' Markdown on the page, in a real Chromium: drawn as meant, as it grows, and never as markup of its own."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.page_browser import Open, answered, send
from tests.page_server import PASSAGES, Script
from tests.waiting import eventually

pytestmark = pytest.mark.browser
HOSTILE = """<script>window.hacked = 1</script><img src=x onerror="window.hacked = 1">

[a](javascript:window.hacked=1) [b](JaVaScRiPt:window.hacked=1) [c](java\tscript:window.hacked=1) [d](data:text/html,x)
[e](https://good.example "onmouseover=alert(1)") ![f](javascript:window.hacked=1) ![g](https://picture.example/x.png)
<javascript:window.hacked=1> <a href="javascript:window.hacked=1">h</a> [i](vbscript:x) [j](https://x.example/"onclick=z)

```html"><script>window.hacked = 1</script>
</code></pre><script>window.hacked = 1</script><svg onload="window.hacked = 1">
```

| <b onclick=x>k</b> | [l](javascript:1) |
|---|---|
| <iframe src="javascript:window.hacked=1"> | <style>*{display:none}</style> |

- <svg/onload=window.hacked=1>
> <math><mi xlink:href="javascript:window.hacked=1">"""
MARKDOWN = """# Title

**bold** and *em* and `code` and [link](https://a.example/b) ~~gone~~

これは**「重要」**です。**注意:**説明、*強調*も。

| a | b |
|---|--:|
| 1 | **2** |

- one
- two
  - three
    1. four

```py
print("x")
```

> quoted

3. third
4. fourth, see https://c.example/d."""


def render(page: Any, text: str, **options: Any) -> str:
    """The HTML of a text, drawn in one step by the page's own modules."""
    return str(
        page.evaluate(
            """async ([text, options]) => {
              const { parse } = await import("./web/markdown.js"), { patch } = await import("./web/dom.js");
              const box = document.createElement("div");
              patch(box, parse(text, options));
              return box.innerHTML;
            }""",
            [text, options],
        )
    )


def test_hostile_answers_stay_text(visit: Open, script: Script) -> None:
    script.pieces = re.findall(r"(?s).{1,7}", HOSTILE)
    page = visit()
    send(page, "<img src=x onerror='window.hacked = 1'>")
    text = answered(page).locator(".text")
    assert page.evaluate("window.hacked") is None
    tags = set(text.evaluate("box => [...box.querySelectorAll('*')].map(e => e.localName)"))
    blocks = {"p", "pre", "figure", "figcaption", "div", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}
    assert tags <= blocks | {"blockquote", "br", "a", "span", "button", "code"}
    names = set(text.evaluate("box => [...box.querySelectorAll('*')].flatMap(e => [...e.attributes].map(a => a.name))"))
    assert names <= {"class", "type", "href", "target", "rel"}
    links = text.evaluate("box => [...box.querySelectorAll('a')].map(a => [a.protocol, a.rel, a.target])")
    assert len(links) >= 2 and all(link == ["https:", "noopener noreferrer", "_blank"] for link in links)
    shown = text.inner_text()
    assert "<script>window.hacked = 1</script>" in shown and "[a](javascript:window.hacked=1)" in shown
    page.reload()
    page.wait_for_selector("article.assistant")
    assert page.evaluate("window.hacked") is None and page.locator("article img, #chats img").count() == 0


def test_names_errors_and_passages_stay_text_too(visit: Open, script: Script) -> None:
    evil = "<img src=x onerror=window.hacked=1>"
    script.base, script.adapters, script.retrieval = f"base{evil}", {f"en{evil}": "en"}, True
    script.citations = [
        {**PASSAGES[0], "title": evil, "heading": evil, "text": evil * 2, "quote": evil, "source": f"javascript:{evil}"}
    ]
    script.pieces = ["See [1]."]
    page = visit()
    assert evil in page.locator("#hello").inner_text()
    page.check("#rag")
    send(page, evil)
    answered(page).locator(".cite").click()
    assert page.locator("#sourceText mark").first.inner_text() == evil
    assert page.locator("#source a").count() == 0
    page.keyboard.press("Escape")
    script.refuse = (500, {"message": evil, "code": "x"}, {})
    send(page)
    assert evil in page.locator("article.error p").inner_text()
    assert page.evaluate("window.hacked") is None and page.locator("img:not([src='web/icon.svg'])").count() == 0


def test_markdown_becomes_the_elements_it_means(visit: Open) -> None:
    page = visit()
    drawn = render(page, MARKDOWN)
    for part in (
        "<h3>Title</h3>", "<strong>bold</strong> and <em>em</em> and <code>code</code>", "<del>gone</del>",
        '<a href="https://a.example/b" target="_blank" rel="noopener noreferrer">link</a>',
        "これは<strong>「重要」</strong>です。<strong>注意:</strong>説明、<em>強調</em>も。",
        "<thead><tr><th>a</th><th class=\"right\">b</th></tr></thead>", '<td class="right"><strong>2</strong></td>',
        "<ul><li>one</li><li>two<ul><li>three<ol><li>four</li></ol></li></ul></li></ul>",
        '<pre><code>print("x")</code></pre>', "<blockquote><p>quoted</p></blockquote>",
        '<ol start="3"><li>third</li><li>fourth, see <a href="https://c.example/d"',
    ):  # fmt: skip
        assert part in drawn
    assert "<em>" not in render(page, "2 * 3 * 4, snake_case_name, \\*no\\*, `*code*`")
    assert "<button" not in render(page, "[1] and [2]")


def test_a_growing_answer_never_takes_back_what_it_has_shown(visit: Open) -> None:
    """Every prefix's visible text is a prefix of the next one's, and growing step by step ends as drawing at once."""
    page = visit()
    result = page.evaluate(
        """async (text) => {
          const { parse } = await import("./web/markdown.js"), { patch } = await import("./web/dom.js");
          const box = document.createElement("div"), once = document.createElement("div"), back = [];
          const seen = () => {
            const copy = box.cloneNode(true);
            copy.querySelectorAll("figcaption").forEach((caption) => caption.remove()); // the language grows in it
            return copy.textContent;
          };
          let shown = "", first = null;
          for (let n = 1; n <= text.length; n++) {
            patch(box, parse(text.slice(0, n), { live: true }));
            if (!seen().startsWith(shown)) back.push([shown, seen()]);
            shown = seen();
            first ??= box.firstElementChild;
          }
          const kept = first === box.firstElementChild;
          patch(box, parse(text));
          patch(once, parse(text));
          return { back, kept, grown: box.innerHTML, once: once.innerHTML };
        }""",
        MARKDOWN,
    )
    assert result["back"] == []
    assert result["kept"] and result["grown"] == result["once"]


def test_an_answer_that_repeats_itself_without_end_does_not_stop_the_page(visit: Open) -> None:
    pieces = [
        "[",
        "*a ",
        "_a*b",
        "`",
        "> ",
        "- ",
        "[a](",
        "![",
        "<",
        "|-",
        "a\n",
        "- a\n",
        "https://a.b/",
        "`a``b",
        "#",
    ]
    page = visit()
    for piece in pieces:
        milliseconds = page.evaluate(
            """async (text) => {
              const { parse } = await import("./web/markdown.js"), began = performance.now();
              parse(text, { live: true });
              parse(text);
              return performance.now() - began;
            }""",
            piece * (40_000 // len(piece)),
        )
        assert milliseconds < 5000, f"{piece!r}: quadratic in the answer's length"


def test_code_and_answers_are_copied_as_they_were_written(visit: Open, script: Script) -> None:
    script.pieces = ["**Run**:\n\n```sh\nls -l\n", "pwd\n```"]
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    send(page)
    answer = answered(page)
    answer.locator(".copy").click()
    assert eventually(lambda: page.evaluate("navigator.clipboard.readText()") == "ls -l\npwd")
    answer.locator("[data-do=copy]").click()
    assert eventually(lambda: page.evaluate("navigator.clipboard.readText()") == "".join(script.pieces))
