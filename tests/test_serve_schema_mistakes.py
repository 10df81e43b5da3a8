"""Schemas with mistakes in them, and with the words of older drafts."""

from __future__ import annotations

from typing import Any

import pytest

from serve.child.choice.grammar import followed_schema, json_grammar, loose_json_grammar
from serve.child.choice.keywords import mistakes
from serve.child.choice.numbers import today
from slm.errors import InputError

S = {"type": "string"}


@pytest.mark.parametrize(("schema", "told"), [
    ({"type": "string", "minLenght": 3}, "'minLenght' at '/' is no keyword (is 'minLength' meant?)"),
    ({"type": "object", "propertys": {"a": S}}, "'propertys' at '/' is no keyword (is 'properties' meant?)"),
    ({"properties": {"a/b": {"Required": ["a"]}}}, "'Required' at '/properties/a~1b' is no keyword"),
    ({"anyOf": [S, {"type": ["string", "text"]}]}, "'type' at '/anyOf/1' is [\"string\", \"text\"], not one of object"),
    ({"type": "object", "required": "a"}, "'required' at '/' is \"a\", not a list of names"),
    ({"type": "array", "items": {"minItems": -1}}, "'minItems' at '/items' is -1, not a whole number from 0"),
    ({"properties": [1]}, "'properties' at '/' is [1], not an object of schemas"),
    ({"enum": "a"}, "'enum' at '/' is \"a\", not a list"), ({"ref": "#"}, "(is '$ref' meant?)"),
    ({"type": "number", "exclusiveMinimum": True}, "'exclusiveMinimum' at '/' is true, not a number"),
])  # fmt: skip
def test_a_mistake_in_a_schema_is_named_by_its_place(schema: Any, told: str) -> None:
    with pytest.raises(InputError) as error:
        json_grammar(schema)
    assert str(error.value).startswith("this JSON schema has a mistake: '") and told in str(error.value)


def test_where_it_need_not_be_followed_a_mistake_is_told() -> None:
    grammar, left_out = loose_json_grammar({"type": "object", "properties": {"a": {"type": "string", "minLenght": 3}}})
    assert grammar and left_out == ["'minLenght' at '/properties/a' is no keyword (is 'minLength' meant?)"]


@pytest.mark.parametrize("own", ["x-order", "unit", "note", "ids", "tsType", "enumNames", "propertyOrdering", "titel"])
def test_an_annotation_of_ones_own_is_no_mistake(own: str) -> None:
    assert json_grammar({"type": "string", own: "any"}) and not list(mistakes({"type": "string", own: "any"}))


@pytest.mark.parametrize(("old", "new"), [
    ({"minimum": 0, "exclusiveMinimum": True}, {"exclusiveMinimum": 0}),
    ({"maximum": 9, "exclusiveMaximum": True, "minimum": 1}, {"exclusiveMaximum": 9, "minimum": 1}),
    ({"minimum": 0, "exclusiveMinimum": False}, {"minimum": 0}),
])  # fmt: skip
def test_bounds_of_draft_4_are_followed(old: Any, new: Any) -> None:
    whole = {"type": "object", "properties": {"a": {"type": "integer", **old}}, "required": ["a"]}
    assert followed_schema(whole).schema["properties"]["a"] == {"type": "integer", **new}
    assert not followed_schema(whole).left_out


def test_values_and_names_that_look_like_bounds_stay_what_they_are() -> None:
    value = {"minimum": 0, "exclusiveMinimum": True, "maxLength": 5.0}
    named = {"minimum": {"type": "integer"}, "exclusiveMinimum": False, "exclusiveMaximum": True}
    schema = {
        "properties": {"a": {"const": value}, "b": {"enum": [value]}, "c": {"default": value, "properties": named}}
    }
    assert today(schema) == schema and list(today(schema)["properties"]["c"]["properties"]) == list(named)
