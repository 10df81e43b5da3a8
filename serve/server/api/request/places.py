"""What is wrong with a request and where, in one sentence: from pydantic's list of errors, unions among them.

A union yields errors for each of its branches, with the branch's name in the place. What counts is the error that
got furthest into the body. It knows nothing of requests' meanings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from serve.server.api.request.fields import spelled

_Place = tuple[str | int, ...]
_KINDS = {
    "model_type": "an object", "model_attributes_type": "an object", "dict_type": "an object", "list_type": "a list",
    "string_type": "a text",
}  # fmt: skip
_LEADS = ("Value error, ", "Assertion failed, ")


def first_fault(errors: Sequence[Mapping[str, Any]], body: Any) -> tuple[str, str | None]:
    """(message, place) of what to mend first. body: as it was sent."""
    placed = [(_place(error, body), error) for error in errors]
    start = placed[0][0]
    inside = [one for one in placed if one[0][: len(start)] == start]
    deepest = max(len(place) for place, _ in inside)
    place = next(place for place, _ in inside if len(place) == deepest)
    said = list(dict.fromkeys(_said(error) for where, error in inside if where == place))
    if "is missing" in said:
        said = ["is missing"]
    message = " or ".join([said[0], *(text.removeprefix("has to be ") for text in said[1:])])
    given = next(error.get("input") for where, error in inside if where == place)
    if message.startswith("has to be ") and isinstance(given, str | int | float | bool) and ", not " not in message:
        message += f", not {_short(given)}"
    shown = written(place)
    return f"{shown or 'body'}: {message}", shown or None


def written(place: _Place) -> str:
    """messages[0].content, as the clients' languages write it."""
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def _place(error: Mapping[str, Any], body: Any) -> _Place:
    """Where in the body, by the names that the client sent, without those of a union's branches."""
    place: list[str | int] = []
    at = body
    steps = [step for number, step in enumerate(error["loc"]) if not (number == 0 and step == "body")]
    for number, step in enumerate(steps):
        step = _as_sent(step, at)
        inside = isinstance(at, Mapping) and step in at
        inside = inside or (isinstance(at, list) and isinstance(step, int) and step < len(at))
        if inside:
            at = at[step]
        elif not (error["type"] == "missing" and number == len(steps) - 1):
            continue
        place.append(step)
    field = error.get("ctx", {}).get("field") if error["type"] == "refused_field" else None
    return tuple(place) if field is None else (*place, _as_sent(field, at))


def _as_sent(step: str | int, at: Any) -> str | int:
    return spelled(step, at) if isinstance(step, str) and isinstance(at, Mapping) else step


def _said(error: Mapping[str, Any]) -> str:
    kind, text, given = error["type"], str(error["msg"]), error.get("input")
    if kind == "missing":
        return "is missing"
    if kind == "literal_error":
        return f"{_short(given)} is not one of {error['ctx']['expected']}"
    for lead in _LEADS:
        text = text.removeprefix(lead)
    if kind in ("too_long", "too_short") and isinstance(given, list | Mapping):
        least = error["ctx"].get("min_length")
        bound = (
            f"at least {least:,} are needed"
            if kind == "too_short"
            else f"at most {error['ctx']['max_length']:,} are taken"
        )
        return f"holds {len(given):,}; {bound}"
    if kind in _KINDS:
        return f"has to be {_KINDS[kind]}"
    if text.startswith("Input should be "):
        return f"has to be {text.removeprefix('Input should be ').split(', ')[0]}"
    return text


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
