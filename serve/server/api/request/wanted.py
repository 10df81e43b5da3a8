"""What form an answer is asked to have, in OpenAI's, vLLM's and llama-server's words.

It knows nothing of tools, and nothing of how a form is followed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field

from serve.server.api.request.fields import Fields, Off, refused
from slm.errors import InputError

Kind = Literal["json", "regex", "choice", "grammar"]


@dataclass(frozen=True)
class WantedForm:
    """field: where it was asked for. strict: what cannot be followed is refused instead of being left out."""

    kind: Kind
    value: Any
    field: str
    strict: bool = True


class JsonSchema(Fields):
    """json_schema of a response_format. strict: refuse a schema that cannot be followed to the letter."""

    harmless = frozenset({"description"})

    name: str = ""
    strict: bool = False
    schema_: dict[str, Any] | bool = Field(default=True, alias="schema")


class ResponseFormat(Fields):
    """What form the answer has; llama-server's `schema` beside json_object works too."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")

    @classmethod
    def renamed(cls, given: dict[str, Any]) -> dict[str, Any]:
        # Fields of another kind are not what is wrong with it.
        known = ("text", "json_object", "json_schema")
        kind = given.get("type", "text")
        if kind not in known:
            raise refused("type", f"{str(kind)[:60]!r} is not one of {', '.join(map(repr, known))}")
        return given

    def wanted_as(self, field: str) -> WantedForm | None:
        """None for free text. field: where the client wrote this. Raises InputError when a json_schema has none."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return WantedForm("json", self.schema_ or {"type": "object"}, field, strict=False)
        if self.json_schema is None:
            raise InputError(f"{field}.json_schema: is missing, which the type json_schema needs")
        asked = self.json_schema
        return WantedForm("json", asked.schema_, field, strict=asked.strict)


class StructuredOutputs(Fields):
    """vLLM's structured_outputs: one of its fields."""

    off: ClassVar[Off] = {
        "disable_fallback": (False,), "disable_any_whitespace": (False,), "disable_additional_properties": (False,),
        "whitespace_pattern": (), "structural_tag": (), "json_object": (False,),
    }  # fmt: skip

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None

    @classmethod
    def renamed(cls, given: dict[str, Any]) -> dict[str, Any]:
        if given.get("json_object") is True:
            given.setdefault("json", {"type": "object"})
            del given["json_object"]
        return given

    @property
    def asked(self) -> list[tuple[Kind, Any, str]]:
        """Each form that it could ask for, what it asks, and where that stands."""
        return [
            ("json", self.json_, "structured_outputs.json"), ("regex", self.regex, "structured_outputs.regex"),
            ("choice", self.choice, "structured_outputs.choice"),
            ("grammar", self.grammar, "structured_outputs.grammar"),
        ]  # fmt: skip


class Shaped(Fields):
    """The fields that ask for a form of the answer. format_field: what the client calls `response_format`."""

    format_field: ClassVar[str] = "response_format"

    response_format: ResponseFormat = ResponseFormat()
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    grammar: str | None = Field(None, description="GBNF, as llama-server")
    json_schema: dict[str, Any] | None = Field(None, description="As llama-server")

    @property
    def wanted(self) -> WantedForm | None:
        """What the answer has to be; None: free text. Raises InputError when it is asked for twice."""
        inner = self.structured_outputs.asked if self.structured_outputs else []
        asked: list[tuple[Kind, Any, str]] = [
            *inner, ("json", self.guided_json, "guided_json"),
            ("regex", self.guided_regex, "guided_regex"), ("choice", self.guided_choice, "guided_choice"),
            ("grammar", self.guided_grammar, "guided_grammar"), ("grammar", self.grammar or None, "grammar"),
            ("json", self.json_schema, "json_schema"),
        ]  # fmt: skip
        given = [WantedForm(kind, value, field) for kind, value, field in asked if value is not None]
        if formatted := self.response_format.wanted_as(self.format_field):
            given.append(formatted)
        if len(given) > 1:
            others = " and ".join(one.field for one in given[:-1])
            raise InputError(f"{given[-1].field}: an answer has one form, and {others} asks for one as well")
        return _parsed(given[0]) if given else None


def _parsed(wanted: WantedForm) -> WantedForm:
    """A JSON schema may come as a text."""
    if wanted.kind != "json" or not isinstance(wanted.value, str):
        return wanted
    try:
        value = json.loads(wanted.value)
    except RecursionError as error:
        raise InputError(f"{wanted.field}: is nested too deep to be read") from error
    except ValueError as error:
        raise InputError(f"{wanted.field}: is no JSON", found=str(error)[:200]) from error
    if not isinstance(value, Mapping | bool):
        raise InputError(f"{wanted.field}: has to be a JSON schema")
    return WantedForm("json", value, wanted.field)
