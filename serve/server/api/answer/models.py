"""The other requests: embeddings, tokens, adapters at run time. It knows nothing of the engine."""

from __future__ import annotations

import base64
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from serve.server.api.request.fields import HARMLESS, Fields, Off, TokenId, refused

# OpenAI's bound (api reference of embeddings).
MOST_INPUTS = 2048


def _checked_input(value: Any) -> Any:
    """What is to be embedded; raises an error that names the first item that is none."""
    if not isinstance(value, list | str):
        raise ValueError("has to be a text, a list of texts, token ids, or a list of those")
    if not value:
        raise ValueError("is empty")
    if isinstance(value, str):
        return value
    if len(value) > MOST_INPUTS and not isinstance(value[0], int):
        raise ValueError(f"holds {len(value):,} texts; at most {MOST_INPUTS:,} are embedded at once")
    if isinstance(value[0], int):
        _check_tokens(value)
        return value
    for number, item in enumerate(value):
        if not isinstance(item, str | list):
            raise refused(number, "is neither a text nor a list of token ids")
        if not item:
            raise refused(number, "is empty")
        if isinstance(item, list):
            _check_tokens(item, number)
    return value


def _check_tokens(tokens: list[Any], number: int | None = None) -> None:
    if not all(type(token) is int for token in tokens):
        reason = "holds something else than token ids"
        raise ValueError(reason) if number is None else refused(number, reason)


class EmbeddingRequest(Fields):
    """POST /v1/embeddings, as OpenAI. Token ids are those of this model's vocabulary."""

    harmless = HARMLESS
    off: ClassVar[Off] = {
        "embd_normalize": (2,), "normalize": (True,), "add_special_tokens": (True,), "truncate_prompt_tokens": (),
        "input_type": (), "extra_body": ({},), "embedding_types": (["float"],), "truncate": (), "options": ({},),
    }  # fmt: skip

    input: Annotated[str | list[str] | list[TokenId] | list[str | list[TokenId]], BeforeValidator(_checked_input)]
    model: str = "base"
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)

    @property
    def inputs(self) -> list[str | list[int]]:
        """The texts or token ids, at least one, none of them empty."""
        given: Any = self.input
        return [given] if isinstance(given, str) or isinstance(given[0], int) else given


class TokenizeRequest(Fields):
    """POST /tokenize, as llama-server; markers like <|x|> are always one token here."""

    off: ClassVar[Off] = {"parse_special": (True,), "with_pieces": (False,)}

    content: str
    add_special: bool = False


class DetokenizeRequest(Fields):
    """POST /detokenize, as llama-server."""

    tokens: list[TokenId]


class LoadAdapter(Fields):
    """POST /lora-adapters."""

    name: str
    path: str
    scale: float = Field(1.0, ge=-10, le=10)


class VllmLoad(Fields):
    """POST /v1/load_lora_adapter, as vLLM."""

    harmless = frozenset({"lora_int_id", "base_model_name"})

    lora_name: str
    lora_path: str
    load_inplace: bool = False


class VllmUnload(Fields):
    """POST /v1/unload_lora_adapter, as vLLM."""

    harmless = frozenset({"lora_int_id"})

    lora_name: str


def embedding_row(index: int, vector: list[float], encoding: str) -> dict[str, Any]:
    """One row of an embeddings answer; base64 is of little-endian float32, as OpenAI."""
    shown: Any = vector
    if encoding == "base64":
        shown = base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
    return {"object": "embedding", "index": index, "embedding": shown}
