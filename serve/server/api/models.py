"""The other requests: embeddings, tokens, adapters at run time. It knows nothing of the engine."""

from __future__ import annotations

import base64
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field


class EmbeddingRequest(BaseModel):
    """POST /v1/embeddings, as OpenAI."""

    input: str | list[str]
    model: str = "base"
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


class TokenizeRequest(BaseModel):
    """POST /tokenize, as llama-server; markers like <|x|> are always one token here."""

    content: str
    add_special: bool = False


class DetokenizeRequest(BaseModel):
    """POST /detokenize, as llama-server."""

    tokens: list[int]


class LoadAdapter(BaseModel):
    """POST /lora-adapters."""

    model_config = ConfigDict(extra="forbid")

    name: str
    path: str
    scale: float = Field(1.0, ge=-10, le=10)


class VllmLoad(BaseModel):
    """POST /v1/load_lora_adapter, as vLLM."""

    lora_name: str
    lora_path: str
    load_inplace: bool = False


class VllmUnload(BaseModel):
    """POST /v1/unload_lora_adapter, as vLLM."""

    lora_name: str


def embedding_row(index: int, vector: list[float], encoding: str) -> dict[str, Any]:
    """One row of an embeddings answer; base64 is of little-endian float32, as OpenAI."""
    shown: Any = vector
    if encoding == "base64":
        shown = base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
    return {"object": "embedding", "index": index, "embedding": shown}
