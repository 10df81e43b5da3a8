"""Answers held to a form, whatever the model would say: random logits over small and over real vocabularies."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.child.choice.gbnf import endless_rules
from serve.child.choice.grammar import calls_grammar, json_grammar, text_grammar
from serve.child.choice.sampling import Sampler, Vocabulary, vocabulary_of
from serve.child.spelling.text import TextStream
from serve.server.api.answer.calls import CallStream
from slm.errors import InputError, UnsupportedError
from slm.joints import SamplingOptions
from slm.native.llama import open_model, tokenize
from tests.tiny_gguf import BYTES, EOS, LETTERS, MARKERS, SPECIAL, write_model

NAMES = st.text("abcxyz_日", min_size=1, max_size=4)
FUNCTIONS = st.text("abc-_9", min_size=1, max_size=5)
LEAVES = st.sampled_from([
    {"type": "string", "maxLength": 5}, {"type": "integer", "minimum": -20, "maximum": 300}, {"type": "boolean"},
    {"type": "null"}, {"type": "number"}, {"enum": ["a", 1, None, {"b": [2]}]}, {"const": "日本\n\"x\""},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,3}$"}, {"type": "string", "format": "date"},
])  # fmt: skip


def _objects(inside: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def build(properties: dict[str, Any], count: int) -> dict[str, Any]:
        required = sorted(properties)[:count]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    return st.builds(build, st.dictionaries(NAMES, inside, max_size=3), st.integers(0, 3))


SCHEMAS = st.recursive(
    LEAVES,
    lambda inside: st.one_of(
        _objects(inside),
        st.builds(lambda items, most: {"type": "array", "items": items, "maxItems": most}, inside, st.integers(0, 3)),
        st.builds(lambda *either: {"anyOf": list(either)}, inside, inside),
    ),
    max_leaves=6,
)


def tiny() -> Vocabulary:
    """The vocabulary of tests/tiny_gguf.py: bytes twice over, as SentencePiece with byte tokens has them."""
    text = [bytes([n]) for n in range(256)] + [b" " if letter == "▁" else letter.encode() for letter in LETTERS]
    count = len(SPECIAL) + len(BYTES) + len(LETTERS) + len(MARKERS)
    text[0xC0] = b""  # as slm.native.llama.token_bytes has it
    plain = dict(enumerate(text, len(SPECIAL)))
    return Vocabulary(count, frozenset({EOS, count - 1}), lambda t, special: plain.get(t, b"<x>" if special else b""))


TINY = tiny()


def validate(schema: Any, text: str) -> None:
    limit = sys.float_info.max  # a number beyond the doubles is valid JSON all the same
    jsonschema_rs.validate(schema, json.loads(text, parse_float=lambda d: max(-limit, min(float(d), limit))))


def closing(vocabulary: Vocabulary) -> Any:
    """A leaning towards what ends strings, numbers and lists, so that answers over a large vocabulary end at all."""
    lean = np.zeros(vocabulary.size, np.float32)
    for token in range(vocabulary.size):
        piece = vocabulary.piece(token)
        lean[token] = 9.0 if piece and piece.strip(b' \n"') in (b"", b"}", b"]", b"1", b"a", b"}]") else 0.0
    return lean


def answer(
    vocabulary: Vocabulary, grammar: str, seed: int, lean: Any, *, begin: str = "", limit: int = 300, top_k: int = 0
) -> tuple[str, bool]:
    """An answer at temperature 2 to random logits, and whether it ended by itself. begin: how it is made to begin."""
    options = SamplingOptions(temperature=2.0, top_k=top_k, top_p=1.0, min_p=0.0, seed=seed, grammar=grammar)
    sampler, stream, random = Sampler(options, [], vocabulary), TextStream(), np.random.default_rng(seed)
    noise = random.normal(0, 3, vocabulary.size).astype(np.float32)
    text = ""
    for _ in range(limit):
        logits = np.roll(noise, random.integers(vocabulary.size)) + lean
        if wanted := begin.encode()[len(text.encode()) :]:
            for token in range(vocabulary.size):
                if vocabulary.piece(token) == wanted[:1]:
                    logits[token] += 1000
        picked = sampler.pick(logits)
        if picked.token in vocabulary.eog:
            return text + stream.flush(), True
        text += stream.feed(vocabulary.piece(picked.token))
        if picked.end:
            return text + stream.flush(), True
    return text, False


@settings(deadline=None, max_examples=60)
@given(schema=SCHEMAS, seed=st.integers(0, 2**32 - 1))
def test_every_answer_that_ended_is_valid(schema: Any, seed: int) -> None:
    text, ended = answer(TINY, json_grammar(schema), seed, closing(TINY))
    if ended:
        validate(schema, text)
    else:
        assert len(text) > 250 or "\ufffd" in text or text


@settings(deadline=None, max_examples=20)
@given(
    schemas=st.dictionaries(FUNCTIONS, st.none() | _objects(LEAVES), min_size=1, max_size=3),
    seed=st.integers(0, 2**32 - 1),
    many=st.booleans(),
    begin=st.sampled_from(["<tool_call>", "Hm. <tool_call>", None]),
)
def test_a_call_that_began_is_a_call_of_a_known_function(
    schemas: dict[str, Any], seed: int, many: bool, begin: str | None
) -> None:
    grammar = calls_grammar(schemas, needed=begin is None, many=many)
    text, ended = answer(TINY, grammar, seed, closing(TINY), begin=begin or "", limit=400)
    stream = CallStream()
    said = "".join(d.get("content", "") for d in [*stream.feed(text), *stream.flush()])
    assert said.strip() == (begin or "").removesuffix("<tool_call>").strip(), (schemas, seed, many, begin, text, ended)
    if ended:
        assert stream.calls and (many or len(stream.calls) == 1)
        for call in stream.calls:
            validate(schemas[call.name] or {"const": {}}, call.arguments)


@pytest.mark.real
@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma-3-270m"])
def test_real_vocabularies_write_valid_json(pulled_model: Callable[[str], Path], name: str) -> None:
    """Byte-level BPE and SentencePiece with byte tokens; characters of several tokens among them."""
    schema = {
        "type": "object",
        "properties": {"city": {"const": "京都 🍵"}, "notes": {"type": "array", "items": {"type": "string"}},
                       "n": {"type": "integer"}},
        "required": ["city", "notes", "n"], "additionalProperties": False,
    }  # fmt: skip
    with ExitStack() as stack:
        model = open_model(stack, pulled_model(name), vocab_only=True)
        vocabulary = vocabulary_of(model)
        lean, grammar = closing(vocabulary), json_grammar(schema)
        ended = 0
        for seed in range(3):
            text, whole = answer(vocabulary, grammar, seed, lean, top_k=500, limit=150)
            ended += whole
            if whole:
                validate(schema, text)
        assert ended >= 1
        options = SamplingOptions(grammar=json_grammar({"const": {"a": "日本"}}))
        sampler = Sampler(options, [], vocabulary)
        wanted = tokenize(model, '{"a":"日本"}', add_special=False, parse_special=False)
        for number, token in enumerate(wanted):  # the model's own way to write it is allowed, token by token
            logits = np.zeros(vocabulary.size, np.float32)
            logits[token] = 10.0
            picked = sampler.pick(logits)
            assert picked.token == token, (picked.token, vocabulary.piece(token))
            assert picked.end == (number == len(wanted) - 1)


def test_a_vocabulary_read_from_a_model_is_the_tiny_one(tmp_path: Path) -> None:
    with ExitStack() as stack:
        read = vocabulary_of(open_model(stack, write_model(tmp_path / "m.gguf"), vocab_only=True))
        assert read.size == TINY.size and read.eog == TINY.eog
        assert [read.piece(token) for token in range(read.size)] == [TINY.piece(t) for t in range(read.size)]


@pytest.mark.parametrize(("schema", "reason"), [
    ({"if": {}, "else": {"type": "null"}}, "'if' at '/'"), (False, "false at '/'"),
    ({"$ref": "http://example.com/x"}, "cannot be followed"), ({"type": "string", "pattern": "(?<=a)b"}, "'pattern'"),
])  # fmt: skip
def test_a_schema_that_cannot_be_followed_says_why(schema: Any, reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        json_grammar(schema)


def test_a_schema_cannot_loosen_its_own_form() -> None:
    loose = {"x-guidance": {"lenient": True}, "type": "object", "not": {"required": ["a"]}}
    with pytest.raises(UnsupportedError, match="'not' at '/'"):
        json_grammar(loose)
    deep: Any = {"type": "string"}
    for _ in range(3000):
        deep = {"type": "array", "items": deep}
    with pytest.raises(InputError):
        json_grammar(deep)


def test_functions_may_refer_to_their_own_definitions() -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/b"}}, "required": ["a"],
              "additionalProperties": False, "$defs": {"b": {"enum": [1, 2]}}}  # fmt: skip
    text, ended = answer(TINY, calls_grammar({"f": schema, "g": schema}, needed=True, many=False), 1, closing(TINY))
    stream = CallStream()
    stream.feed(text)
    assert ended and json.loads(stream.calls[0].arguments)["a"] in (1, 2)


@pytest.mark.parametrize(
    ("grammar", "named"),
    [
        ("root ::= root", ["root"]), ("root ::= x\nx ::= root", ["root", "x"]),
        ('root ::= "a" x\nx ::= x # "b"', ["x"]), ('root ::= (root "a") | (root)', ["root"]),
        ('root ::= "" root', ["root"]), ('root ::= "a" | "b" x\nx ::= (((x "a"*)){3})', ["x"]),
        ("root ::= x{2}\nx ::= ((y)) [a]\ny ::= x", ["root", "x", "y"]),
        ('root ::= root "a" | "b"', []), ("root ::= ( | root)", []), ('root ::= root? "b"', []),
        ('root ::= "a" root', []), ('root ::=\n "a" |\n x-y\nx-y ::= "::=" root', []),
        ('root ::= root{0,3} "a"', []), ('root ::= root{,3} "a"', []), ('root ::= (root "x")* "a"', []),
        ('root ::= [a-z"(]+ ("," [0-9]{1,3})*', []), ("root ::= . root", []), ("root ::= nothing", []),
    ],
)  # fmt: skip
def test_a_rule_that_leads_to_itself_before_any_character_is_found(grammar: str, named: list[str]) -> None:
    assert endless_rules(grammar) == named
    if named:
        with pytest.raises(UnsupportedError, match=f"cannot be followed: '{named[0]}'") as error:
            text_grammar("grammar", grammar)
        assert "::=" not in str(error.value)
