"""Chat templates: named ones, how a base gets one, and rendering in a sandbox. It knows nothing of tokenizers.

The template language is Jinja as transformers uses it: `messages`, `tools`, `add_generation_prompt`, `bos_token`,
`eos_token`, the functions `raise_exception` and `strftime_now`, and a `tojson` that does not escape for HTML.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from slm.chat.system_text import write_all
from slm.chat.tools import CALL_BEGIN, as_plain_turns
from slm.chat.tools_kept import keeps_tools
from slm.errors import InputError, UnknownNameError
from slm.joints import Message

# Turn markers as published with each model family; written out anew in the smallest form that renders the same.
TEMPLATES: dict[str, str] = {
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim"
        " + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "gemma": (  # no system turn: its text stands in the user's, and the user's turns that follow one another are one
        "{{ bos_token }}{% set ns = namespace(role='', text=false) %}{% for message in messages %}"
        "{% set role = 'model' if message['role'] == 'assistant' else 'user' %}"
        "{% set text = message['content'] | trim %}"
        "{% if role != ns.role or role == 'model' %}{{ '<end_of_turn>\n' if ns.role else '' }}"
        "{{ '<start_of_turn>' + role + '\n' }}{% set ns.text = false %}{% endif %}"
        "{{ ('\n\n' if ns.text and text else '') + text }}"
        "{% set ns.role = role %}{% set ns.text = (ns.text or text) %}{% endfor %}{{ '<end_of_turn>\n' }}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "alpaca": (
        "{% for message in messages %}"
        "{% if message['role'] == 'system' %}{{ message['content'] | trim + '\n\n' }}"
        "{% elif message['role'] == 'assistant' %}"
        "{{ '### Response:\n' + message['content'] | trim + eos_token + '\n\n' }}"
        "{% else %}{{ '### Instruction:\n' + message['content'] | trim + '\n\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
    ),
}  # fmt: skip
_OURS = frozenset(TEMPLATES.values())  # no system text is lost in them
# What a template's own mistakes raise: a division, an attribute of nothing, macros that call one another for ever.
_FAULTS = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError)
_MARKERS = {"gemma": "<start_of_turn>", "chatml": "<|im_start|>"}
# What `render` tells every template; strangers' variables do not replace it.
_ARGUMENTS = frozenset({"messages", "tools", "bos_token", "eos_token", "add_generation_prompt"})
ROLES = ("system", "user", "assistant", "tool")
VARIABLES = "chat_template_kwargs"
"""The field of a request that holds the variables a template is told besides."""


def named_template(name: str) -> str:
    """The template called `name`. Raises UnknownNameError."""
    if name not in TEMPLATES:
        raise UnknownNameError("chat template", name, TEMPLATES)
    return TEMPLATES[name]


def template_name_for(vocabulary: Collection[str]) -> str:
    """The named template whose turn markers are tokens of the vocabulary; plain-text `alpaca` if none is."""
    for name, marker in _MARKERS.items():
        if marker in vocabulary:
            return name
    return "alpaca"


def check_messages(messages: Sequence[Message]) -> None:
    """Raise InputError unless every turn has a known role and text content."""
    if not messages:
        raise InputError("the conversation is empty", hint="Give at least one message with role 'user'.")
    for number, message in enumerate(messages, start=1):
        if message.get("role") not in ROLES:
            raise InputError(f"message {number} has the role {message.get('role')!r}; known: {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str):
            raise InputError(f"message {number} has no text content")


@dataclass(frozen=True)
class TemplateVariables:
    """What a template is told besides the conversation. fields: the field of a request that a variable stood in, where
    it was not `VARIABLES`."""

    values: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)

    def refused(self, name: str, why: str) -> InputError:
        """The error for one of them; it begins with its field."""
        return InputError(f"{self.fields.get(name, VARIABLES)}: {why}")


NO_VARIABLES = TemplateVariables()


def _check_variables(variables: TemplateVariables, known: Collection[str]) -> None:
    """Raise InputError for what a template is not told from outside, or never looks at.

    Off (false or null) is what a variable is that the template does not know, so that changes nothing.
    """
    for name, value in variables.values.items():
        if name in _ARGUMENTS:
            raise variables.refused(name, f"the chat template's '{name}' cannot be set as a variable")
        if name not in known and value not in (None, False):
            listed = ", ".join(sorted(set(known) - _ARGUMENTS)) or "none"
            raise variables.refused(name, f"the model's chat template has no variable '{name}'; known: {listed}")


def render(
    template: str,
    messages: Sequence[Message],
    *,
    bos_token: str = "",
    eos_token: str = "",
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] = (),
    variables: TemplateVariables = NO_VARIABLES,
) -> str:
    """The text a model reads for `messages`. tools: functions it may call, as OpenAI describes them.

    Every system text is in the result (`slm.chat.system_text`), and every function, call and result, as text where the
    template loses one (`slm.chat.tools_kept`). Raises InputError when the template refuses it or has none of the
    variables.
    """
    compiled = _compiled(template)
    _check_variables(variables, compiled.variables)
    own = {"bos_token": bos_token, "eos_token": eos_token, "add_generation_prompt": add_generation_prompt}
    return _rendered(compiled, messages, tools, {**variables.values, **own})


def render_marked(
    template: str,
    messages: Sequence[Message],
    *,
    bos_token: str = "",
    eos_token: str = "",
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """As `render` of a conversation that has been answered, with marks around what `{% generation %}` holds.

    `slm.chat.generation_tag.taken_out` finds them.
    """
    told = {"bos_token": bos_token, "eos_token": eos_token, "add_generation_prompt": False}
    return _rendered(_compiled(template, marked=True), messages, tools, told)


@dataclass(frozen=True)
class _Template:
    """A compiled template: its text, Jinja's object, the variables it looks at, and whether it knows tools."""

    text: str
    jinja: Any
    variables: frozenset[str]
    speaks_tools: bool

    def write(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], told: Mapping[str, Any]) -> str:
        """What Jinja makes of it. Raises InputError."""
        import jinja2

        try:
            text: str = self.jinja.render(**told, messages=[dict(m) for m in messages], tools=list(tools) or None)
            return text
        except (jinja2.TemplateError, *_FAULTS) as error:
            raise _refused(error) from error


def _rendered(
    template: _Template, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], told: Mapping[str, Any]
) -> str:
    """The text, with all of what the messages and tools say. told: the template's other variables."""
    check_messages(messages)
    known = (template.text, json.dumps(dict(told), sort_keys=True, default=str))

    def complete(turns: Sequence[Message], functions: Sequence[Mapping[str, Any]]) -> str:
        if template.text in _OURS:
            return template.write(turns, functions, told)
        return write_all(turns, lambda one: template.write(one, functions, told), (*known, bool(functions)))

    called = tools or any(m["role"] == "tool" or m.get("tool_calls") for m in messages)
    if called and not (template.speaks_tools and keeps_tools(messages, tools, complete, known)):
        messages, tools = as_plain_turns(messages, tools), ()
    return complete(messages, tools)


def _refused(error: Exception) -> InputError:
    return InputError(f"the model's chat template refuses this conversation: {error}")


@lru_cache(maxsize=32)
def _compiled(template: str, marked: bool = False) -> _Template:
    """The template ready to be rendered. marked: with marks around what `{% generation %}` holds. Raises InputError."""
    import jinja2
    from jinja2.meta import find_undeclared_variables
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(reason: str) -> None:
        raise jinja2.TemplateError(reason)

    def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    from slm.chat.generation_tag import GenerationTag, MarkedGenerationTag

    tag = MarkedGenerationTag if marked else GenerationTag
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", tag]
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    environment.filters["tojson"] = to_json
    try:
        known = frozenset(find_undeclared_variables(environment.parse(template))) - environment.globals.keys()
        compiled = environment.from_string(template)
    except jinja2.TemplateError as error:
        raise _refused(error) from error
    return _Template(template, compiled, known, CALL_BEGIN in template and "tools" in known)
