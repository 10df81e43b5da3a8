"""Conversations, what is learned of them as text, and templates with a {% generation %} tag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slm.joints import Message
from train.data.examples import Example
from train.data.masks import IGNORE, Encoded


def example(*turns: str, roles: tuple[str, ...] = ("user", "assistant")) -> Example:
    messages: list[Message] = [{"role": roles[n % len(roles)], "content": text} for n, text in enumerate(turns)]
    return Example(Path("x.jsonl"), 7, "en", messages=tuple(messages))


def learned(tokenizer: Any, encoded: Encoded) -> list[str]:
    """The supervised spans as text, each as it reads behind what stands before it."""
    spans: list[str] = []
    before = 0
    for n in range(1, len(encoded.ids) + 1):
        label = encoded.labels[n - 1]
        assert label in (IGNORE, encoded.ids[n - 1])
        if label != IGNORE and (n == len(encoded.ids) or encoded.labels[n] == IGNORE):
            spans.append(tokenizer.decode(encoded.ids[:n])[before:])
        if label == IGNORE:
            before = len(tokenizer.decode(encoded.ids[:n]))
    return spans


STOCK = (  # the shape of stock templates: content trimmed, a blank after the header only when asked
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ': ' if not (m['role'] == 'assistant' and loop.last)"
    " else '<|im_start|>' + m['role'] + ':' }}{{ m['content'] | trim }}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant: ' }}{% endif %}"
)


_TAGGED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}BEFORE{% generation %}INSIDE{% endgeneration %}BEHIND"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _tagged(before: str, inside: str, behind: str) -> str:
    return _TAGGED.replace("BEFORE", before).replace("INSIDE", inside).replace("BEHIND", behind)


_HEADER = "{{ '<|im_start|>assistant\n' }}"
# Templates with {% generation %}, and what is learned of Hi, Hello, ?, Yes.
TAGGED_TEMPLATES = {
    "with the end": (
        _tagged(_HEADER, "{{ m.content + '<|im_end|>' }}", "{{ '\n' }}"), ["Hello<|im_end|>", "Yes.<|im_end|>"]
    ),
    "without the end": (_tagged(_HEADER, "{{ m.content }}", "{{ '<|im_end|>\n' }}"), ["Hello", "Yes."]),
    "with the header": (
        _tagged("", _HEADER + "{{ m.content + '<|im_end|>' }}", "{{ '\n' }}"), ["Hello<|im_end|>", "Yes.<|im_end|>"]
    ),
    "behind an empty thought": (
        _tagged(_HEADER + "{{ '<think>\n\n</think>\n\n' }}", "{{ m.content + '<|im_end|>' }}", "{{ '\n' }}"),
        ["Hello<|im_end|>", "Yes.<|im_end|>"],
    ),
    "in two pieces": (
        _tagged(_HEADER, "{{ m.content[:2] }}{% endgeneration %}{{ '|x|' }}{% generation %}{{ m.content[2:] }}"
                "{% endgeneration %}{{ ' ' }}{% generation %}{{ '<|im_end|>' }}", "{{ '\n' }}"),
        ["He", "llo", "<|im_end|>", "Ye", "s.", "<|im_end|>"],
    ),
    "in a comment alone": (
        "{# {% generation %} #}" + _tagged(_HEADER, "{{ m.content + '<|im_end|>\n' }}", "")
        .replace("{% generation %}", "").replace("{% endgeneration %}", ""),
        ["Hello<|im_end|>", "Yes.<|im_end|>"],
    ),
    "the last answer only": (
        _tagged(_HEADER, "{{ m.content + '<|im_end|>' }}", "{{ '\n' }}").replace(
            "{% if m.role == 'assistant' %}", "{% if m.role == 'assistant' and loop.last %}"
        ),
        ["Yes.<|im_end|>"],
    ),
}  # fmt: skip
