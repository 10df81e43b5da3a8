"""Messages of the engine and its child process as lines, and back.

A line is a JSON list: the message's name, the id of the order, then the message's fields.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from serve.child.messages import Answer, AnyAnswer, AnyOrder, Order, WireMessage
from slm.errors import EngineError

M = TypeVar("M", bound=WireMessage)

_ORDERS: dict[str, type[AnyOrder]] = {kind.__name__: kind for kind in get_args(AnyOrder)}
_ANSWERS: dict[str, type[AnyAnswer]] = {kind.__name__: kind for kind in get_args(AnyAnswer)}
# Made once: json.dumps makes an encoder for every call that differs from its defaults.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode
_encode_ascii = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


def order_line(id: int, order: Order[Any]) -> str:
    """An order as a line, without its end. In ASCII, since a prompt may hold what is no character."""
    return _encode_ascii([type(order).__name__, id, *order.row()])


def read_order(line: str | bytes) -> tuple[int, AnyOrder]:
    """The id and the order of a line. Raises EngineError for what is none."""
    return _read(_ORDERS, line)


def answer_line(id: int, answer: Answer) -> str:
    """An answer to the order `id` as a line, without its end."""
    return _encode([type(answer).__name__, id, *answer.row()])


def read_answer(line: str | bytes) -> tuple[int, Answer]:
    """The id and the answer of a line. Raises EngineError for what is none."""
    return _read(_ANSWERS, line)


def _read(kinds: Mapping[str, type[M]], line: str | bytes) -> tuple[int, M]:
    try:
        name, id, *row = json.loads(line)
        return int(id), kinds[name].of(*row)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        text = line if isinstance(line, str) else line.decode("utf-8", "replace")
        raise EngineError(f"{text.strip()[:200]!r} is no line that the engine and its process know") from error
