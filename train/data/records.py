"""What one JSON object of training data says, in any of the usual formats. It knows nothing of files or templates.

Formats: OpenAI's and TRL's "messages", ShareGPT's "conversations", alpaca's and Dolly's "instruction", prompt and
completion, question and answer, "text". What is honoured and what is refused: `train.data.turns`, and here for a row.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from slm.errors import SlmError
from slm.joints import Message
from train.data.row import Row, kind
from train.data.turns import ROLES, THOUGHTS, about_learning, name_results, text_of, turn_of, with_thought

_KNOWN = "messages, conversations (ShareGPT), instruction/output (alpaca), prompt/completion, question/answer, text"
_CONVERSATIONS = ("messages", "conversations", "conversation")
# Fields of a question -> those of its answer, which go by any of these names.
_QUESTIONS = ("instruction", "prompt", "question", "query", "input")
_ANSWERS = ("output", "completion", "response", "answer")
_REFUSED = {
    **dict.fromkeys(("images", "image", "audios", "audio", "videos", "video"), "Only text is learned."),
    "documents": "Write the documents into the turns, as the model will be asked with them.",
    "chat_template_kwargs": "Write the turns so that the template needs no options.",
    **dict.fromkeys(("train_on_inputs", "ignore"), 'Mark the turns instead: "weight" 0 or 1.'),
}
_REJECTED = re.compile(r"(?:^|_)(?:rejected|non_?preferred|dispreferred|unpreferred)(?:_|$)")
_SYSTEMS = ("system", "system_prompt", "system_message", "system_instruction", "developer", "instructions")
_BESIDE = (*_SYSTEMS, *THOUGHTS, "input", "context", "history", "tools", "functions")
# What says how much the whole example counts: once is what is done.
_WEIGHTS = ("weight", "loss_weight", "loss_scale", "loss_mask", "mask")


@dataclass(frozen=True)
class Record:
    """A conversation or a text. skipped: numbers from 0 of the assistant's turns that are not learned.

    tools: the functions that may be called, as OpenAI describes them. unused: fields that mean nothing here.
    """

    messages: tuple[Message, ...] = ()
    text: str = ""
    tools: tuple[dict[str, Any], ...] = ()
    skipped: frozenset[int] = frozenset()
    unused: tuple[str, ...] = ()


def text_record(values: dict[str, Any], where: str) -> Record:
    """A running text: "text", or a prompt and its completion. Raises the errors of `conversation_record`."""
    row = Row(values, where)
    _refuse_unlearned(row)
    if not row.has("text") or _rejected(row):  # a label beside a mere text says what it is about
        _refuse_preferences(row)
    paired = row.has("prompt") or row.has("completion") or "text" not in values
    if row.has("text") or not paired:
        text = row.take_text("text")
    elif "prompt" in values:
        text = row.take_text("prompt") + row.take_text("completion")
        _refuse_choices(row)
        _refuse_second(row, "prompt", text)
        _refuse_beside(row, text)
    else:
        raise row.fault(
            'there is neither "text" nor "prompt" and "completion"',
            found=_names(values),
            hint="For conversations use: slm train sft",
        )
    if not text.strip():
        raise row.fault("the text is empty")
    return Record(text=text, unused=tuple(row.unused()))


def _refuse_beside(row: Row, text: str) -> None:
    """Raise UnsupportedError for what a conversation would be told besides, where a prompt's text has none of it."""
    for name in _BESIDE:
        said = row.values.get(name)
        if row.has(name) and not (isinstance(said, str) and said.strip() in text):
            raise row.refusal(
                f'"{name}" has no place in running text and would be lost',
                hint='Write it into "prompt", or learn conversations: slm train sft',
            )
    row.take(*_BESIDE)


def conversation_record(values: dict[str, Any], where: str) -> Record:
    """A conversation, or a text where there is only one. alpaca's files have a "text" beside the turns; turns win.

    Raises DamagedFileError, or UnsupportedError for what is sound and cannot be learned so.
    """
    row = Row(values, where)
    _refuse(row)
    turns = _Turns(row)
    told = row.named(*_CONVERSATIONS)
    if row.has(told):
        turns.add_all(told)
    elif (question := next((name for name in _QUESTIONS if row.has(name)), None)) and _answer_of(row):
        _pair(row, turns, question, _answer_of(row))
    elif row.has("text"):
        return text_record(values, where)
    elif told:
        turns.add_all(told)  # which says what is wrong with it
    elif "text" in values:
        return text_record(values, where)
    else:
        raise row.fault("it is in no known format", found=_names(values), hint=_way_out(values))
    row.take("text")
    turns.begin_with(*_SYSTEMS)
    messages = turns.messages
    if not any(m["role"] == "assistant" and (m["content"].strip() or m.get("tool_calls")) for m in messages):
        raise row.fault("there is no answer of the assistant to learn from")
    name_results(messages)
    tools = tuple(_tools(row))
    skipped = frozenset(
        n for n, learned in enumerate(turns.learned) if not learned and messages[n]["role"] == "assistant"
    )
    return Record(tuple(messages), "", tools, skipped, tuple(row.unused()))


class _Turns:
    """The turns of a row as they are read, and whether each is learned."""

    def __init__(self, row: Row) -> None:
        self._row = row
        self.messages: list[Message] = []
        self.learned: list[bool] = []

    def add(self, role: str, content: str, learned: bool = True) -> None:
        self.messages.append(Message(role=role, content=content))
        self.learned.append(learned)

    def add_all(self, name: str) -> None:
        """Every turn of the list in the field `name`."""
        for number, turn in enumerate(self._row.take_list(name), start=1):
            if not isinstance(turn, dict):
                raise self._row.fault(f'turn {number} of "{name}" is {kind(turn)}, not an object')
            message, learned = turn_of(self._row.inner(name, turn, f"turn {number}"))
            self.messages.append(message)
            self.learned.append(learned)

    def begin_with(self, *names: str) -> None:
        """Put the row's own system text, in one of these fields, first, unless the turns begin with the same."""
        given = {name: self._row.values[name] for name in names if self._row.has(name)}
        self._row.take(*names)
        texts = {text_of(self._row, name, value, "system"): name for name, value in given.items()}
        if len(texts) > 1:
            raise self._row.refusal(f"there are several system texts: {', '.join(given)}", hint="Join them in one.")
        if not texts:
            return
        system = next(iter(texts))
        if not self.messages or self.messages[0] != Message(role="system", content=system):
            self.messages.insert(0, Message(role="system", content=system))
            self.learned.insert(0, False)


def _answer_of(row: Row) -> str:
    """The field with the answer to a question; "" where there is none."""
    return row.named(*_ANSWERS)


def _pair(row: Row, turns: _Turns, question: str, answer: str) -> None:
    """A question and its answer, each a text, or turns as TRL writes them."""
    if question == "prompt" and isinstance(row.values["prompt"], list):
        turns.add_all("prompt")
    else:
        asked = row.take_text(question)
        _refuse_second(row, question, asked)
        for name in ("input", "context"):  # what the question is about, as alpaca and Dolly call it
            if name != question and row.has(name):
                asked += "\n\n" + row.take_text(name)
        _history(row, turns)
        turns.add("user", asked)
    if isinstance(row.values[answer], list):
        turns.add_all(answer)
    else:
        turns.add("assistant", with_thought(row, row.take_text(answer)))


def _refuse_second(row: Row, question: str, asked: str) -> None:
    """Raise UnsupportedError where another field asks something else, which would be lost."""
    for name in _QUESTIONS:
        other = row.values.get(name)
        if name in (question, "input") or not isinstance(other, str) or not other.strip():
            continue
        if asked.strip() not in other and other.strip() not in asked:
            raise row.refusal(
                f'both "{question}" and "{name}" ask something, and one would be lost',
                hint='Write both into one, or what always holds as "system".',
            )
        row.take(name)


def _history(row: Row, turns: _Turns) -> None:
    """Earlier questions and answers, in pairs."""
    for pair in row.take("history") or []:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise row.fault('"history" must be a list of pairs of texts, a question and its answer')
        turns.add("user", pair[0])
        turns.add("assistant", pair[1])


def _tools(row: Row) -> list[dict[str, Any]]:
    """The functions that may be called, in OpenAI's form, from "tools" or the older "functions", or JSON text."""
    given = row.take_json("tools", "functions")
    row.take("parallel_tool_calls")  # what the answer shows itself
    tools = []
    for tool in given if isinstance(given, list) else [] if given is None else [given]:
        function = (tool.get("function") or tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            name = "tools" if row.has("tools") else "functions"
            raise row.fault(f'an entry of "{name}" has no name of a function', found=str(tool)[:60])
        tools.append({"type": "function", "function": {k: v for k, v in function.items() if k != "type"}})
    return tools


def _rejected(row: Row) -> list[str]:
    """The fields with an answer that is not wanted, as preference data calls them: rejected, non_preferred, ..."""
    paired = row.values.get("chosen") is not None
    return [
        name for name, value in row.values.items()
        if _REJECTED.search(name.lower()) and (value is True or isinstance(value, str | list | dict))
        and (paired or row.has(name))
    ]  # fmt: skip


def _is_verdict(value: Any) -> bool:
    """Whether a "label" says yes or no, and not what something is about."""
    return value in (0, 1) or (isinstance(value, str) and value.strip().lower() in ("true", "false", "0", "1"))


def _refuse_preferences(row: Row) -> None:
    """Raise UnsupportedError for answers that are compared or judged: a bad one would be learned like a good one."""
    if rejected := _rejected(row):
        raise row.refusal(
            "this is preference data (DPO: a chosen and a rejected answer), which is not learned here",
            found=_names(row.values),
            hint=f"To learn the chosen answers: jq -c '{_of_chosen(row, rejected)}' FILE > chosen.jsonl",
        )
    judged = [name for name in ("label", "kto_tag") if name in row.values and _is_verdict(row.values[name])]
    if judged:
        good = f'.{judged[0]} | tostring | ascii_downcase | IN("true", "1", "1.0")'
        raise row.refusal(
            "this is preference data (KTO: an answer and whether it is a good one), which is not learned here",
            found=_names(row.values),
            hint=f"To learn the good answers: jq -c 'select({good}) | del(.{judged[0]})' FILE > good.jsonl",
        )
    for name in _ANSWERS:
        answers = row.values.get(name)
        if isinstance(answers, list) and answers and all(isinstance(text, str) for text in answers):
            raise row.refusal(
                f'"{name}" has {len(answers)} texts: answers in the order of their quality (preference data), or to'
                " choose from; one is learned",
                hint=f"To learn the first of each: jq -c '.{name} |= .[0]' FILE > first.jsonl",
            )


def _of_chosen(row: Row, rejected: list[str]) -> str:
    """The jq program that makes an example of the chosen answer."""
    if "preferred_output" in row.values and isinstance(row.values.get("input"), dict):  # OpenAI's form
        return "{messages: (.input.messages + .preferred_output)}"
    if "chosen" not in row.values:
        return f"del({', '.join(f'.{name}' for name in rejected)})"
    chosen = row.values["chosen"]
    turns = next((name for name in _CONVERSATIONS if row.has(name)), "")
    question = next((name for name in _QUESTIONS if row.has(name)), "")
    whole = isinstance(chosen, list) and chosen and isinstance(chosen[0], dict)
    whole = whole and ROLES.get(str(chosen[0].get("role", chosen[0].get("from"))).lower()) != "assistant"
    answer = "[.chosen]" if isinstance(chosen, dict) else ".chosen"
    beside = [name for name in ("system", "system_prompt", "tools", "functions") if row.has(name)]
    if whole:
        fields = ["messages: .chosen"]
    elif turns:
        answer = '[{role: "assistant", content: .chosen}]' if isinstance(chosen, str) else answer
        fields = [f"{turns}: (.{turns} + {answer})"]
    elif question:
        about = [name for name in ("input", "context", "history") if row.has(name) and name != question]
        fields = [question, *about, f"completion: {answer}"]
    else:
        fields = [f"{'text' if isinstance(chosen, str) else 'messages'}: {answer}"]
    return f"{{{', '.join([*beside, *fields])}}}"


def _refuse(row: Row) -> None:
    """Raise UnsupportedError for rows that are to be learned otherwise than answer by answer."""
    _refuse_preferences(row)
    _refuse_unlearned(row)
    _refuse_choices(row)


def _refuse_unlearned(row: Row) -> None:
    """Raise UnsupportedError for rows that are not text alone, or not to be learned once and whole."""
    if row.has("input_ids"):
        raise row.refusal("these are tokens, not text", found=_names(row.values), hint=f"Known: {_KNOWN}.")
    for name in _WEIGHTS:
        if row.has(name) and (name == "mask" or row.values[name] != 1):
            raise row.refusal(
                f'the whole example has the "{name}" {row.values[name]!r}',
                hint='Files have weights (--weight), and turns ("weight" 0 or 1).',
            )
    row.take(*_WEIGHTS)
    if doubtful := about_learning(row):
        raise row.refusal(
            f'"{doubtful}" seems to say whether the example is learned, and is not known',
            hint='Leave out rows not to be learned; files have weights (--weight), and turns ("weight" 0 or 1).',
        )
    for name, hint in _REFUSED.items():
        if row.values.get(name):
            raise row.refusal(f'"{name}" is not learned from', hint=hint)


def _refuse_choices(row: Row) -> None:
    """Raise UnsupportedError for a question whose answers to choose from stand beside it."""
    if any(row.has(name) for name in ("choices", "options")) and not row.has(row.named(*_CONVERSATIONS)):
        raise row.refusal(
            "the question has choices, which would be lost",
            hint="Write them into the question, and the answer in words.",
        )


def _way_out(values: dict[str, Any]) -> str:
    """What to do with a row in no known format; a command only where it gives what can be read."""
    if isinstance(values.get("segments"), list):
        return 'Segments have no turns: write what is not learned as "prompt" and what is as "completion", or messages.'
    if _is_gemini(values):
        text = '(.parts | map(.text // "") | join(""))'
        system = next((name for name in ("systemInstruction", "system_instruction") if name in values), "")
        first = f'(.{system} // empty | {{role: "system", content: {text}}}), ' if system else ""
        turns = f'{first}(.contents[] | {{role: (.role // "user"), content: {text}}})'
        return f"To write Gemini's turns as messages: jq -c '{{messages: [{turns}]}}' FILE > messages.jsonl"
    for name, value in values.items():
        if not (isinstance(value, list) and value and isinstance(value[0], dict)):
            continue
        if _is_read({"messages": value}):
            return f"Its turns seem to be in \"{name}\": jq -c '{{messages: .{name}}}' FILE > messages.jsonl"
        if _is_read(value[0]):
            return f"Its examples seem to be in \"{name}\": jq -c '.{name}[]' FILE > examples.jsonl"
    return f"Known: {_KNOWN}."


def _is_gemini(values: dict[str, Any]) -> bool:
    turns = values.get("contents")
    return (
        isinstance(turns, list)
        and bool(turns)
        and all(
            isinstance(turn, dict)
            and isinstance(turn.get("parts"), list)
            and all(isinstance(part, dict) and "text" in part for part in turn["parts"])
            for turn in turns
        )
    )


def _is_read(values: dict[str, Any]) -> bool:
    try:
        conversation_record(values, "")
    except SlmError:
        return False
    return True


def _names(values: dict[str, Any]) -> str:
    return ", ".join(sorted(values)) or "an empty object"
