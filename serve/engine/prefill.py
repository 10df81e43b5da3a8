"""An answer that goes on from the conversation's final message: where that message ends in what the template wrote.

A mark that nobody can guess stands at the end of the message while the template runs, so it does not matter what the
template trims, repeats or adds. It knows nothing of tokens.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from slm.errors import InputError
from slm.joints import Message


def marked(messages: Sequence[Message]) -> tuple[list[Message], str]:
    """The conversation with a mark at the end of its final message, and the mark. Raises InputError for none."""
    if not messages or messages[-1]["role"] != "assistant":
        raise InputError("continue_final_message: only a final message of the assistant can be continued")
    mark = f"{secrets.randbelow(10**32):032d}"  # digits: no filter of a template changes them
    last = messages[-1].copy()
    last["content"] += mark
    return [*messages[:-1], last], mark


def cut(text: str, mark: str) -> str:
    """The rendered text up to the end of the final message. Raises InputError when the template does not show it."""
    before, found, _ = text.rpartition(mark)
    if not found:
        raise InputError("continue_final_message: the model's chat template does not show the final message")
    return before.replace(mark, "")
