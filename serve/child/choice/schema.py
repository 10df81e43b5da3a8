"""A JSON schema without what no grammar can follow, and the names of what was left out.

A schema is tried as it is; only where llguidance refuses it, its parts are tried one by one, so that whatever it
does not support today or any more is found by trying and not by a list. It knows nothing of requests or of tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from serve.child.choice.keywords import LISTS, MAPS, SINGLE, TYPES, escaped
from serve.child.choice.numbers import NOTES, kept_exactly, today
from slm.errors import InputError

_DEFINITIONS = ("$defs", "definitions")
# Narrowed by what stands beside them, so they are tried after it.
_LAST = ("required", "additionalProperties", "minProperties", "maxProperties")
# What may come next at one place of an answer, at most (llguidance's max_items_in_row, by default 2,000). It compares
# each way with those before it, so that a place takes four times as long with twice as many: 8,000 take about 20 ms.
MOST_WAYS = 8000
# An optional property is four ways, which llguidance only counts while an answer is written.
_MOST_OPTIONAL = 1900
# So many different parts are tried of one schema at most: about a second.
_MOST_TRIALS = 1000


@dataclass(frozen=True)
class Followed:
    """A schema that can be followed. left_out: "'keyword' at '/json/pointer'" for each part that is not in it."""

    schema: Any
    left_out: tuple[str, ...] = ()


def follow(schema: Any, compiles: Callable[[Any], bool], *, rest: Any = True) -> Followed:
    """The schema, or as much of it as `compiles`. rest: what stands for it where nothing of it does."""
    try:
        schema = today(schema)
        repair = _Repair(schema, compiles)
        if not _crowded_anywhere(schema) and repair.sound(schema):
            return Followed(schema)
        loosened = repair.node(schema, "")
        if compiles(loosened):
            return Followed(loosened, tuple(dict.fromkeys(repair.left_out)))
    except (RecursionError, _TooLarge):
        pass
    return Followed(rest, ("the whole schema",))


def arguments_of(tool: str, parameters: Any) -> dict[str, Any]:
    """The schema of a function's arguments, which are an object whatever else it says. None: there are none.

    Raises InputError when it describes something else.
    """
    if parameters is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    named = parameters.get("type")
    types = named if isinstance(named, list) else [named]
    if "object" not in types and any(kind in TYPES for kind in types):
        found = json.dumps(named, ensure_ascii=False)[:100]
        raise InputError(f"the parameters of the tool '{tool}' have to be an object", found=f"type {found}")
    return {"type": "object", **{key: value for key, value in parameters.items() if key != "type"}}


def names_no_type(parameters: Any) -> bool:
    """Whether the type of a function's parameters is none of JSON's ("dict", "OBJECT"), and taken for an object."""
    named = parameters.get("type") if parameters else None
    return named is not None and not any(kind in TYPES for kind in (named if isinstance(named, list) else [named]))


class _TooLarge(Exception):
    """Too many parts to try them all."""


class _Repair:
    """One schema's repair: the root, for its references, and what was left out so far."""

    def __init__(self, root: Any, compiles: Callable[[Any], bool]) -> None:
        self.left_out: list[str] = []
        self._root = root
        self._tried: dict[str, bool] = {}
        self._round: dict[str, bool] = {}
        self._anchors = dict(_anchors(root))
        self._accepts = compiles

    def sound(self, schema: Any) -> bool:
        """Whether a schema compiles, all its numbers are kept, and no reference in it leads to itself."""
        return not self._circles(schema) and kept_exactly(schema) and self._accepts(schema)

    def node(self, schema: Any, path: str) -> Any:
        """This part of the schema as far as it can be followed."""
        defines = path == "" and isinstance(schema, Mapping) and any(key in schema for key in _DEFINITIONS)
        if not defines and not _crowded_anywhere(schema) and self._follows(schema):
            return schema
        if not isinstance(schema, Mapping):  # false, or no schema at all
            self.left_out.append(f"{json.dumps(schema)[:40]} at '{path or '/'}'")
            return True
        whole = {key: self._inside(key, value, f"{path}/{escaped(key)}") for key, value in schema.items()}
        kept: dict[str, Any] = {}
        for key in sorted(whole, key=lambda key: (key != "type", key in _LAST)):
            if key == "properties" and _crowded(schema):
                self._leave(key, schema, path)
            elif self._follows({**kept, key: whole[key]}):
                kept[key] = whole[key]
            elif key == "oneOf" and "anyOf" not in whole and self._follows({**kept, "anyOf": whole[key]}):
                kept["anyOf"] = whole[key]
                self._leave(key, schema, path)
            else:
                self._leave(key, schema, path)
        missing = [key for key in ("properties", "patternProperties") if _names_of(schema, key) - _names_of(kept, key)]
        if missing and kept.get("additionalProperties", True) is not True:
            del kept["additionalProperties"]  # it would forbid the names of what was left out
        return {key: kept[key] for key in (*schema, "anyOf") if key in kept}  # in the schema's own order

    def _inside(self, key: str, value: Any, path: str) -> Any:
        """A keyword's value with the schemas in it repaired."""
        if key in MAPS and isinstance(value, Mapping):
            return {
                name: self._part(part, f"{path}/{escaped(name)}")
                for name, part in value.items()
                if key != "patternProperties" or self._names(name, path)
            }
        if key in LISTS and isinstance(value, list):
            return [self._part(part, f"{path}/{number}") for number, part in enumerate(value)]
        return self._part(value, path) if key in SINGLE else value

    def _part(self, value: Any, path: str) -> Any:
        return self.node(value, path) if isinstance(value, Mapping) else value

    def _names(self, pattern: str, path: str) -> bool:
        if self._follows({"type": "object", "patternProperties": {pattern: True}}):
            return True
        self.left_out.append(f"'{pattern}' at '{path}'")
        return False

    def _leave(self, key: str, schema: Mapping[str, Any], path: str) -> None:
        if not _says_nothing(key, schema):
            self.left_out.append(f"'{key}' at '{path or '/'}'")

    def _follows(self, schema: Any) -> bool:
        """Whether a part compiles, apart from what its sound references lead to."""
        bare = self._bare(schema)
        if not kept_exactly(bare):
            return False
        text = json.dumps(bare)
        if text not in self._tried:
            if len(self._tried) >= _MOST_TRIALS:
                raise _TooLarge
            self._tried[text] = self.sound(bare)
        return self._tried[text]

    def _bare(self, value: Any) -> Any:
        """The part without sound references, definitions and notes: what is left is often the same as elsewhere."""
        if isinstance(value, list):
            return [self._bare(part) for part in value]
        if not isinstance(value, Mapping):
            return value
        return {
            key: self._bare(part)
            for key, part in value.items()
            if not (key == "$ref" and self._leads_somewhere(part))
            and not (key in _DEFINITIONS and isinstance(part, Mapping))
            and not (key in NOTES and not isinstance(part, Mapping))
        }

    def _leads_somewhere(self, reference: Any) -> bool:
        return isinstance(self._target(reference), Mapping | bool) and not self._circular(reference)

    def _target(self, reference: Any) -> Any:
        """What a reference into this schema means; None for any other."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            return None
        if reference != "#" and not reference.startswith("#/"):
            return self._anchors.get(reference[1:])
        place = self._root
        for step in unquote(reference[2:]).split("/") if reference != "#" else ():
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(place, Mapping) and name in place:
                place = place[name]
            elif isinstance(place, list) and name.isdigit() and int(name) < len(place):
                place = place[int(name)]
            else:
                return None
        return place

    def _circles(self, schema: Any) -> bool:
        return any(self._circular(one) for one in {one for one in _references(schema) if isinstance(one, str)})

    def _circular(self, reference: Any) -> bool:
        """Whether it leads to itself through nothing but references, which no value can follow."""
        goal = self._target(reference)
        if goal is None:
            return False
        if reference not in self._round:
            self._round[reference] = self._returns(goal, goal, set())
        return self._round[reference]

    def _returns(self, schema: Any, goal: Any, seen: set[int]) -> bool:
        """Whether a value of this schema has to be one of `goal` itself."""
        if not isinstance(schema, Mapping) or id(schema) in seen:
            return False
        seen.add(id(schema))
        target = self._target(schema.get("$ref"))
        if target is not None and (target is goal or self._returns(target, goal, seen)):
            return True
        parts = {key: schema[key] for key in ("allOf", "anyOf", "oneOf") if isinstance(schema.get(key), list)}
        return any(
            bool(part) and (any if key == "allOf" else all)(self._returns(one, goal, seen) for one in part)
            for key, part in parts.items()
        )


def _names_of(schema: Mapping[str, Any], key: str) -> set[str]:
    named = schema.get(key)
    return set(named) if isinstance(named, Mapping) else set()


def _crowded(schema: Any) -> bool:
    """Whether an object has more optional properties than can be followed at once."""
    if not isinstance(schema, Mapping):
        return False
    required = schema.get("required")
    demanded = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
    return len(_names_of(schema, "properties") - demanded) > _MOST_OPTIONAL


def _crowded_anywhere(schema: Any) -> bool:
    if isinstance(schema, list):
        return any(map(_crowded_anywhere, schema))
    return isinstance(schema, Mapping) and (_crowded(schema) or any(map(_crowded_anywhere, schema.values())))


def _references(value: Any) -> Iterator[Any]:
    for part in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _references(part)
    if isinstance(value, Mapping) and "$ref" in value:
        yield value["$ref"]


def _anchors(value: Any) -> Iterator[tuple[str, Any]]:
    for part in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _anchors(part)
    if isinstance(value, Mapping) and isinstance(value.get("$anchor"), str):
        yield value["$anchor"], value


def _says_nothing(key: str, schema: Mapping[str, Any]) -> bool:
    """Whether leaving out a keyword allows no more than the schema does."""
    value = schema[key]
    if key == "format":  # an annotation since draft 2019-09
        return True
    if key in ("$dynamicAnchor", "$recursiveAnchor"):
        return True
    if key == "if":
        return "then" not in schema and "else" not in schema
    if key in ("then", "else"):
        return "if" not in schema
    if key in ("minContains", "maxContains"):
        return "contains" not in schema
    if key == "uniqueItems":
        return value is False
    if key == "not":
        return value is False
    if key in ("unevaluatedProperties", "unevaluatedItems", "propertyNames"):
        return value is True or value == {}
    return key in ("dependentRequired", "dependentSchemas", "dependencies") and not value
