"""From a conversation to the segments the model reads: which chat template, and whether a BOS token is still missing.

Text of the conversation never becomes a control token (`slm.chat.segments`); a plain prompt is read as it stands. It
knows nothing of tokens' ids, of the child process or of HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from serve.adapters.registry import Adapter, Base
from serve.child.messages import Segments, TokenIds
from serve.engine.prefill import cut, marked
from serve.engine.templates import render_guarded
from slm.chat.prompt import NO_VARIABLES, TemplateVariables, named_template
from slm.chat.segments import Guard, Markers, Segment, Tools, conversation, guard_for
from slm.joints import Message

# A template that marks turns with plain text has no end-of-turn token; the next turn's marker ends the answer.
_TEXT_MARKERS = ("### Instruction:",)


@dataclass(frozen=True)
class Prompt:
    """Segments to tokenize, or token ids; whether BOS is to be added to the segments; and stop strings."""

    content: Segments | TokenIds
    add_special: bool
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class TemplateOptions:
    """What a chat template is told beside the messages, and how the answer begins.

    tools: functions the model may call, as OpenAI describes them. generation_prompt: the answer begins after the
    template's words for it; continues: inside the final message.
    """

    tools: Tools = ()
    generation_prompt: bool = True
    continues: bool = False
    variables: TemplateVariables = NO_VARIABLES


def chat_prompt(
    base: Base,
    adapter: Adapter | None,
    messages: Sequence[Message],
    options: TemplateOptions = TemplateOptions(),
    *,
    markers: Markers,
) -> Prompt:
    """Render with the adapter's own template, else the base's, else the named one for its vocabulary.

    markers: the model's special tokens; only those that the template itself writes become tokens. Raises InputError
    where the template refuses the conversation.
    """
    template = (adapter and adapter.template) or base.template or named_template(base.template_name)
    guard = guard_for(markers, template)
    _refuse_markers(guard, options.variables)
    messages, mark = marked(messages) if options.continues else (messages, "")

    def rendered(turns: Sequence[Message], functions: Tools) -> str:
        text = render_guarded(
            template, turns, bos_token=base.bos, eos_token=base.eos, tools=functions, variables=options.variables,
            add_generation_prompt=options.generation_prompt and not options.continues,
        )  # fmt: skip
        return cut(text, mark) if mark else text

    segments = conversation(guard, messages, options.tools, rendered)
    return Prompt(tuple(segments), needs_bos(base, segments), tuple(m for m in _TEXT_MARKERS if m in template))


def _refuse_markers(guard: Guard, variables: TemplateVariables) -> None:
    """Raise InputError for a template's variable that would write a control token."""
    for name, value in variables.values.items():
        if found := guard.markers_in(json.dumps(value, ensure_ascii=False)):
            raise variables.refused(name, f"'{name}' holds the control token {found[0]!r}")


def plain_prompt(base: Base, text: str | Sequence[int]) -> Prompt:
    """A text to be continued as it stands, markers in it being tokens, or token ids, to which nothing is added."""
    if isinstance(text, str):
        segments = (Segment(text, True),)
        return Prompt(segments, needs_bos(base, segments))
    return Prompt(tuple(text), False)


def needs_bos(base: Base, segments: Sequence[Segment]) -> bool:
    """False when the segments begin with BOS already: a second one is out of what the model was trained on."""
    first = segments[0] if segments else Segment("", True)
    return not (base.bos and first.special and first.text.startswith(base.bos))
