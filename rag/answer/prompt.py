"""Questions to prompts with numbered passages. It knows nothing of models or engines.

Passages are data: they cannot start another numbered passage or another question.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from rag.answer.cite import NOT_FOUND, answer_language
from rag.answer.reader.length import WIDE, about_tokens
from slm.errors import InputError
from slm.joints import Message, Passage
from slm.text.visible import one_line, visible

_INSTRUCTION = {
    "en": (
        "Answer the question using only the passages below. Cite the number of the passage you used in brackets,"
        f" like [1]. If the passages do not contain the answer, say: {NOT_FOUND['en']}."
    ),
    "ja": (
        "次の資料だけを使って質問に答えてください。使った資料の番号を [1] のように示してください。"
        f"資料に答えがない場合は「{NOT_FOUND['ja']}。」と答えてください。"
    ),
}
_QUESTION = {"en": "Question: ", "ja": "質問: "}
# Tokens of three passages, their heads included.
PASSAGE_BUDGET = 700
DEFAULT_PASSAGES = 3
# Of a passage's number and the marks around it, in tokens.
_NUMBER = 2
_SENTENCE_END = re.compile(r"[。！？\n]|[.!?](?=\s)")


def defused(text: str) -> str:
    """A passage's text that cannot pose as the prompt's own structure: no blank lines, no numbered start of a line,
    no line that begins with the question's label."""
    lines = [line.rstrip() for line in visible(text).split("\n") if line.strip()]
    lines = [re.sub(r"^(\s*)[\[［【]\s*([0-9０-９]+)\s*[\]］】]", r"\1(\2)", line) for line in lines]
    return "\n".join(re.sub(r"^(\s*)((?:Question|質問)\s*[:：])", r"\1> \2", line) for line in lines)


def passage_head(passage: Passage) -> str:
    """Page title > heading, in one line."""
    return one_line(passage.place)


def fit_passages(passages: Sequence[Passage], budget: float = PASSAGE_BUDGET) -> list[Passage]:
    """The first passages that fit into the budget (about so many tokens); the last may be cut at a sentence end."""
    fitting: list[Passage] = []
    for passage in passages:
        room = budget - about_tokens(passage_head(passage)) - _NUMBER
        length = about_tokens(passage.text)
        if length <= room:
            fitting.append(passage)
            budget = room - length
            continue
        ends = [m.end() for m in _SENTENCE_END.finditer(passage.text) if about_tokens(passage.text[: m.end()]) <= room]
        if ends and (not fitting or ends[-1] * 2 > len(passage.text)):
            cut = passage.text[: ends[-1]].rstrip()
        elif not fitting:
            cut = passage.text[: max(1, int(room / WIDE))]
        else:
            break
        fitting.append(replace(passage, text=cut))
        break
    return fitting


def grounded_messages(question: str, passages: Sequence[Passage]) -> list[Message]:
    """The conversation that asks for an answer from the passages, in the language of the question.

    Raises InputError without a question or without passages.
    """
    if not question.strip():
        raise InputError("the question is empty")
    if not passages:
        raise InputError("there are no passages to answer from")
    language = answer_language(question)
    blocks = [_INSTRUCTION[language]]
    blocks += [f"[{n}] {passage_head(p)}\n{defused(p.text)}" for n, p in enumerate(passages, start=1)]
    blocks.append(_QUESTION[language] + one_line(question))
    return [{"role": "user", "content": "\n\n".join(blocks)}]
