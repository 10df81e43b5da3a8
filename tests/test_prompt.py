"""Chat templates: every system text reaches the model, turns in any order are written, transformers' extras work."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.chat.generation_tag import has_tag, taken_out
from slm.chat.prompt import TEMPLATES, render, render_marked
from slm.chat.system_text import fold
from slm.errors import InputError
from slm.joints import Message

TOOL = {"type": "function", "function": {"name": "save_page", "parameters": {"type": "object", "properties": {}}}}
# As templates of real families treat system texts: the first is kept, later ones are dropped (Llama 2, gpt-oss), the
# last one wins (assigned in a loop), only one that is first and alone is taken (Gemma 3), all are dropped.
_REST = "{{ '<' + m.role + '>' + m.content + '<end>' }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
DROPPING = {
    "first kept": "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"
    "{% for m in messages if m.role != 'system' %}" + _REST,
    "last wins": "{% set ns = namespace(s='') %}{% for m in messages if m.role == 'system' %}"
    "{% set ns.s = m.content %}{% endfor %}{{ ns.s }}{% for m in messages if m.role != 'system' %}" + _REST,
    "all dropped": "{% for m in messages if m.role != 'system' %}" + _REST,
    "alternating": "{% if messages[0].role == 'system' %}{% set lead = messages[0].content %}"
    "{% set turns = messages[1:] %}{% else %}{% set lead = '' %}{% set turns = messages %}{% endif %}{{ lead }}"
    "{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}" + _REST,
}


def talk(*turns: tuple[str, str]) -> list[Message]:
    return [Message(role={"s": "system", "u": "user", "a": "assistant"}[role], content=text) for role, text in turns]


CONVERSATIONS = {
    "two": talk(("s", "RULE-A"), ("s", "x"), ("u", "Hi")),
    "late": talk(("s", "RULE-A"), ("u", "Hi"), ("a", "Hello"), ("s", "RULE-C"), ("u", "Again")),
    "last": talk(("u", "Hi"), ("s", "RULE-A")),
    "behind an answer": talk(("u", "Hi"), ("a", "Hello"), ("s", "RULE-A")),
    "before an answer": talk(("u", "Hi"), ("s", "RULE-A"), ("a", "Hello"), ("u", "Again")),
    "alone": talk(("s", "RULE-A"), ("s", "RULE-B")),
}


@pytest.mark.parametrize("name", [*TEMPLATES, *DROPPING])
@pytest.mark.parametrize("kind", CONVERSATIONS)
@pytest.mark.parametrize("tools", [[], [TOOL]], ids=["", "tools"])
def test_every_system_text_and_every_function_is_written_once(name: str, kind: str, tools: list[Any]) -> None:
    template, messages = {**TEMPLATES, **DROPPING}[name], CONVERSATIONS[kind]
    words = {message["content"] for message in messages}
    text = render(template, messages, eos_token="</s>", tools=tools)
    for word in words:
        assert len(re.findall(rf"(?<![\w<-]){word}(?!\w)", text)) == 1, (word, text)
    assert text.count("save_page") == len(tools)


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_is_asked_is_the_beginning_of_what_is_answered_wherever_system_texts_stand(name: str) -> None:
    for messages in CONVERSATIONS.values():
        asked = render(TEMPLATES[name], messages, eos_token="</s>")
        answered = [*messages, Message(role="assistant", content="Yes.")]
        assert render(TEMPLATES[name], answered, eos_token="</s>", add_generation_prompt=False).startswith(asked)


def test_gemma_writes_system_texts_into_the_users_turn_which_is_one() -> None:
    gemma = TEMPLATES["gemma"]
    assert render(gemma, CONVERSATIONS["two"], bos_token="<bos>") == (
        "<bos><start_of_turn>user\nRULE-A\n\nx\n\nHi<end_of_turn>\n<start_of_turn>model\n"
    )
    assert render(gemma, CONVERSATIONS["last"]) == (
        "<start_of_turn>user\nHi\n\nRULE-A<end_of_turn>\n<start_of_turn>model\n"
    )
    mixed = talk(("a", "Welcome."), ("u", ""), ("u", "Hello"), ("a", "One."), ("a", ""))
    assert render(gemma, mixed, add_generation_prompt=False) == (
        "<start_of_turn>model\nWelcome.<end_of_turn>\n<start_of_turn>user\nHello<end_of_turn>\n"
        "<start_of_turn>model\nOne.<end_of_turn>\n<start_of_turn>model\n<end_of_turn>\n"
    )


@given(st.lists(st.tuples(st.sampled_from("sua"), st.sampled_from(["", "a", "bb"])), min_size=1, max_size=8))
def test_folding_loses_no_text_and_leaves_no_system_turn_but_the_first(turns: list[tuple[str, str]]) -> None:
    messages = talk(*turns)
    for keep in (True, False):
        folded = fold(messages, keep_first=keep)
        assert all(m["role"] != "system" for m in folded[keep:])
        assert sorted("".join(m["content"] for m in folded).replace("\n", "")) == sorted(
            "".join(m["content"] for m in messages)
        )
        assert [m for m in folded if m["role"] == "assistant"] == [m for m in messages if m["role"] == "assistant"]


def test_a_system_text_between_a_call_and_its_result_does_not_part_them() -> None:
    call = Message(role="assistant", content="", tool_calls=[{"id": "c", "type": "function", "function": {}}])
    messages = [*talk(("u", "Hi")), call, *talk(("s", "RULE")), Message(role="tool", content="4", tool_call_id="c")]
    assert [m["role"] for m in fold(messages, keep_first=True)] == ["user", "assistant", "tool", "user"]


def test_a_templates_own_refusal_is_told() -> None:
    strict = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + _REST
    )
    with pytest.raises(InputError, match="no system role"):
        render(strict, CONVERSATIONS["two"])
    with pytest.raises(InputError, match="roles must alternate"):
        render(DROPPING["alternating"], talk(("s", "RULE"), ("u", "Hi"), ("u", "there")))


# What transformers' templates may use


TAGGED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{%- generation -%}{{ m.content + '<|im_end|>' }}{%- endgeneration %}{{ '\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def transformers_text(template: str, messages: list[Message], **more: Any) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    texts, _ = render_jinja_template([messages], chat_template=template, bos_token="", eos_token="</s>", **more)
    return str(texts[0])


EXTRAS = {
    "generation": TAGGED,
    "generation around a set": "{% for m in messages %}{% generation %}{% set x = m.content %}{% endgeneration %}"
    "{{ m.content }}{% endfor %}",
    "loop controls": "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% continue %}{% endif %}"
    "{{ m.content }}{% if loop.index > 3 %}{% break %}{% endif %}{% endfor %}",
    "tojson": "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ messages[0] | tojson(separators=(',', ':'),"
    " sort_keys=true) }}{{ messages[0].content }}",
    "items": "{% for m in messages %}{% for k, v in m.items() %}{{ k ~ '=' ~ v }}{% endfor %}"
    "{% for k, v in m | items %}{{ k }}{% endfor %}{% endfor %}",
    "date": "{{ strftime_now('%Y-%m-%d') }}{% for m in messages %}{{ m.content }}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0, last=none) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% set ns.last = m %}{{ m.content }}{% endfor %}{{ ns.n }}{{ ns.last.role }}",
    "macro": "{% macro turn(m) %}{{ m.role }}:{{ caller() }}{% endmacro %}{% for m in messages %}{% call turn(m) %}"
    "{{ m.content[:3] }}{{ m.content[3:] }}{% endcall %}{% endfor %}",
    "blocks": "{%- for m in messages %}\n    {%- set text %}\n{{ m.content }}\n    {%- endset %}\n"
    "  {{- text }}\n{%- endfor %}\n",
}  # fmt: skip


@pytest.mark.parametrize("name", EXTRAS)
def test_what_templates_of_transformers_use_renders_as_there(name: str) -> None:
    messages = talk(("s", "Be short."), ("u", "日本 <b>?</b>"), ("a", "はい。"), ("u", "And?"))
    for ask in (True, False):
        expected = transformers_text(EXTRAS[name], messages, add_generation_prompt=ask)
        assert render(EXTRAS[name], messages, eos_token="</s>", add_generation_prompt=ask) == expected


def test_what_stands_in_a_generation_tag_is_found_and_the_text_is_the_same() -> None:
    messages = talk(("u", "Hi"), ("a", "Hello"), ("u", "Again"), ("a", "Yes."))
    plain = render(TAGGED, messages, add_generation_prompt=False)
    text, spans = taken_out(render_marked(TAGGED, messages))
    assert text == plain
    assert [text[start:end] for start, end in spans] == ["Hello<|im_end|>", "Yes.<|im_end|>"]
    assert taken_out("nothing marked") == ("nothing marked", [])


@pytest.mark.parametrize(
    "broken",
    ["{{ 1 / 0 }}", "{{ messages[9]['role'] + 1 }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
     "{% generation %}", "{{ messages.append(1) }}", "{{ {}['x'].y }}"],
)  # fmt: skip
def test_a_broken_template_is_an_error_with_its_reason(broken: str) -> None:
    with pytest.raises(InputError, match=r"refuses this conversation: \S"):
        render(broken, talk(("u", "Hi")))


def test_json_in_a_template_is_not_escaped_for_html() -> None:
    assert render("{{ messages | tojson }}", talk(("u", "<日本>"))) == json.dumps(
        talk(("u", "<日本>")), ensure_ascii=False
    )


LAST_ONLY = "<user>{{ messages[-1].content }}<end>{% if add_generation_prompt %}<assistant>{% endif %}"


def test_a_template_that_keeps_no_earlier_turn_loses_no_system_text_in_silence() -> None:
    assert "RULE-A" in render(LAST_ONLY, talk(("s", "RULE-A"), ("u", "Hi")))
    with pytest.raises(InputError, match="drops the system text of this conversation"):
        render(LAST_ONLY, CONVERSATIONS["late"])
    shouting = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    assert render(shouting, CONVERSATIONS["late"]) == "RULE-AHIHELLORULE-CAGAIN"


_CALLS = "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
_TOLD = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
_TURN = "<{{ m.role }}>{{ m.content }}"
LOSING = {
    "functions": "{% if tools %}You may use <tool_call>.{% endif %}{% for m in messages %}" + _TURN + _CALLS,
    "all functions but the first": "{% if tools %}{{ tools[0] | tojson }}{% endif %}{% for m in messages %}"
    + _TURN
    + _CALLS,
    "calls": _TOLD + "Answer with <tool_call>{% for m in messages %}" + _TURN,
    "arguments": _TOLD
    + "{% for m in messages %}"
    + _TURN
    + "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}{% endfor %}",
    "results": _TOLD + "{% for m in messages if m.role != 'tool' %}" + _TURN + _CALLS,
}
CALLED = [
    Message(role="system", content="RULE-A"), Message(role="user", content="Weather in Oslo?"),
    Message(role="assistant", content="", tool_calls=[
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}]),
    Message(role="tool", content="4 degrees", tool_call_id="c1", name="weather"),
]  # fmt: skip


@pytest.mark.parametrize("lost", LOSING)
def test_what_a_template_loses_of_tools_is_written_as_text(lost: str) -> None:
    second = {"type": "function", "function": {"name": "send_mail", "parameters": {}}}
    text = render(LOSING[lost] + "{% endfor %}", CALLED, tools=[TOOL, second])
    for word in ("RULE-A", "save_page", "send_mail", '"name": "weather"', '"city": "Oslo"', "4 degrees"):
        assert word in text, (word, text)


def test_a_template_that_loses_nothing_of_tools_writes_them_itself() -> None:
    text = render(_TOLD + "{% for m in messages %}" + _TURN + _CALLS + "{% endfor %}", CALLED, tools=[TOOL])
    assert "<tool>4 degrees" in text and "You may call" not in text and text.count("save_page") == 1


def test_a_generation_tag_in_a_comment_a_raw_block_or_a_text_is_none() -> None:
    tag = "{% generation %}x{% endgeneration %}"
    assert has_tag(tag) and has_tag("a {#- no -#}\n{%- generation -%}x{%+ endgeneration %}") and has_tag(TAGGED)
    others = (
        "{# {% generation %} #}x",
        "{% raw %}" + tag + "{% endraw %}",
        "{{ '{% generation %}' }}",
        "{% set generation = 1 %}{% if generation %}{% endif %}",
        "{% generation %}{{ 'open",
    )
    for other in others:
        assert not has_tag(other)
