"""An Ollama Modelfile for a GGUF: FROM, TEMPLATE in Go's template language, stop texts, and one ADAPTER.

Pure. The template is written from what the model's own chat template renders (`convert.publish.turns`), so that Ollama
need not guess it. Format: Ollama's docs/modelfile.mdx and docs/template.mdx; parser/parser.go drops characters that Go
does not call printable and applies no escapes; only the last ADAPTER line counts. BOS is Ollama's own business.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from convert.publish.turns import Turns, turns_of
from convert.vocabulary.files.ends import ends_from_metadata
from slm.chat.prompt import render
from slm.errors import InputError, UnsupportedError
from slm.joints import Message

MARK = "# Written by slm convert."
_ENDS = ("<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<|end|>", "<|endoftext|>")


def go_template(turns: Turns) -> str:
    """The turns in Go's template language, over Ollama's `.Messages` and `.System`.

    Raises UnsupportedError for fixed texts that a Modelfile cannot hold.
    """
    for text in turns.literals():
        if any(not (letter == "\n" or letter.isprintable()) for letter in text) or '"""' in text:
            raise UnsupportedError("the chat template holds characters that a Modelfile cannot", found=repr(text[:40]))
    user = _literal(turns.user[0])
    parts = [_literal(turns.start)]
    if turns.system is not None:
        before, after = map(_literal, turns.system)
        if turns.folded:  # a variable, since the system text stands in the first question only
            parts.insert(0, _do("$system := .System"))
            with_system = [before, _do("$system"), after, _do('$system = ""')]
            user = "".join([_do("if $system"), *with_system, _do("else"), user, _do("end")])
        else:
            parts += [_do("if .System"), before, _do(".System"), after, _do("end")]
    parts += [_do("range .Messages"), _do('if eq .Role "user"'), user, _do(".Content"), _literal(turns.user[1])]
    parts += [_do('else if eq .Role "assistant"'), _literal(turns.assistant[0]), _do(".Content")]
    parts += [_literal(turns.assistant[1]), _do("end"), _do("end"), _literal(turns.prompt)]
    return "".join(parts)


def _do(action: str) -> str:
    return "{{ " + action + " }}"


def _literal(text: str) -> str:
    """A fixed text inside a Go template; only a brace could be read as something else."""
    return text.replace("{", _do('"{"'))


def turns_of_template(template: str, eos_token: str) -> Turns:
    """The turns of a Jinja chat template, without BOS. Raises UnsupportedError."""
    if "strftime_now" in template:
        raise UnsupportedError("the chat template writes the date, which a Modelfile's cannot")

    def rendered(messages: Sequence[Message]) -> str:
        return render(template, messages, bos_token="", eos_token=eos_token)

    try:
        return turns_of(rendered)
    except InputError as error:
        raise UnsupportedError(f"the chat template cannot be put into a Modelfile: {error.what}") from error


def stop_texts(metadata: Mapping[str, Any], turns: Turns | None) -> list[str]:
    """The texts at which an answer ends: what follows it in the template, and the vocabulary's end-of-turn tokens."""
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    stops = []
    eos = metadata.get("tokenizer.ggml.eos_token_id")
    if isinstance(eos, int) and 0 <= eos < len(tokens):
        stops.append(tokens[eos])
    stops += [tokens[id_] for id_ in ends_from_metadata(metadata, len(tokens))]
    known = set(tokens)
    if turns is not None:
        after = turns.assistant[1].strip()
        stops += [marker for marker in re.findall(r"<[^<>\s]+>", after) if marker in known]
        stops += [marker for marker in _ENDS if marker in known and marker in "".join(turns.literals())]
        opening = turns.user[0].strip()
        if opening:  # a model that does not stop writes the next question itself
            stops.append(opening.splitlines()[0])
    return list(dict.fromkeys(stop for stop in stops if stop and stop.isprintable()))


def modelfile(
    model: str, metadata: Mapping[str, Any], *, adapter: str | None = None, template: str | None = None
) -> tuple[str, str | None]:
    """(the Modelfile, why it has no TEMPLATE or None).

    model, adapter: file names, beside the Modelfile. metadata: the model's key-values. template: the adapter's own
    Jinja template, which goes before the model's.
    """
    source = template or metadata.get("tokenizer.chat_template")
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    eos = metadata.get("tokenizer.ggml.eos_token_id")
    turns, written, why = None, None, "the model has no chat template"
    if isinstance(source, str) and source:
        try:
            turns = turns_of_template(source, tokens[eos] if isinstance(eos, int) and 0 <= eos < len(tokens) else "")
            written, why = go_template(turns), ""
        except UnsupportedError as error:
            turns, why = None, error.what
    name = adapter or model
    lines = [f"{MARK} Use: ollama create {name.rsplit('.', 1)[0].lower()} -f Modelfile", f"FROM ./{model}"]
    if adapter is not None:
        lines.append(f"ADAPTER ./{adapter}")
    if written is None:
        lines.append(f"# No TEMPLATE: {why}.")
    else:
        lines.append(f'TEMPLATE """{written}"""')
        if turns is not None and turns.default_system:
            lines.append(f'SYSTEM """{turns.default_system}"""')
        if turns is not None and turns.system is None:
            lines.append("# The template has no place for a system text; SYSTEM would be ignored.")
    for stop in stop_texts(metadata, turns):
        lines.append(f'PARAMETER stop "{stop}"' if '"' not in stop else f'PARAMETER stop """{stop}"""')
    return "\n".join(lines) + "\n", why or None
