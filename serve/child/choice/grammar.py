"""Answers that must have a form: JSON of a schema, calls of functions. llguidance decides which tokens may come next.

Two halves. `json_grammar`, `calls_grammar` and `check` say what the form is and need no model; `Constraint` holds one
answer to it inside the engine's child. It knows nothing of requests' shapes, and nothing of how a token is chosen.

llguidance makes whatever conforms possible and nothing else, so an answer that ended by itself is valid. The limits
of that: of an object's additional properties the same key may come twice, and a schema it cannot follow is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from serve.child.choice.gbnf import endless_rules
from serve.child.choice.keywords import mistakes
from serve.child.choice.numbers import today
from serve.child.choice.schema import MOST_WAYS, Followed, follow
from slm.chat.tools import CALL_BEGIN, CALL_END, call_head
from slm.errors import EngineError, InputError, UnsupportedError

# At most one space, or a line break and an indentation, wherever JSON allows space: a model that likes neither to
# end nor to go on cannot fill an answer with blanks.
_OPTIONS = {"whitespace_pattern": r"( |\n {0,16})", "whitespace_flexible": False, "coerce_one_of": False,
            "lenient": False, "item_separator": ",", "key_separator": ":"}  # fmt: skip
# Where only one text can follow, the model still chooses how to cut it into tokens.
_HEADER = '%llguidance {"no_forcing": true}'
# A slash would end a regular expression of Lark, and so would the end of the line.
_ESCAPE_OR_SLASH = re.compile(r"\\.|[/\n\r]", re.DOTALL)
_SLASHES = {"/": r"\/", "\n": r"\n", "\r": r"\r"}
# llguidance's words for a place of the answer where too much may come next.
_CROWD = re.compile(r"Current row has (\d+) items; max is (\d+)")
_NARROWER = (
    "Give the objects of the schema fewer optional properties (those in 'required' are one way each), or its anyOf and "
    "oneOf fewer alternatives."
)
_MOST_TOLD = 8  # of a schema's faults in one message
_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


def json_grammar(schema: Any) -> str:
    """A grammar for the JSON texts that a schema (draft 2020-12) allows.

    Raises InputError with the mistakes in it, UnsupportedError with the keywords that cannot be followed, both with
    where they stand.
    """
    wrong = list(islice(_mistakes(schema), _MOST_TOLD))
    if wrong:
        raise InputError(f"this JSON schema has a mistake: {'; '.join(wrong)}")
    followed = followed_schema(schema)
    if followed.left_out:
        raise UnsupportedError(
            f"this JSON schema cannot be followed: {', '.join(followed.left_out[:_MOST_TOLD])}",
            hint="Leave that out, or do not ask for a strict answer.",
        )
    return _grammar_of(followed.schema)


def loose_json_grammar(schema: Any) -> tuple[str, list[str]]:
    """A grammar for as much of a schema as can be followed, and what of it is not."""
    followed = followed_schema(schema)
    return _grammar_of(followed.schema), [*followed.left_out, *_mistakes(followed.schema)]


def followed_schema(schema: Any, *, rest: Any = True) -> Followed:
    """The schema without the keywords that cannot be followed. rest: what stands for one of which nothing can."""
    return follow(schema, _compiles, rest=rest)


def _mistakes(schema: Any) -> Iterator[str]:
    try:
        yield from mistakes(today(schema))
    except RecursionError:  # it is refused for that where it is written
        return


def _compiles(schema: Any) -> bool:
    try:
        _grammar_of(schema)
    except UnsupportedError:
        return False
    return True


def _grammar_of(schema: Any) -> str:
    return check(f"{_HEADER}\nstart: {_json(schema)}\n", "this JSON schema")


def text_grammar(kind: str, value: Any) -> str:
    """A grammar from a `regex`, a `choice` of texts, or a `grammar` (llama.cpp's GBNF, or llguidance's Lark).

    Raises UnsupportedError with the reason, InputError for a choice that is none.
    """
    if kind == "choice":
        if not (isinstance(value, list) and value and all(isinstance(text, str) and text for text in value)):
            raise InputError("a choice is a list of texts, none of them empty")
        return check(f"{_HEADER}\nstart: {' | '.join(map(_text, value))}\n", "this choice")
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"a {kind} is a text", found=type(value).__name__)
    if kind == "regex":
        body = _ESCAPE_OR_SLASH.sub(lambda found: found[0] if len(found[0]) > 1 else _SLASHES[found[0]], value)
        return check(f"{_HEADER}\nstart: TEXT\nTEXT: /(?:{body})/\n", "this regular expression")
    if "::=" not in value:
        return check(f"{_HEADER}\n{value}\n", "this grammar")
    if endless := endless_rules(value):
        named = ", ".join(f"'{name[:40]}'" for name in endless[:8])
        raise UnsupportedError(f"this grammar cannot be followed: {named} leads to itself before any character")
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return check(f"{_HEADER}\n{gbnf_to_lark(value)}\n", "this grammar")
    except UnsupportedError:
        raise
    except Exception as error:  # what the package raises for an unknown rule is of no family
        raise UnsupportedError("this grammar cannot be followed", found=" ".join(str(error).split())[:300]) from error


def calls_grammar(functions: Mapping[str, Any], *, needed: bool, many: bool, otherwise: Any = None) -> str:
    """A grammar for calls of `functions`, name -> JSON schema of the arguments or None.

    needed: the answer is a call; otherwise it may be free text, and text may come before the first call. many: there
    may be several calls. otherwise: a schema that an answer without calls has to follow, instead of free text.
    Raises UnsupportedError with the reason.
    """
    lines = [_HEADER]
    if needed or otherwise is not None:
        lines.append(f"calls: {_text(CALL_BEGIN)} body more")
    else:
        lines += ["calls: head body more", f"head[lazy]: TEXT {_text(CALL_BEGIN)}", "TEXT: /(?s:.*)/"]
    if needed:
        lines.append("start: calls")
    elif otherwise is not None:
        lines.append(f"start: calls | {_json(otherwise)}")
    else:
        lines.append("start: calls | TEXT")
    lines.append(f"more: ({_text(chr(10) + CALL_BEGIN)} body)*" if many else 'more: ""')
    numbered = list(enumerate(functions.items()))
    lines.append(f"body: ({' | '.join(f'f{n}' for n, _ in numbered)}) {_text(CALL_END)}")
    for n, (name, schema) in numbered:
        head = call_head(name).removeprefix(CALL_BEGIN)
        lines.append(f"f{n}: {_text(head)} {_json(_NO_ARGUMENTS if schema is None else schema)}")
    return check("\n".join(lines) + "\n", "the parameters of these tools")


def check(lark: str, what: str) -> str:
    """llguidance's text of a grammar that it can follow. Raises UnsupportedError with its reason otherwise."""
    from llguidance import LLMatcher

    grammar = str(LLMatcher.grammar_from_lark(lark))
    refused = LLMatcher.validate_grammar(grammar)
    if refused and not refused.startswith("WARNING"):
        raise UnsupportedError(f"{what} cannot be followed", found=_reason(refused))
    return grammar


def _reason(refused: str) -> str:
    """What llguidance says is wrong, without the lines of the grammar that it shows."""
    lines = [line.strip() for line in refused.splitlines() if line.strip()]
    said = [line.partition("error: ")[2] for line in lines if line.startswith("error: ")]
    return (said or [lines[0].rpartition("failed to compile JSON schema: ")[2]])[-1][:200]


@dataclass(frozen=True)
class Tokenizer:
    """llguidance's view of a vocabulary, and the tokens that share their bytes with an earlier one.

    Of such twins (a byte token and the token of that character) llguidance allows only one, which may be the one
    that the model never learnt to write.
    """

    handle: Any
    size: int
    twins: npt.NDArray[np.intp]
    firsts: npt.NDArray[np.intp]


def tokenizer_of(pieces: Sequence[bytes], special: Sequence[int], eog: Sequence[int]) -> Tokenizer:
    """From each token's bytes, those that are control tokens, and those that end an answer.

    It takes about a second for 260,000 tokens. Raises EngineError when nothing ends an answer.
    """
    from llguidance import LLTokenizer, TokenizerWrapper

    if not eog:
        raise EngineError("the model's vocabulary names no token that ends an answer, so no form can be enforced")
    first: dict[bytes, int] = {}
    control = set(special)
    plain = [(token, piece) for token, piece in enumerate(pieces) if token not in control]
    pairs = [(token, early) for token, piece in plain if (early := first.setdefault(piece, token)) != token]
    twins, firsts = (np.array(column, np.intp) for column in (zip(*pairs, strict=True) if pairs else ((), ())))
    handle = LLTokenizer(TokenizerWrapper(_Pieces(pieces, special, eog, first)), eos_token=list(eog))
    return Tokenizer(handle, len(pieces), twins, firsts)


class Constraint:
    """One answer under a grammar: which tokens may come next.

    Raises InputError, which begins with `field` where there is one, when llguidance gives up.
    """

    def __init__(self, tokenizer: Tokenizer, grammar: str, field: str = "") -> None:
        from llguidance import LLMatcher, LLParserLimits

        self._tokenizer = tokenizer
        self._place = f"{field}: " if field else ""
        limits = LLParserLimits(max_items_in_row=MOST_WAYS)
        self._matcher = LLMatcher(tokenizer.handle, grammar, log_level=0, limits=limits)
        self._bits = np.zeros((tokenizer.size + 31) // 32, np.int32)
        self._raise_error()

    def forbid(self, logits: npt.NDArray[np.float32]) -> None:
        """Set the logits, (vocabulary,), of all tokens that may not come next to -inf."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._raise_error()
        tokenizer = self._tokenizer
        allowed = np.unpackbits(self._bits.view(np.uint8), count=tokenizer.size, bitorder="little")
        np.maximum.at(allowed, tokenizer.firsts, allowed[tokenizer.twins])
        allowed[tokenizer.twins] = allowed[tokenizer.firsts]
        np.copyto(logits, np.float32(-np.inf), where=allowed == 0)

    def accept(self, token: int) -> bool:
        """Take the token that was chosen; True when nothing but the end can follow."""
        self._matcher.consume_token(token)
        self._raise_error()
        return bool(self._matcher.is_stopped())

    def _raise_error(self) -> None:
        if self._matcher.is_error():
            reason = " ".join(str(self._matcher.get_error()).split("<state>")[0].split())[:300]
            if crowd := _CROWD.search(reason):
                held, most = (f"{int(count):,}" for count in crowd.groups())
                raise InputError(
                    f"{self._place}the form that the answer must have is too wide to be followed",
                    found=f"{held} ways to go on at one place of the answer; at most {most} are followed",
                    hint=_NARROWER,
                )
            what = f"{self._place}the form that the answer must have is too complex to be followed"
            raise InputError(what, found=reason)


class _Pieces:
    """What llguidance's TokenizerWrapper reads. Masks are computed from bytes, so no text needs to be tokenized."""

    def __init__(
        self, pieces: Sequence[bytes], special: Sequence[int], eog: Sequence[int], ids: Mapping[bytes, int]
    ) -> None:
        self.tokens = list(pieces)
        self.special_token_ids = list(special)
        self.eos_token_id = eog[0]
        self.bos_token_id = None
        self._longest = max(map(len, pieces), default=1)
        self._ids = ids

    def __call__(self, text: bytes | str) -> list[int]:
        """Longest match first; bytes that no token begins with are left out."""
        raw = text.encode() if isinstance(text, str) else text
        tokens, at = [], 0
        while at < len(raw):
            for end in range(min(len(raw), at + self._longest), at, -1):
                if (token := self._ids.get(raw[at:end])) is not None:
                    tokens.append(token)
                    at = end
                    break
            else:
                at += 1
        return tokens


def _json(schema: Any) -> str:
    """A schema as a rule of the grammar; how space is handled is ours to say, not the schema's."""
    if isinstance(schema, Mapping):
        schema = {**schema, "x-guidance": _OPTIONS}
    elif not isinstance(schema, bool):
        raise InputError("a JSON schema is an object", found=type(schema).__name__)
    try:
        return f"%json {json.dumps(schema, allow_nan=False)}"
    except (ValueError, RecursionError) as error:
        raise InputError("this JSON schema is no JSON", found=str(error)) from error


def _text(text: str) -> str:
    return json.dumps(text)
