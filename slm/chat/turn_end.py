"""Which token ends an answer, found by rendering one with the chat template. It knows nothing of tokenizers' ids."""

from __future__ import annotations

from collections.abc import Collection

from slm.chat.prompt import render
from slm.errors import InputError
from slm.joints import Message

# Key of GGUF files: every token that ends an answer beside eos, where llama.cpp's own keys have no room for them.
END_TOKENS = "slm.end_token_ids"
_ANSWER = "Forty-two, of course."


def turn_end(template: str, markers: Collection[str], *, bos_token: str = "", eos_token: str = "") -> str | None:
    """The one of `markers` that the template puts behind an assistant's words; None where it puts none there.

    markers: the texts of the special tokens. A template that refuses a plain question and answer has none.
    """
    talk: list[Message] = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = render(template, talk, bos_token=bos_token, eos_token=eos_token, add_generation_prompt=False)
    except InputError:
        return None
    _, found, after = text.rpartition(_ANSWER)
    after = after.lstrip()
    ends = [marker for marker in markers if marker.strip() and after.startswith(marker)]
    return max(ends, key=len) if found and ends else None
