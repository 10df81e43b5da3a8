"""What may be embedded: texts, token ids and lists of both, as OpenAI's and other clients send them."""

from __future__ import annotations

import queue
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.engine.engine import Engine
from serve.engine.events import Ticket
from serve.server.api.answer.models import EmbeddingRequest
from serve.server.guard import Limits, Policy
from tests.served import LOCAL, Served, engine, error_of, folder, guarded, served, standing_still

__all__ = ["engine", "folder", "served"]  # fixtures


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


TEXTS = ["cat", "a", "the dog sat", "b" * 40, "cat", "x" * 700, *(f"text {n}" for n in range(90))]


def test_texts_together_have_the_vectors_they_have_alone(served: Served) -> None:
    reply = served.post("/v1/embeddings", {"model": "base", "input": TEXTS}).json()
    assert [row["index"] for row in reply["data"]] == list(range(len(TEXTS)))
    alone = [served.post("/v1/embeddings", {"model": "base", "input": text}).json() for text in TEXTS[:20]]
    for row, one in zip(reply["data"], alone, strict=False):
        assert row["embedding"] == pytest.approx(one["data"][0]["embedding"], abs=2e-3)
    assert reply["usage"]["prompt_tokens"] == sum(len(served.engine.tokenize(t, add_special=True)) for t in TEXTS)


def begun_embeddings(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[Ticket]:
    """The tickets of all embeddings from now on."""
    tickets: list[Ticket] = []
    begin = engine.begin_embed

    def begin_embed(*args: Any, **options: Any) -> Ticket:
        tickets.append(begin(*args, **options))
        return tickets[-1]

    monkeypatch.setattr(engine, "begin_embed", begin_embed)
    return tickets


def test_embeddings_end_with_the_client(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    tickets = begun_embeddings(served.engine, monkeypatch)
    with standing_still(served.engine), pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{served.url}/v1/embeddings", json={"model": "base", "input": ["a" * 500] * 2048}, timeout=0.5)
    time.sleep(1.0)
    assert len(tickets) <= 2


def test_embeddings_end_at_the_time_limit(engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tickets = begun_embeddings(engine, monkeypatch)
    policy = Policy(hosts=LOCAL.hosts, limits=Limits(request_s=1))
    with guarded(engine, folder, policy) as timed, standing_still(engine):
        assert timed.post("/v1/embeddings", {"model": "base", "input": ["a" * 500] * 2048}).status_code == 504
    time.sleep(1.0)
    assert len(tickets) <= 2


def test_a_cancelled_embedding_is_not_answered_and_the_next_one_is(engine: Engine) -> None:
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
    engine.begin_embed(["a" * 500] * 64, lambda _: heard.put("cancelled")).cancel()
    engine.begin_embed(["cat"], heard.put)
    assert len(heard.get(timeout=30).vectors) == 1 and heard.empty()
