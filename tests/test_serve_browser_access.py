"""The page for everybody: keyboard, input methods, screen readers, contrast, phones, two languages; and the page on the
real server (`make test-browser`)."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.engine.engine import open_engine
from serve.server.app import create_app
from serve.server.guard import Keys, Policy
from tests.page_browser import Open, answered, send
from tests.page_server import PASSAGES, Script, listening
from tests.tiny_gguf import write_adapter, write_model
from tests.waiting import eventually

pytestmark = pytest.mark.browser
RICH = """# Title

**bold** `code` [link](https://a.example)

> quote

```py
x
```

|a|b|
|-|-|
|1|2|

- one [1]"""
PHONE = {"viewport": {"width": 360, "height": 640}, "is_mobile": True, "has_touch": True}


def full_page(visit: Open, script: Script, **options: Any) -> Any:
    """The page with a rich answer, sources and an error."""
    script.retrieval, script.citations, script.pieces = True, PASSAGES, [RICH]
    page = visit(**options)
    page.wait_for_selector("#rag")  # shown when the server has said that it has documents; force does not wait for it
    page.check("#rag", force=True)
    send(page)
    answered(page)
    script.refuse = (500, {"message": "it failed", "code": "x"}, {})
    send(page, "あと何日ありますか。")
    page.wait_for_selector("article.error")
    return page


# --- keyboard and input methods ---------------------------------------------------------------------------------


def test_the_enter_that_ends_a_conversion_does_not_send(visit: Open, script: Script) -> None:
    page = visit(locale="ja-JP")
    page.focus("#input")
    devtools = page.context.new_cdp_session(page)
    devtools.send("Input.imeSetComposition", {"text": "にほん", "selectionStart": 3, "selectionEnd": 3})
    press = """(how) => document.getElementById("input").dispatchEvent(
        new KeyboardEvent("keydown", { key: "Enter", bubbles: true, cancelable: true, ...how }))"""
    page.evaluate(press, {"isComposing": True})  # Chromium and Firefox
    page.evaluate(press, {"keyCode": 229})  # Safari, whose composition has ended by then
    devtools.send("Input.insertText", {"text": "日本"})
    assert page.input_value("#input") == "日本"
    assert script.asked == [] and page.locator("article").count() == 0
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("x")
    assert page.input_value("#input") == "日本\nx" and script.asked == []
    page.keyboard.press("Enter")
    answered(page)
    assert script.asked[0]["messages"][0]["content"] == "日本\nx"


def test_everything_can_be_done_with_the_keyboard(visit: Open, script: Script) -> None:
    script.retrieval, script.citations, script.pieces = True, PASSAGES, ["See [1]."]
    page = visit()
    page.wait_for_selector("#hello")
    reached = []
    page.evaluate("document.activeElement.blur()")
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("(document.activeElement.id || document.activeElement.dataset.do) ?? ''"))
    wanted_all = "newChat openSettings language log documents example input model rag send"
    for wanted in wanted_all.split():
        assert wanted in reached
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "input" and page.input_value("#input") == ""
    page.keyboard.type("How many days / week?")
    page.keyboard.press("Tab")
    page.keyboard.press("j")  # the picker chooses by its first letter
    assert page.input_value("#model") == "ja"
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    answered(page)
    assert script.asked[0]["model"] == "ja" and script.asked[0]["rag"] is True
    page.keyboard.press("Control+k")
    page.wait_for_selector("#hello")
    assert page.evaluate("document.activeElement.id") == "input"


def test_escape_leaves_dialogs_menus_and_editing_one_at_a_time(visit: Open, script: Script) -> None:
    page = visit()
    send(page)
    answered(page)
    for opener, opened in (("#openSettings", "#settings"), ("#more", "#menu")):
        page.focus(opener)
        page.keyboard.press("Enter")
        page.wait_for_selector(f"{opened}:visible")
        page.keyboard.press("Escape")
        page.wait_for_selector(opened, state="hidden")
        assert page.evaluate("'#' + document.activeElement.id") == opener
    page.focus("[data-do=edit]")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    assert page.locator("article.user .text").inner_text() == "Hello" and page.locator(".edit").count() == 0


# --- screen readers ---------------------------------------------------------------------------------------------


def test_every_control_has_a_name_and_every_image_a_role(visit: Open, script: Script) -> None:
    page = full_page(visit, script)
    devtools = page.context.new_cdp_session(page)
    controls = {"button", "link", "textbox", "combobox", "switch", "spinbutton", "dialog", "log", "navigation", "image"}
    for opener in (None, "#openSettings", "[data-do=source]", "[data-do=edit]"):
        if opener:
            page.locator(opener).first.click(force=True)
        nodes = devtools.send("Accessibility.getFullAXTree")["nodes"]
        seen = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if not n["ignored"]]
        unnamed = [role for role, name in seen if role in controls and not name.strip()]
        assert unnamed == [] and len(seen) > 10, opener
        if opener != "[data-do=edit]" and opener:
            page.keyboard.press("Escape")


def test_headings_go_down_without_gaps_and_there_is_one_of_each_landmark(visit: Open, script: Script) -> None:
    page = full_page(visit, script)
    outline = """[...document.querySelectorAll("h1,h2,h3,h4,h5,h6")]
      .filter((heading) => heading.checkVisibility()).map((heading) => Number(heading.localName[1]))"""
    levels = page.evaluate(outline)
    assert levels.count(1) == 1 and len(levels) > 5
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert page.locator("main").count() == page.locator("nav").count() == 1


def test_a_screen_reader_hears_the_beginning_and_the_answer_not_every_token(visit: Open, script: Script) -> None:
    script.pieces = [f"word{n} " for n in range(60)]
    page = visit()
    assert page.locator("#log").get_attribute("aria-live") == "off"
    page.evaluate(
        """() => { window.said = []; new MutationObserver(() => said.push(document.getElementById("say").textContent))
          .observe(document.getElementById("say"), { childList: true, characterData: true, subtree: true }); }"""
    )
    send(page)
    answered(page)
    assert page.evaluate("said") == ["The answer is being written.", "".join(script.pieces)]
    live = page.evaluate("document.querySelectorAll('#log [aria-live], #log [role=status], #log [role=alert]').length")
    assert live == 0


# --- seeing -----------------------------------------------------------------------------------------------------

# WCAG 2.2, 1.4.3: contrast of every visible text with what is painted behind it, as relative luminance.
CONTRAST = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], under) => [r, g, b].map((value, n) => value * a + under[n] * (1 - a));
  const light = (rgb) => rgb.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
  const behind = (node) => {
    const layers = [];
    for (let at = node; at; at = at.parentElement) layers.unshift(rgba(getComputedStyle(at).backgroundColor));
    return layers.reduce((under, layer) => over(layer, under), [255, 255, 255]);
  };
  const open = document.querySelector("dialog[open]") ?? document.body, poor = [], seen = [];
  const check = (node, color, text) => {
    const under = behind(node), [a, b] = [light(over(rgba(color), under)), light(under)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    seen.push(text);
    if (ratio < 4.5) poor.push(`${text.trim().slice(0, 30)}: ${ratio.toFixed(2)}`);
  };
  const walker = document.createTreeWalker(open, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode, node = text.parentElement;
    if (!text.data.trim() || node.closest("noscript, option")) continue;
    if (node.checkVisibility({ visibilityProperty: true })) check(node, getComputedStyle(node).color, text.data);
  }
  for (const node of open.querySelectorAll("[placeholder]"))
    if (node.checkVisibility()) check(node, getComputedStyle(node, "::placeholder").color, node.placeholder);
  return { poor, seen: seen.length };
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_enough_contrast(visit: Open, script: Script, scheme: str) -> None:
    page = visit(color_scheme=scheme)
    page.wait_for_selector("#hello")
    checked = [page.evaluate(CONTRAST)]
    page = full_page(visit, script, color_scheme=scheme)
    checked.append(page.evaluate(CONTRAST))
    page.click(".sources button")
    checked.append(page.evaluate(CONTRAST))
    page.keyboard.press("Escape")
    page.click("#openSettings")
    checked.append(page.evaluate(CONTRAST))
    assert [found["poor"] for found in checked] == [[], [], [], []]
    assert all(found["seen"] > 5 for found in checked)
    assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")


def test_nothing_moves_for_those_who_do_not_want_it(visit: Open, script: Script) -> None:
    script.pieces, script.hold = ["a", "b"], 1
    moving = "document.getAnimations().length"
    page = visit(reduced_motion="reduce")
    send(page)
    page.wait_for_selector("article.live .text:has-text('a')")
    assert page.evaluate(moving) == 0
    script.release()
    answered(page)


def test_a_phone_shows_everything_without_scrolling_sideways(visit: Open, script: Script) -> None:
    page = full_page(visit, script, **PHONE)
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(wide) == 0
    assert page.evaluate("document.getElementById('log').scrollWidth - document.getElementById('log').clientWidth") == 0
    assert not page.locator("#side").is_visible()
    page.tap("#openSide")
    page.wait_for_selector("#chats button:visible")
    assert page.locator("#openSide").get_attribute("aria-expanded") == "true"
    page.keyboard.press("Escape")
    page.wait_for_selector("#side", state="hidden")
    for name in ("#send", "#model", "#rag", "#input", "#more"):
        box = page.locator(name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360 and box["y"] + box["height"] <= 640, name
    page.tap(".sources button")
    assert page.evaluate(wide) == 0 and page.locator("#sourceText").is_visible()


def test_a_reader_who_scrolled_up_is_left_there(visit: Open, script: Script) -> None:
    script.pieces, script.hold = ["line\n\n"] * 80, 60
    page = visit()
    send(page)
    page.wait_for_function("() => document.querySelectorAll('article.live .text p').length > 55")
    page.locator("#log").hover()
    page.mouse.wheel(0, -600)
    page.wait_for_selector("#latest:visible")
    before = page.evaluate("document.getElementById('log').scrollTop")
    script.release()
    answered(page)
    assert page.evaluate("document.getElementById('log').scrollTop") == before
    page.click("#latest")
    assert (
        page.evaluate("(log => log.scrollHeight - log.scrollTop - log.clientHeight)(document.getElementById('log'))")
        < 2
    )


# --- languages --------------------------------------------------------------------------------------------------


def test_the_page_speaks_the_browsers_language_and_the_one_that_is_chosen(visit: Open, script: Script) -> None:
    page = visit(locale="ja-JP")
    page.wait_for_selector("#hello")
    assert page.evaluate("document.documentElement.lang") == "ja"
    assert page.locator("#hello h2").inner_text() == "tiny と話す"
    assert page.get_by_role("button", name="送信").is_visible()
    assert page.get_by_role("textbox", name="メッセージ").is_visible()
    assert "日本語" in page.locator("#model option").all_inner_texts()[3]
    page.click("#language")
    assert page.evaluate("document.documentElement.lang") == "en"
    page.reload()
    page.wait_for_selector("#hello")
    assert page.get_by_role("button", name="Send", exact=True).is_visible()


def test_messages_carry_the_language_they_are_written_in(visit: Open, script: Script) -> None:
    script.pieces = ["はい、", "そうです。"]
    page = visit()
    send(page, "Is that so?")
    assert answered(page).locator(".text").get_attribute("lang") == "ja"
    assert page.locator("article.user .text").get_attribute("lang") == "en"


# --- the real server --------------------------------------------------------------------------------------------


def test_the_page_shows_what_the_real_server_answers(visit: Open, tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.gguf")
    adapters = {"en": write_adapter(tmp_path / "en.gguf", seed=1), "ja": write_adapter(tmp_path / "ja.gguf", seed=2)}
    with (
        open_engine(model, adapters, threads=1, parallel=2) as engine,
        listening(create_app(engine, policy=Policy(keys=Keys(["the-key"])))) as url,
    ):
        page = visit(url)
        page.fill("#ask input", "the-key")
        page.keyboard.press("Enter")
        page.wait_for_selector("#hello")
        assert page.locator("#hello h2").inner_text() == "Chat with tiny"
        page.evaluate("localStorage.setItem('slm.settings', JSON.stringify({ temperature: 0, max_tokens: 24 }))")
        send(page, "How do I ask for leave?")
        answer = answered(page)
        assert answer.locator(".who").inner_text() == "en"
        assert (
            "Latin" in answer.locator(".meta").inner_text() and "length limit" in answer.locator(".meta").inner_text()
        )
        shown = page.evaluate(
            "JSON.parse(Object.entries(localStorage).find(([key]) => key.startsWith('slm.chat.'))[1])"
        )
        asked = {
            "model": "auto", "messages": [{"role": "user", "content": "How do I ask for leave?"}],
            "temperature": 0, "max_tokens": 24,
        }  # fmt: skip
        headers = {"authorization": "Bearer the-key"}
        reply = httpx.post(f"{url}v1/chat/completions", json=asked, headers=headers, timeout=60).json()
        assert shown["messages"][1]["content"] == reply["choices"][0]["message"]["content"]
        send(page, "x" * 20_000)
        page.wait_for_selector("article.error")
        assert "context" in page.locator("article.error p").inner_text()
        page.evaluate("localStorage.setItem('slm.settings', JSON.stringify({ max_tokens: 1500 }))")
        page.keyboard.press("Control+k")
        send(page, "How do I ask for leave?")
        page.wait_for_selector("article.live .text:not(.waits)")
        page.keyboard.press("Escape")
        answered(page)
        assert eventually(lambda: httpx.get(f"{url}health", timeout=10).json()["status"] == "ok")
