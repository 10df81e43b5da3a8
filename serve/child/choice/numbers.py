"""Which numbers of a JSON schema llguidance keeps as they are: it computes with doubles and with integers of 64 bits.

It takes what it cannot hold for the nearest that it can, without a word, so this is decided before it is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "minContains",
           "maxContains")  # fmt: skip
_VALUES = ("const", "enum")
_STRICT = {"minimum": "exclusiveMinimum", "maximum": "exclusiveMaximum"}
_BOUND_OF = {strict: bound for bound, strict in _STRICT.items()}
# Its names are the client's, and no keywords.
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
NOTES = ("title", "description", "default", "examples", "example", "$comment", "$schema")
_END = 2**63


def today(schema: Any) -> Any:
    """The schema in draft 2020-12's numbers: counts like 5.0 as 5, which are the same integer to JSON Schema and not to
    llguidance, and draft 4's `"minimum": 0, "exclusiveMinimum": true` as `"exclusiveMinimum": 0`.
    """
    if isinstance(schema, list):
        return [today(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    new: dict[str, Any] = {}
    for key, part in schema.items():
        strict, of = _STRICT.get(key), _BOUND_OF.get(key)
        if key in _VALUES or key in NOTES:  # what stands there is no schema
            new[key] = part
        elif key in _NAMED and isinstance(part, Mapping):
            new[key] = {name: today(one) for name, one in part.items()}
        elif strict is not None and schema.get(strict) is True and _is_number(part):
            new[strict] = part
        elif not (of is not None and isinstance(part, bool) and (part is False or _is_number(schema.get(of)))):
            whole = key in COUNTS and isinstance(part, float) and part.is_integer()
            new[key] = int(part) if whole else today(part)
    return new


def kept_exactly(schema: Any) -> bool:
    """Whether an answer that follows llguidance's reading of the numbers in a schema follows the schema's own."""
    if isinstance(schema, list):
        return all(kept_exactly(part) for part in schema)
    if not isinstance(schema, Mapping):
        return True
    return all(_keyword_kept(key, part, schema) for key, part in schema.items() if key not in NOTES)


def _keyword_kept(key: str, part: Any, schema: Mapping[str, Any]) -> bool:
    if key in _VALUES:
        return _values_kept(part)
    if key in BOUNDS and _is_number(part):
        return _bound_kept(part) or _beyond(key, part, schema)
    if key in _NAMED and isinstance(part, Mapping):
        return all(kept_exactly(one) for one in part.values())
    return kept_exactly(part)


def _values_kept(value: Any) -> bool:
    """Whether each number in a value is written with its own digits."""
    if isinstance(value, list | Mapping):
        return all(_values_kept(part) for part in (value.values() if isinstance(value, Mapping) else value))
    if not _is_number(value) or (isinstance(value, float) and not value.is_integer()):
        return True
    near = _double(value)
    if near is None or near == -_END:  # the smallest integer of 64 bits ends llguidance's process
        return False
    return int(near) == value if abs(near) < _END else _digits(near) == value or isinstance(value, float)


def _bound_kept(bound: float) -> bool:
    """Whether a bound is the same as a double, as an integer of 64 bits and as the double's shortest digits."""
    near = _double(bound)
    if near is None or abs(near) >= _END:
        return False
    return near == bound and (not near.is_integer() or _digits(near) == int(near))


def _beyond(key: str, bound: float, schema: Mapping[str, Any]) -> bool:
    """Whether it is an upper bound at which the integers of 64 bits end anyway."""
    least = {"maximum": _END - 1, "exclusiveMaximum": _END}.get(key)
    return least is not None and bound >= least and schema.get("type") == "integer" and _double(bound) is not None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _double(value: float) -> float | None:
    try:
        return float(value)
    except OverflowError:
        return None


def _digits(value: float) -> int:
    return int(Decimal(repr(value)))
