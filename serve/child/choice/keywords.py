"""What in a JSON schema is a mistake: a keyword that is written wrong, a value that its keyword cannot have.

JSON Schema lets a validator pass over a keyword that it does not know, so "minLenght" would forbid nothing and nobody
would hear of it. A name of the author's own ("x-order", "unit") is left alone; one letter beside a keyword is not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from serve.child.choice.numbers import BOUNDS, COUNTS, NOTES

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
# Where a schema holds others (draft 2020-12, with the older `definitions`, `additionalItems` and lists of `items`).
MAPS = ("properties", "patternProperties", "$defs", "definitions")
LISTS = ("prefixItems", "anyOf", "oneOf", "allOf", "items")
SINGLE = ("items", "additionalItems", "additionalProperties")
# Keywords of every draft, and of OpenAPI's schemas.
_OTHERS = (
    "$anchor", "$comment", "$dynamicAnchor", "$dynamicRef", "$id", "$recursiveAnchor", "$recursiveRef", "$ref",
    "$schema", "$vocabulary", "const", "contains", "contentEncoding", "contentMediaType", "contentSchema", "default",
    "dependencies", "dependentRequired", "dependentSchemas", "deprecated", "description", "discriminator", "else",
    "enum", "example", "examples", "exclusiveMaximum", "exclusiveMinimum", "externalDocs", "format", "id", "if",
    "maxContains", "maxItems", "maxLength", "maxProperties", "maximum", "minContains", "minItems", "minLength",
    "minProperties", "minimum", "multipleOf", "not", "nullable", "pattern", "propertyNames", "readOnly", "required",
    "then", "title", "type", "unevaluatedItems", "unevaluatedProperties", "uniqueItems", "writeOnly", "xml",
)  # fmt: skip
_KNOWN = frozenset({*_OTHERS, *MAPS, *LISTS, *SINGLE})
_SAYING_LITTLE = (*NOTES, "deprecated", "externalDocs", "id", "$id", "readOnly", "writeOnly", "xml")
_MEANT = {name.lower(): name for name in sorted(_KNOWN.difference(_SAYING_LITTLE))}
_ALIKE = 0.82  # "propertys" and "minLenght" are above it, "propertyOrdering" and "tsType" are not
_SHORT = 5  # a shorter name is a word of its own sooner than another one written wrong ("note", "ids")


def mistakes(schema: Any, path: str = "") -> Iterator[str]:
    """Each mistake with its place, as "'keyword' at '/json/pointer' is ...". It does not raise, whatever is given."""
    if not isinstance(schema, Mapping):
        return
    for key, value in schema.items():
        told = _told(key, value)
        if told:
            yield f"'{key}' at '{path or '/'}' {told}"
            continue
        below = f"{path}/{escaped(key)}"
        if key in MAPS and isinstance(value, Mapping):
            for name, part in value.items():
                yield from mistakes(part, f"{below}/{escaped(name)}")
        elif key in LISTS and isinstance(value, list):
            for number, part in enumerate(value):
                yield from mistakes(part, f"{below}/{number}")
        elif key in SINGLE:
            yield from mistakes(value, below)


def escaped(name: str) -> str:
    """A name as a step of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def _told(key: str, value: Any) -> str:
    if key in _RULES:
        holds, needed = _RULES[key]
        return "" if holds(value) else f"is {_shown(value)}, not {needed}"
    if key in _KNOWN or key.startswith("x-"):
        return ""
    near = _MEANT.get(key.lower()) or _MEANT.get(f"${key.lower()}", "")
    if not near and len(key) >= _SHORT:
        near = next(iter(get_close_matches(key, _MEANT.values(), 1, _ALIKE)), "")
    return f"is no keyword (is '{near}' meant?)" if near else ""


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:39] + "…"


def _is_type(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(one, str) and one in TYPES for one in value)
    return isinstance(value, str) and value in TYPES


def _is_count(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and value >= 0 and value == int(value)


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _are_schemas(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(one, Mapping | bool) for one in value.values())


def _are_several(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_COUNT = (_is_count, "a whole number from 0")
_NUMBER = (_is_number, "a number")
_SCHEMAS = (_are_schemas, "an object of schemas")
_TEXT = (_is_text, "a text")
_SEVERAL = (_are_several, "a list of at least one")
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "type": (_is_type, f"one of {', '.join(TYPES)}"), "required": (_are_names, "a list of names"),
    **dict.fromkeys(COUNTS, _COUNT), **dict.fromkeys(BOUNDS, _NUMBER), **dict.fromkeys(MAPS, _SCHEMAS),
    **dict.fromkeys(("anyOf", "oneOf", "allOf", "prefixItems"), _SEVERAL),
    "enum": (_is_list, "a list"),  # an empty one is odd, and allowed: it forbids every value (draft 2020-12, 6.1.2)
    **dict.fromkeys(("pattern", "$ref", "format"), _TEXT),
}  # fmt: skip
