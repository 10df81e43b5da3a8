"""JSON schemas with what no grammar can follow: a tool's is loosened and told, a strict format's is refused."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.child.choice.grammar import followed_schema, json_grammar
from serve.child.choice.schema import arguments_of
from serve.server.api.request.bodies import ChatRequest
from serve.server.api.request.forms import form_of
from slm.errors import InputError, UnsupportedError
from tests.served import HELLO, Served, error_of, served

__all__ = ["served"]  # a fixture

S: dict[str, Any] = {"type": "string"}
# keyword: a value of it that says something
REFUSED: dict[str, Any] = {
    "uniqueItems": True, "not": {"const": 1}, "contains": S, "propertyNames": {"pattern": "^a"},
    "dependentRequired": {"a": ["b"]}, "dependentSchemas": {"a": {"required": ["b"]}}, "dependencies": {"a": ["b"]},
    "unevaluatedProperties": False, "unevaluatedItems": False, "$dynamicRef": "#x", "$recursiveRef": "#",
    "$ref": "https://example.com/a.json", "pattern": "(?=a)b", "multipleOf": 0, "type": "String", "maxLength": "3",
}  # fmt: skip
MISTAKES = ("type", "maxLength")  # which no reader of schemas could follow


def tool(name: str, parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def asked(served: Served, *tools: Any, **fields: Any) -> Any:
    body = {"model": "en", "messages": HELLO, "tools": list(tools), "max_tokens": 300, "temperature": 2, "seed": 3}
    return served.post("/v1/chat/completions", {**body, **fields})


def calls_of(reply: Any) -> list[dict[str, Any]]:
    assert reply.status_code == 200, reply.text
    choice = reply.json()["choices"][0]
    if choice["finish_reason"] == "length":
        return []
    return [json.loads(call["function"]["arguments"]) for call in choice["message"]["tool_calls"]]


def defined(reference: str, **definitions: Any) -> dict[str, Any]:
    properties = {"x": {"$ref": reference}, "y": S}
    return {"type": "object", "properties": properties, "required": ["x", "y"], "$defs": definitions}


A: dict[str, Any] = {"$ref": "#/$defs/A"}
CIRCLES: dict[str, Any] = {
    "itself": defined("#/$defs/A", A=A),
    "by another": defined("#/$defs/A", A={"$ref": "#/$defs/B"}, B=A),
    "with siblings": defined("#/$defs/A", A={**A, "type": "string"}),
    "in all of": defined("#/$defs/A", A={"allOf": [A, S]}),
    "in the only one of": defined("#/$defs/A", A={"anyOf": [A]}),
    "by an anchor": defined("#a", A={"$anchor": "a", "$ref": "#a"}),
    "the root": {"type": "object", "$ref": "#"},
}


@pytest.mark.parametrize("circle", CIRCLES)
def test_a_reference_that_leads_to_itself_is_left_out_and_told_or_refused(served: Served, circle: str) -> None:
    schema = CIRCLES[circle]
    followed = followed_schema(schema)
    assert followed.left_out and all(part.startswith("'$ref' at '/") for part in followed.left_out)
    assert followed.schema.get("required") == schema.get("required")
    with pytest.raises(UnsupportedError, match=r"cannot be followed: '\$ref' at '/") as error:
        json_grammar(schema)
    assert "%" not in str(error.value)
    reply = asked(served, tool("look", schema), tool_choice="required")
    calls_of(reply)
    told = reply.json()["slm"]["not_enforced"]
    assert told == [f"tools[0] (look): {part}" for part in followed.left_out]


@pytest.mark.parametrize(
    "schema",
    [
        defined("#/$defs/A", A={"type": "object", "properties": {"next": A}}),
        defined("#/$defs/A", A={"anyOf": [S, {"type": "array", "items": A}]}),
        {"type": "array", "items": {"$ref": "#"}},
    ],
)
def test_a_schema_of_trees_is_followed_as_it_is(schema: Any) -> None:
    assert followed_schema(schema).schema == schema and not followed_schema(schema).left_out


# --- numbers and sizes ------------------------------------------------------------------------------------------

BIG = 2**53 + 1


@pytest.mark.parametrize(
    ("schema", "left_out"),
    [
        ({"enum": [1, 1234567890123456789]}, "'enum'"), ({"const": BIG}, "'const'"),
        ({"const": {"a": [-BIG]}}, "'const'"),
        ({"const": 2**63}, "'const'"), ({"const": -(2**63)}, "'const'"), ({"const": -(2.0**63)}, "'const'"),
        ({"const": 10**400}, "'const'"), ({"type": "integer", "minimum": BIG}, "'minimum'"),
        ({"type": "integer", "minimum": 2**63 + 10, "maximum": 2**63 + 20}, "'minimum'"),
        ({"type": "integer", "minimum": 10**30, "maximum": 10**30 + 5}, "'minimum'"),
        ({"type": "number", "exclusiveMaximum": BIG, "minimum": 0}, "'exclusiveMaximum'"),
        ({"type": "number", "minimum": 0, "maximum": 2**63}, "'maximum'"),
        ({"type": "integer", "multipleOf": BIG}, "'multipleOf'"),
    ],
)  # fmt: skip
def test_a_number_that_would_become_another_is_refused_by_its_place(schema: Any, left_out: str) -> None:
    whole = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    assert followed_schema(whole).left_out == (f"{left_out} at '/properties/a'",)
    with pytest.raises(UnsupportedError, match=rf"cannot be followed: {left_out} at '/properties/a'"):
        json_grammar(whole)


@pytest.mark.parametrize(
    "schema",
    [
        {"const": 2**53}, {"const": 2**60}, {"enum": [-(2**62), 0.1, 1e300, 10**22, True, None, "9007199254740993"]},
        {"type": "integer", "minimum": -(2**53), "maximum": 2**53 - 1}, {"default": BIG, "examples": [BIG]},
        {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}, {"properties": {"const": {"type": "integer"}}},
    ],
)  # fmt: skip
def test_a_number_that_stays_itself_is_followed(schema: Any) -> None:
    assert followed_schema(schema).left_out == () and followed_schema(schema).schema == schema


@pytest.mark.parametrize(
    ("kind", "count"),
    [("string", "maxLength"), ("string", "minLength"), ("array", "maxItems"), ("array", "minItems")],
)
def test_a_count_with_a_point_is_an_integer_as_json_schema_has_it(kind: str, count: str) -> None:
    schema = {"type": kind, count: 5.0}
    assert followed_schema(schema).schema == {"type": kind, count: 5} and not followed_schema(schema).left_out
    assert followed_schema({"type": kind, count: 5.5}).left_out == (f"'{count}' at '/'",)


def test_more_optional_properties_than_can_be_followed_are_named_before_an_answer_begins(served: Served) -> None:
    many = {f"p{n}": {"type": "integer"} for n in range(2000)}
    inner = {"type": "object", "properties": many, "additionalProperties": False}
    schema = {"type": "object", "properties": {"a": inner}, "required": ["a"]}
    reply = formatted(served, schema, strict=True)
    assert reply.status_code == 400 and error_of(reply)["param"] == "response_format"
    told = "this JSON schema cannot be followed: 'properties' at '/properties/a'"
    assert error_of(reply)["message"].startswith(f"response_format: {told}")
    assert followed_schema(schema).left_out == ("'properties' at '/properties/a'",)
    assert "additionalProperties" not in followed_schema(schema).schema["properties"]["a"]
    assert not followed_schema({**inner, "required": list(many)}).left_out


def alternatives(count: int, width: int, **more: Any) -> dict[str, Any]:
    """Objects of optional properties, each with names of its own."""
    return {
        "anyOf": [
            {"type": "object", "properties": {f"a{n}_{m}": {"type": "integer"} for m in range(width)}, **more}
            for n in range(count)
        ]
    }


@pytest.mark.parametrize(("count", "width"), [(8, 30), (16, 60), (8, 230)])
def test_an_answer_is_one_of_several_wide_objects(served: Served, count: int, width: int) -> None:
    schema = alternatives(count, width, minProperties=0, additionalProperties=False)
    for strict in (True, False):
        reply = formatted(served, schema, strict=strict)
        assert reply.status_code == 200, reply.text
        choice = reply.json()["choices"][0]
        if choice["finish_reason"] != "length":
            jsonschema_rs.validate(schema, json.loads(choice["message"]["content"]))


def test_objects_too_wide_together_are_refused_by_the_field_that_asked_with_what_to_do(served: Served) -> None:
    wide = alternatives(8, 400)
    asked_for = {"type": "json_schema", "json_schema": {"name": "x", "schema": wide, "strict": True}}
    of_text = {"type": "json_schema", "name": "x", "schema": wide, "strict": True}
    body = {"model": "en", "messages": HELLO, "max_tokens": 100, "seed": 1}
    replies = {
        "response_format": served.post("/v1/chat/completions", {**body, "response_format": asked_for}),
        "guided_json": served.post("/v1/completions", {"prompt": "a", "model": "en", "guided_json": wide}),
        "text.format": served.post("/v1/responses", {"model": "en", "input": "Hello", "text": {"format": of_text}}),
    }
    for field, reply in replies.items():
        assert reply.status_code == 400, reply.text
        error = error_of(reply)
        assert error["param"] == field
        assert error["message"].startswith(f"{field}: the form that the answer must have is too wide to be followed")
        assert "at most 8,000" in error["message"] and "fewer optional properties" in error["message"]
    called = {"messages": HELLO, "tools": [tool("f", {"type": "object", **wide})]}
    for tool_choice, field in (("auto", "response_format"), ("required", "tools"), ("none", "response_format")):
        formats = {} if tool_choice == "required" else {"response_format": asked_for}
        request = ChatRequest.model_validate({**called, "tool_choice": tool_choice, **formats})
        form = form_of(request)
        assert request.sampling(grammar=form.grammar, grammar_field=form.field).grammar_field == field


# --- what is left out -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keyword", REFUSED)
def test_one_keyword_is_left_out_and_named_by_its_place(keyword: str) -> None:
    inner = {"maxItems": 2, keyword: REFUSED[keyword]}
    schema = {"type": "object", "properties": {"a/b": {"type": "array", "items": inner}, "c": S}, "required": ["c"]}
    followed = followed_schema(schema)
    assert followed.left_out == (f"'{keyword}' at '/properties/a~1b/items'",)
    good = {"type": "object", "properties": {"a/b": {"type": "array", "items": {"maxItems": 2}}, "c": S}}
    assert followed.schema == {**good, "required": ["c"]}
    kind, told = (InputError, "has a mistake") if keyword in MISTAKES else (UnsupportedError, "cannot be followed")
    with pytest.raises(kind, match=f"{told}: '") as error:
        json_grammar(schema)
    assert followed.left_out[0] in str(error.value) and "%" not in str(error.value)


@pytest.mark.parametrize(
    ("schema", "left_out"),
    [
        ({"anyOf": [S, {"not": S}]}, ["'not' at '/anyOf/1'"]),
        ({"allOf": [{"if": S, "then": {"maxLength": 2}, "else": False}]},
         ["'if' at '/allOf/0'", "'then' at '/allOf/0'", "'else' at '/allOf/0'"]),
        ({"$defs": {"a": {"items": {"$ref": "#/$defs/b"}}, "b": {"not": S}}, "$ref": "#/$defs/a"},
         ["'not' at '/$defs/b'"]),
        ({"definitions": {"a": {"uniqueItems": True, "items": {"$ref": "#/definitions/a"}}}, "$ref": "#/definitions/a"},
         ["'uniqueItems' at '/definitions/a'"]),
        ({"properties": {"a": {"$ref": "#/$defs/gone"}}}, ["'$ref' at '/properties/a'"]),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, ["'oneOf' at '/'"]),
        ({"patternProperties": {"(?=a)": S, "^b": S}, "additionalProperties": False},
         ["'(?=a)' at '/patternProperties'"]),
        ({"type": "object", "properties": {"a": S}, "minProperties": 1}, ["'minProperties' at '/'"]),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, ["'required' at '/'"]),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, ["'allOf' at '/'"]),
        ({"prefixItems": [S, {"contains": S}], "minItems": 2}, ["'contains' at '/prefixItems/1'"]),
    ],
)  # fmt: skip
def test_every_corner_of_a_schema_is_mended(schema: Any, left_out: list[str]) -> None:
    followed = followed_schema(schema)
    assert list(followed.left_out) == left_out
    json_grammar(followed.schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "format": "binary"}, {"type": "string", "format": "日本"}, {"format": "uri-reference"},
        {"if": {"const": 1}}, {"then": {"const": 1}}, {"minContains": 2}, {"uniqueItems": False}, {"not": False},
        {"$dynamicAnchor": "x"}, {"unevaluatedProperties": {}}, {"propertyNames": True}, {"dependentRequired": {}},
        {"items": {"enum": []}}, {"anyOf": [{"type": "string"}, {"enum": []}]},
        {"type": "string", "deprecated": True, "x-order": 1, "nullable": True, "discriminator": {}},
    ],
)  # fmt: skip
def test_what_says_nothing_is_no_reason_to_refuse(schema: Any) -> None:
    json_grammar({"type": "object", "properties": {"a": schema}})
    assert followed_schema({"properties": {"a": schema}}).left_out == ()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("abc", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
_KEYWORDS: dict[str, Any] = {
    "type": st.sampled_from(["string", "object", "array", "integer"]), "enum": st.lists(VALUES, max_size=3),
    "uniqueItems": st.booleans(), "minProperties": st.integers(0, 2), "required": st.just(["a"]),
    "pattern": st.sampled_from(["^a", "(?!b)", "\\bc"]), "maximum": st.integers(0, 5), "minimum": st.integers(0, 5),
}  # fmt: skip


def _schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    nested = {
        "not": inner, "if": inner, "then": inner, "contains": inner, "items": inner, "propertyNames": inner,
        "additionalProperties": inner, "anyOf": st.lists(inner, min_size=1, max_size=2),
        "oneOf": st.lists(inner, min_size=1, max_size=2), "allOf": st.lists(inner, min_size=1, max_size=2),
        "properties": st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
        "patternProperties": st.dictionaries(st.sampled_from(["^a", "(?=b)"]), inner, max_size=2),
    }  # fmt: skip
    return st.fixed_dictionaries({}, optional={**_KEYWORDS, **nested})


SCHEMAS = st.recursive(st.fixed_dictionaries({}, optional=_KEYWORDS), _schemas, max_leaves=4)


@settings(deadline=None, max_examples=120)
@given(schema=SCHEMAS, value=VALUES)
def test_whatever_a_schema_allows_is_allowed_without_what_was_left_out(schema: Any, value: Any) -> None:
    followed = followed_schema(schema)
    json_grammar(followed.schema)
    if jsonschema_rs.is_valid(schema, value):
        jsonschema_rs.validate(followed.schema, value)
    if not followed.left_out and not jsonschema_rs.is_valid(schema, value):
        assert not jsonschema_rs.is_valid(followed.schema, value)


def test_a_large_schema_is_mended_in_a_moment_and_a_huge_one_is_let_go() -> None:
    def large(count: int) -> dict[str, Any]:
        fields = {f"q{n}": {"type": "string", "description": str(n), "not": {"const": "x"}} for n in range(20)}
        return {"properties": {f"p{n}": {"properties": fields, "minItems": n} for n in range(count)}}

    followed = followed_schema(large(10))
    assert len(followed.left_out) == 200 and set(followed.schema) == {"properties"}
    assert followed_schema(large(2000), rest={"type": "object"}).schema == {"type": "object"}


# --- tools ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keyword", REFUSED)
def test_one_keyword_of_one_tool_never_fails_the_chat(served: Served, keyword: str) -> None:
    bad = tool("bad", {"type": "object", "properties": {"a": {keyword: REFUSED[keyword]}}})
    good = tool("good", {"type": "object", "properties": {"x": {"const": 1}}, "required": ["x"]})
    body = asked(served, good, bad, max_tokens=3).json()
    assert body["slm"]["not_enforced"] == [f"tools[1] (bad): '{keyword}' at '/properties/a'"]
    named = {"type": "function", "function": {"name": "good"}}
    for arguments in calls_of(asked(served, good, bad, tool_choice=named)):
        assert arguments["x"] == 1
    assert "not_enforced" not in asked(served, good, max_tokens=3).json()["slm"]


@pytest.mark.parametrize("keyword", ["binary", "password", "path", "uri-reference", "int64", "日本"])
def test_an_unknown_format_is_an_annotation(served: Served, keyword: str) -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "string", "format": keyword}}}
    body = asked(served, tool("save", parameters), max_tokens=3).json()
    assert "not_enforced" not in body["slm"]


CLOSED: dict[str, Any] = {"properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}


@pytest.mark.parametrize(
    "parameters",
    [
        CLOSED, {**CLOSED, "type": None}, {**CLOSED, "type": ["object", "null"]}, {**CLOSED, "type": "OBJECT"},
        {"$ref": "#/$defs/a", "$defs": {"a": CLOSED}}, {"anyOf": [CLOSED, {"type": "string"}]},
        {"oneOf": [{"type": "null"}, {"type": "object", **CLOSED}]}, {"allOf": [CLOSED, {"if": {}, "then": {}}]},
    ],
)  # fmt: skip
def test_arguments_are_an_object_whatever_the_parameters_leave_unsaid(served: Served, parameters: Any) -> None:
    found = []
    for seed in range(3):
        found += calls_of(asked(served, tool("f", parameters), tool_choice="required", seed=seed))
    assert found and all(arguments in ({"a": 1}, {"a": 2}) for arguments in found)


@pytest.mark.parametrize("parameters", [{}, {"type": "object"}, {"enum": [1]}, {"type": "object", "const": 3}])
def test_parameters_that_say_nothing_of_use_are_any_object(served: Served, parameters: Any) -> None:
    reply = asked(served, tool("f", parameters), tool_choice="required", max_tokens=60, logit_bias={})
    text = reply.json()["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]
    assert text.startswith("{")


def test_no_parameters_are_none(served: Served) -> None:
    assert calls_of(asked(served, {"type": "function", "function": {"name": "f"}}, tool_choice="required")) == [{}] or (
        calls_of(asked(served, tool("f", None), tool_choice="required"))[0] == {}
    )


@pytest.mark.parametrize("kind", ["string", "array", ["string", "null"], "null"])
def test_parameters_that_are_no_object_name_the_tool(served: Served, kind: Any) -> None:
    reply = asked(served, tool("f", {"type": kind}))
    assert reply.status_code == 400 and "the parameters of the tool 'f'" in error_of(reply)["message"]
    with pytest.raises(InputError):
        arguments_of("f", {"type": kind})


def test_allowed_tools_are_the_only_ones_that_are_called(served: Served) -> None:
    tools = [tool(name, {"type": "object", "properties": {}, "additionalProperties": False}) for name in "abc"]
    names = [{"type": "function", "function": {"name": name}} for name in "bc"]
    flat = [{"type": "function", "name": name} for name in "bc"]
    choices: list[Any] = [
        {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": names}},
        {"type": "allowed_tools", "mode": "required", "tools": flat},
    ]
    for choice in choices:
        called = set()
        for seed in range(6):
            reply = asked(served, *tools, tool_choice=choice, seed=seed, parallel_tool_calls=False)
            called |= {call["function"]["name"] for call in reply.json()["choices"][0]["message"]["tool_calls"]}
        assert called and called <= {"b", "c"}
    unknown = {"type": "allowed_tools", "mode": "auto", "tools": [{"name": "z"}]}
    assert "'z', which is not among the tools" in error_of(asked(served, *tools, tool_choice=unknown))["message"]
    flat_name = asked(served, *tools, tool_choice={"type": "function", "name": "a"})
    assert flat_name.json()["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "a"


# --- formats ----------------------------------------------------------------------------------------------------


def formatted(served: Served, schema: Any, **fields: Any) -> Any:
    asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **fields}}
    return served.chat("Hello", model="en", response_format=asked, max_tokens=200, temperature=2, seed=1)


def test_a_strict_format_is_refused_by_keyword_and_place_and_another_is_told(served: Served) -> None:
    schema = {"type": "object", "properties": {"tags": {"type": "array", "items": {"enum": [1]}, "uniqueItems": True}},
              "required": ["tags"], "additionalProperties": False}  # fmt: skip
    strict = formatted(served, schema, strict=True)
    assert strict.status_code == 400
    message = error_of(strict)["message"]
    assert message.startswith("response_format: this JSON schema cannot be followed: 'uniqueItems' at '/properties/tag")
    assert not any(text in message for text in ("%json", "start:", "Unimplemented"))
    loose = formatted(served, schema)
    assert loose.json()["slm"]["not_enforced"] == ["response_format: 'uniqueItems' at '/properties/tags'"]
    assert set(json.loads(loose.json()["choices"][0]["message"]["content"])) == {"tags"}
    assert formatted(served, {"type": "object", "format": "zzz"}, strict=True).status_code == 200
