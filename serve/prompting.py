"""From a conversation to the text the model reads: which chat template, and whether a BOS token is still missing.

It knows nothing of tokens' ids, of the child process or of HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from serve.adapters import Adapter, Base
from serve.prefill import cut, marked
from serve.templates import render_guarded
from slm.joints import Message
from slm.prompt import named_template

# A template that marks turns with plain text has no end-of-turn token; the next turn's marker ends the answer.
_TEXT_MARKERS = ("### Instruction:",)


@dataclass(frozen=True)
class Prompt:
    """Text to tokenize (markers as tokens) or token ids, whether BOS is to be added to a text, and stop strings."""

    text: str | list[int]
    add_special: bool
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Opening:
    """How an answer begins: after the template's words for it, after none, or inside the final message.

    variables: what the template is told beside the messages (vLLM's chat_template_kwargs).
    """

    generation_prompt: bool = True
    continues: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)


def chat_prompt(
    base: Base,
    adapter: Adapter | None,
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]] = (),
    opening: Opening = Opening(),
) -> Prompt:
    """Render with the adapter's own template, else the base's, else the named one for its vocabulary.

    tools: functions the model may call, as OpenAI describes them. Raises InputError where the template refuses it.
    """
    template = (adapter and adapter.template) or base.template or named_template(base.template_name)
    messages, mark = marked(messages) if opening.continues else (messages, "")
    text = render_guarded(
        template, messages, bos_token=base.bos, eos_token=base.eos, tools=tools, variables=opening.variables,
        add_generation_prompt=opening.generation_prompt and not opening.continues,
    )  # fmt: skip
    if mark:
        text = cut(text, mark)
    return Prompt(text, needs_bos(base, text), tuple(marker for marker in _TEXT_MARKERS if marker in template))


def plain_prompt(base: Base, text: str | Sequence[int]) -> Prompt:
    """A text to be continued as it stands, or token ids, to which nothing is added."""
    if isinstance(text, str):
        return Prompt(text, needs_bos(base, text))
    return Prompt(list(text), False)


def needs_bos(base: Base, text: str) -> bool:
    """False when the text begins with BOS already: a second one is out of what the model was trained on."""
    return not (base.bos and text.startswith(base.bos))
