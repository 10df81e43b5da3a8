"""The page at `/` in a real Chromium, against a scripted server (`make test-browser`)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.page_browser import Open, answered, send
from tests.page_server import PASSAGES, Script, pointed
from tests.waiting import eventually

pytestmark = pytest.mark.browser


# --- answers ----------------------------------------------------------------------------------------------------


def test_an_answer_is_seen_while_it_is_written_and_says_who_gave_it(visit: Open, script: Script) -> None:
    script.pieces, script.hold = ["**Good", " morning**", " to you."], 2
    page = visit()
    send(page)
    page.wait_for_selector("article.live strong:has-text('Good morning')")
    assert page.locator("#stop").is_visible() and not page.locator("#send").is_visible()
    script.release()
    answer = answered(page)
    assert answer.locator(".text").inner_text() == "Good morning to you."
    assert answer.locator(".who").inner_text() == "en"
    meta = answer.locator(".meta").inner_text()
    assert "for the test" in meta and "tok/s" in meta and "first token" in meta and "3 tokens" in meta
    assert script.asked[0]["messages"] == [{"role": "user", "content": "Hello"}]
    assert script.asked[0]["model"] == "auto" and "rag" not in script.asked[0]


@pytest.mark.parametrize("way", ["button", "Escape"])
def test_stopping_ends_the_request_and_keeps_what_was_written(visit: Open, script: Script, way: str) -> None:
    script.pieces, script.hold = ["first ", "second ", "third"], 2
    page = visit()
    send(page)
    page.wait_for_selector("article.live .text:has-text('second')")
    page.click("#stop") if way == "button" else page.keyboard.press("Escape")
    answer = answered(page)
    assert answer.locator(".text").inner_text() == "first second"
    assert "stopped" in answer.locator(".meta").inner_text()
    assert eventually(lambda: script.cancelled == 1)
    assert page.evaluate("document.activeElement.id") == "input"


def test_the_picker_names_the_adapters_and_the_choice_is_what_is_asked(visit: Open, script: Script) -> None:
    page = visit()
    page.wait_for_selector("#model option >> nth=3", state="attached")
    assert page.locator("#model option").all_inner_texts() == [
        "Auto (by language)", "Base model (tiny)", "en (English)", "ja (Japanese)",
    ]  # fmt: skip
    page.select_option("#model", "ja")
    send(page)
    assert answered(page).locator(".who").inner_text() == "ja"
    page.select_option("#model", "base")
    send(page)
    assert answered(page, 2).locator(".who").inner_text() == "tiny"
    assert [body["model"] for body in script.asked] == ["ja", "base"]


def test_an_adapter_loaded_meanwhile_appears_and_a_chosen_one_that_went_stays_chosen(
    visit: Open, script: Script
) -> None:
    page = visit()
    page.select_option("#model", "ja")
    script.adapters = {"en": "en", "fr": "fr"}
    page.focus("#model")
    page.wait_for_selector("#model option[value=fr]", state="attached")
    assert page.input_value("#model") == "ja"
    assert "not loaded" in page.locator("#model option:checked").inner_text()
    send(page)
    answered(page)
    assert script.asked[0]["model"] == "ja"


def test_editing_and_answering_again_replace_what_followed(visit: Open, script: Script) -> None:
    page = visit()
    send(page, "one")
    answered(page)
    send(page, "two")
    answered(page, 2)
    script.pieces = ["Other."]
    page.locator("article.assistant").nth(1).locator("[data-do=again]").click()
    page.wait_for_selector("article.assistant:not(.live) .text:has-text('Other.')")
    assert [turn["content"] for turn in script.asked[-1]["messages"]] == ["one", "Good morning.", "two"]
    page.locator("article.user").nth(0).hover()
    page.locator("article.user").nth(0).locator("[data-do=edit]").click()
    page.fill(".edit textarea", "three")
    page.press(".edit textarea", "Enter")
    assert eventually(lambda: script.asked[-1]["messages"] == [{"role": "user", "content": "three"}])
    answered(page)
    assert page.locator("article").count() == 2


def test_settings_and_the_system_prompt_are_sent_and_kept(visit: Open, script: Script) -> None:
    page = visit()
    page.click("#openSettings")
    page.fill("[name=system]", "Be brief.")
    page.fill("[name=temperature]", "0.2")
    page.fill("[name=seed]", "7")
    page.click("#settings .primary")
    page.reload()
    send(page)
    answered(page)
    body = script.asked[0]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["temperature"], body["seed"]) == (0.2, 7) and "top_p" not in body and "max_tokens" not in body
    page.click("#openSettings")
    page.click("#clearSettings")
    page.click("#settings .primary")
    send(page)
    answered(page, 2)
    assert "temperature" not in script.asked[1] and script.asked[1]["messages"][0]["role"] == "user"


# --- retrieval --------------------------------------------------------------------------------------------------


def test_citations_open_the_passage_with_its_quote_marked(visit: Open, script: Script) -> None:
    script.retrieval, script.citations, script.pieces = True, PASSAGES, ["Ten ", "days [", "1", "], not [7]."]
    page = visit()
    page.check("#rag")
    send(page)
    answer = answered(page)
    assert script.asked[0]["rag"] is True
    assert answer.locator(".text").inner_text() == "Ten days 1, not [7]."
    assert answer.locator(".sources button").all_inner_texts() == ["1\nPaid leave › How many days"]
    cite = answer.locator(".cite")
    assert cite.get_attribute("aria-label") == "Source 1"
    cite.focus()
    page.keyboard.press("Enter")
    assert page.locator("#sourceTitle").inner_text() == "Paid leave"
    assert page.locator("#sourceHeading").inner_text() == "How many days"
    marked = "".join(page.locator("#sourceText mark").all_text_contents())
    assert " ".join(marked.split()) == "You begin with ten daysof paid leave."
    assert page.locator("#sourceText td").all_inner_texts() == ["6", "20"]
    assert page.locator("#sourcePlace").inner_text() == "leave.md"
    page.keyboard.press("Escape")
    assert cite.evaluate("node => node === document.activeElement")


def test_the_line_that_a_reader_points_at_is_marked_where_it_stands(visit: Open, script: Script) -> None:
    script.retrieval, script.refused, script.citations = True, False, [pointed(said=True)]
    script.pieces = ["City: Osaka, Night: 13,000 yen [1]"]
    page = visit()
    page.check("#rag")
    send(page)
    answer = answered(page)
    assert answer.locator(".sources h3").inner_text() == "Sources"
    assert answer.locator(".sources q").count() == 0
    answer.locator(".cite").click()
    assert page.locator("#sourceText mark").all_text_contents() == ["Osaka", "13,000 yen"]
    assert page.locator("#sourceText tr:last-child td:has(mark)").count() == 2
    assert page.locator("#sourceText blockquote").count() == 0


def test_a_refusal_shows_the_nearest_lines_as_such(visit: Open, script: Script) -> None:
    script.retrieval, script.refused, script.citations = True, True, [pointed(said=False)]
    script.pieces = ["I could not find this in the documents."]
    page = visit()
    page.check("#rag")
    send(page)
    answer = answered(page)
    assert answer.locator(".sources h3").inner_text() == "The nearest lines, which may not answer:"
    assert answer.locator(".sources q").text_content() == "City: Osaka, Night: 13,000 yen"
    answer.locator(".sources button").click()
    assert page.locator("#sourceText mark").all_text_contents() == ["Osaka", "13,000 yen"]
    page.keyboard.press("Escape")
    page.reload()
    page.click("#chats button")
    assert answered(page).locator(".sources h3").inner_text() == "The nearest lines, which may not answer:"


def test_an_answer_that_cites_nothing_shows_what_it_was_given(visit: Open, script: Script) -> None:
    script.retrieval, script.pieces = True, ["I do not know."]
    script.citations = [{**passage, "cited": False} for passage in PASSAGES]
    page = visit()
    page.check("#rag")
    send(page)
    sources = answered(page).locator(".sources")
    assert "cites no passage" in sources.inner_text() and sources.locator("button").count() == 2
    sources.locator("button").nth(1).click()
    assert page.locator("#sourceText").get_attribute("lang") == "ja"
    assert page.locator("#sourcePlace a").get_attribute("rel") == "noopener noreferrer"
    assert page.locator("#sourceText mark").inner_text() == "申請は前日までに行います。"


def test_without_an_index_there_is_no_switch_and_with_one_there_is_an_example(visit: Open, script: Script) -> None:
    page = visit()
    page.wait_for_selector("#hello .cards button")
    assert not page.locator("#ragLabel").is_visible() and page.locator("[data-do=documents]").count() == 0
    script.retrieval = True
    page.reload()
    page.click("[data-do=documents]")
    assert page.locator("#rag").is_checked() and page.input_value("#input") != ""
    assert script.asked == []


# --- history ----------------------------------------------------------------------------------------------------


def test_conversations_survive_a_reload_and_can_be_named_exported_and_deleted(
    visit: Open, script: Script, tmp_path: Path
) -> None:
    page = visit()
    send(page, "First question")
    answered(page)
    page.keyboard.press("Control+k")
    page.wait_for_selector("#hello")
    send(page, "Second question")
    answered(page)
    page.reload()
    assert page.locator("#chats button").all_inner_texts() == ["Second question", "First question"]
    assert page.locator("article").count() == 2
    page.click("#chats button >> nth=1")
    assert page.locator("article.user .text").inner_text() == "First question"
    page.click("#more")
    page.click("#rename")
    page.fill("#ask input", "Renamed")
    page.keyboard.press("Enter")
    page.wait_for_selector("#title:has-text('Renamed')")
    for button, kind in (("#exportJson", "json"), ("#exportMarkdown", "md")):
        page.click("#more")
        with page.expect_download() as started:
            page.click(button)
        assert started.value.suggested_filename == f"Renamed.{kind}"
        started.value.save_as(tmp_path / kind)
    chat = json.loads((tmp_path / "json").read_text(encoding="utf-8"))
    assert [turn["content"] for turn in chat["messages"]] == ["First question", "Good morning."]
    assert (tmp_path / "md").read_text() == "# Renamed\n\n## You\n\nFirst question\n\n## Answer (en)\n\nGood morning.\n"
    page.click("#more")
    page.click("#remove")
    page.click("#ask .primary")
    page.wait_for_selector("#hello")
    page.reload()
    assert page.locator("#chats button").all_inner_texts() == ["Second question"]


def test_a_conversation_deleted_while_it_is_answered_does_not_come_back(visit: Open, script: Script) -> None:
    script.pieces, script.hold = ["one ", "two"], 1
    page = visit()
    send(page)
    page.wait_for_selector("article.live .text:has-text('one')")
    page.click("#more")
    page.click("#remove")
    page.click("#ask .primary")
    assert eventually(lambda: script.cancelled == 1)
    page.wait_for_selector("#send:visible")
    assert page.locator("#chats button").count() == 0
    assert page.evaluate("Object.keys(localStorage).filter(key => key.startsWith('slm.chat.'))") == []


def test_damaged_history_is_told_and_the_rest_is_kept(visit: Open) -> None:
    page = visit()
    send(page, "Sound")
    answered(page)
    page.evaluate("localStorage.setItem('slm.chat.a', '{'); localStorage.setItem('slm.chat.b', '{\"id\": \"b\"}')")
    page.reload()
    assert "cannot be read" in page.locator("#notice").inner_text()
    assert page.locator("#chats button").all_inner_texts() == ["Sound"]
    assert page.evaluate("localStorage.getItem('slm.chat.a')") == "{"


def test_full_storage_is_told_and_the_conversation_goes_on(visit: Open) -> None:
    page = visit()
    page.evaluate("for (let n = 2 ** 23; n >= 1; n /= 2) try { localStorage.setItem('x' + n, 'x'.repeat(n)) } catch {}")
    send(page)
    assert answered(page).locator(".text").inner_text() == "Good morning."
    assert "storage is full" in page.locator("#notice").inner_text()


# --- errors -----------------------------------------------------------------------------------------------------


def test_an_error_is_shown_as_it_is_and_can_be_tried_again(visit: Open, script: Script) -> None:
    script.refuse = (429, {"message": "256 requests are waiting", "code": "queue_full"}, {"retry-after": "3"})
    page = visit()
    send(page)
    assert page.locator("article.error p").inner_text() == "256 requests are waiting Try again in 3 s."
    assert page.locator("article.error").get_attribute("role") == "alert"
    page.click("article.error button")
    assert answered(page).locator(".text").inner_text() == "Good morning."
    assert page.locator("article.error").count() == 0
    assert script.asked[1]["messages"] == [{"role": "user", "content": "Hello"}]


def test_a_question_that_failed_is_left_out_of_the_next_request(visit: Open, script: Script) -> None:
    script.refuse = (400, {"message": "too long", "code": "context_length_exceeded"}, {})
    page = visit()
    send(page, "long")
    page.wait_for_selector("article.error")
    send(page, "short")
    answered(page)
    assert script.asked[1]["messages"] == [{"role": "user", "content": "short"}]
    page.reload()
    assert page.locator("article.user").count() == 2


def test_a_restarting_engine_is_shown_and_what_was_written_is_kept(visit: Open, script: Script) -> None:
    script.pieces, script.die_after = ["half ", "of it ", "never"], 2
    page = visit()
    page.wait_for_selector("#hello")
    script.state = "starting"
    send(page)
    page.wait_for_selector("#status[data-state=starting]")
    assert "restarting" in page.locator("#status").inner_text()
    assert "broken off: the engine ended (signal 9)" in page.locator("article.error").inner_text()
    assert page.locator("article.assistant .text").inner_text() == "half of it"
    script.state, script.die_after = "ok", None
    page.wait_for_selector("#status[data-state=ready]")
    page.click("article.error button")
    page.wait_for_selector("article.assistant:not(.live) .text:has-text('never')")
    assert page.locator("article").count() == 2


def test_a_server_that_cannot_be_reached_is_told(visit: Open) -> None:
    page = visit()
    page.wait_for_selector("#hello")
    page.context.set_offline(True)
    send(page)
    assert "cannot be reached" in page.locator("article.error").inner_text()
    page.wait_for_selector("#status[data-state=unreachable]")
    page.context.set_offline(False)
    page.wait_for_selector("#status[data-state=ready]")
    page.click("article.error button")
    answered(page)


def test_the_key_is_asked_for_and_forgotten_with_the_tab(visit: Open, script: Script) -> None:
    script.key = "the-right-key"
    page = visit()
    page.fill("#ask input", "a-wrong-key")
    page.keyboard.press("Enter")
    page.wait_for_selector("#askText:has-text('did not accept')")
    assert page.locator("#ask input").get_attribute("type") == "password"
    page.fill("#ask input", "the-right-key")
    page.keyboard.press("Enter")
    page.wait_for_selector("#hello")
    send(page)
    answered(page)
    page.reload()
    page.wait_for_selector("article.assistant")
    assert not page.locator("#ask").is_visible()
    assert "the-right-key" not in page.evaluate("JSON.stringify(localStorage)")
    assert "the-right-key" not in page.content()
