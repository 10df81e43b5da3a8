"""What may be embedded: texts, token ids and lists of both, as OpenAI's and other clients send them."""

from __future__ import annotations

from typing import Any

import pytest

from serve.server.api.answer.models import EmbeddingRequest
from tests.served import Served, error_of, served

__all__ = ["served"]  # a fixture


def test_token_ids_are_embedded_as_the_text_they_are_of(served: Served) -> None:
    def vectors(given: Any, **fields: Any) -> list[list[float]]:
        reply = served.post("/v1/embeddings", {"model": "base", "input": given, **fields})
        assert reply.status_code == 200, reply.text
        return [row["embedding"] for row in reply.json()["data"]]

    ids = served.engine.tokenize("cat", add_special=True)
    text = vectors("cat")
    assert vectors(ids) == vectors([ids]) == vectors(["cat"]) == text
    assert vectors([ids, [5, 6], "cat"])[::2] == text * 2
    assert vectors("cat", encoding_format=None, dimensions=None, user=None) == text
    assert vectors("cat", user="u", dimensions=len(text[0])) == text
    many = served.post("/v1/embeddings", {"model": "base", "input": ["a"] * 300})
    assert len(many.json()["data"]) == 300


@pytest.mark.parametrize(
    ("given", "place", "reason"),
    [
        ("", "input", "is empty"), ([], "input", "is empty"), (["a", ""], "input[1]", "is empty"),
        ([[5], []], "input[1]", "is empty"), (["a", None], "input[1]", "is neither a text nor"),
        ([5, "a"], "input", "holds something else"), ([[5], [True]], "input[1]", "holds something else"),
        (["a"] * 2049, "input", "at most 2,048"), (5, "input", "has to be a text"),
    ],
)  # fmt: skip
def test_what_cannot_be_embedded_is_named(served: Served, given: Any, place: str, reason: str) -> None:
    error = error_of(served.post("/v1/embeddings", {"model": "base", "input": given}))
    assert error["message"].startswith(f"{place}: ") and reason in error["message"] and error["param"] == place


def test_token_ids_of_another_vocabulary_say_what_to_do(served: Served) -> None:
    message = error_of(served.post("/v1/embeddings", {"model": "base", "input": [[5], [99999]]}))["message"]
    assert message.startswith("input[1]: 99999 is no token id") and "check_embedding_ctx_length=False" in message


def test_as_many_inputs_as_openai_takes_are_taken() -> None:
    assert len(EmbeddingRequest.model_validate({"input": ["a"] * 2048}).inputs) == 2048
    assert EmbeddingRequest.model_validate({"input": list(range(1, 5000))}).inputs == [list(range(1, 5000))]
