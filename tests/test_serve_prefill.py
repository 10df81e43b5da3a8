"""An answer continued from the final message, with the templates of many families."""

from __future__ import annotations

import pytest

from serve.engine.prefill import cut, marked
from slm.chat.prompt import render
from slm.errors import InputError
from slm.joints import Message
from tests.tiny_templates import FAMILIES

ASKED = [Message(role="user", content="Count.")]


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("begun", ["1, 2,", "1, 2, ", "二、三\n", "", "<b>\\n"])
def test_the_prompt_ends_where_the_final_message_does(family: str, begun: str) -> None:
    template = FAMILIES[family].template

    def rendered(messages: list[Message]) -> str:
        return render(template, messages, bos_token="<bos>", eos_token="<eos>", add_generation_prompt=False)

    turns = [*ASKED, Message(role="assistant", content=begun)]
    messages, mark = marked(turns)
    text = cut(rendered(messages), mark)
    assert text.endswith(begun) and "Count." in text and mark not in text
    whole = rendered(turns)
    assert whole.startswith(text.rstrip()) and len(whole) > len(text.rstrip())
    assert turns[-1]["content"] == begun, "the caller's conversation stays as it was"


def test_a_template_that_hides_or_changes_the_message_is_told_apart() -> None:
    turns = [*ASKED, Message(role="assistant", content="abc")]
    for template, shown in {
        "{{ messages[-1].content | upper }}!": "ABC",
        "{{ messages[-1].content | tojson }}": '"abc',
        "{{ messages[-1].content }}{{ messages[-1].content }}": "abcabc",
    }.items():
        messages, mark = marked(turns)
        assert cut(render(template, messages), mark) == shown
    messages, mark = marked(turns)
    with pytest.raises(InputError, match="does not show the final message"):
        cut(render("{{ messages[0].content }}", messages), mark)
    with pytest.raises(InputError, match="only a final message of the assistant"):
        marked(ASKED)
