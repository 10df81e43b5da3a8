"""OpenAI's surface as the official client and llama-server's own shapes see it, on tiny random models."""

from __future__ import annotations

import base64
import struct
import sys
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from serve.engine.engine import open_engine
from tests.served import HELLO, Served, error_of, running, served
from tests.tiny_gguf import BOS, letter, write_adapter, write_model

__all__ = ["served"]  # a fixture


# --- several answers, scores, penalties -------------------------------------------------------------------------


def test_n_answers_are_those_of_n_seeds(served: Served) -> None:
    asked: dict[str, Any] = {"model": "en", "messages": HELLO, "temperature": 1.3, "max_tokens": 10}
    alone = [served.client.chat.completions.create(**asked, seed=40 + n).choices[0].message.content for n in range(3)]
    done = served.client.chat.completions.create(**asked, seed=40, n=3)
    assert [choice.index for choice in done.choices] == [0, 1, 2]
    assert [choice.message.content for choice in done.choices] == alone and len(set(alone)) == 3
    assert done.usage is not None and done.usage.completion_tokens == 30
    texts = ["", "", ""]
    *events, last = served.client.chat.completions.create(
        **asked, seed=40, n=3, stream=True, stream_options={"include_usage": True}
    )
    for event in events:
        for choice in event.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == alone
    assert last.usage is not None and last.usage.completion_tokens == 30
    assert last.usage.prompt_tokens == done.usage.prompt_tokens


def test_logprobs_are_of_the_tokens_that_were_said(served: Served) -> None:
    asked: dict[str, Any] = {"model": "en", "messages": HELLO, "temperature": 0, "max_tokens": 6}
    done = served.client.chat.completions.create(**asked, logprobs=True, top_logprobs=3).choices[0]
    assert done.logprobs is not None and done.logprobs.content is not None
    rows = done.logprobs.content
    assert "".join(row.token for row in rows) == done.message.content
    for row in rows:
        assert row.bytes == list(row.token.encode())
        assert row.top_logprobs[0].token == row.token and row.top_logprobs[0].logprob == row.logprob <= 0
        values = [top.logprob for top in row.top_logprobs]
        assert len(values) == 3 and values == sorted(values, reverse=True)
    events = served.client.chat.completions.create(**asked, logprobs=True, stream=True)
    streamed = [row.logprob for e in events if e.choices[0].logprobs for row in e.choices[0].logprobs.content or []]
    assert streamed == pytest.approx([row.logprob for row in rows], abs=1e-3)
    assert served.client.chat.completions.create(**asked).choices[0].logprobs is None


def test_completions_have_their_own_shape_of_logprobs(served: Served) -> None:
    done = served.client.completions.create(model="base", prompt="Once", max_tokens=5, temperature=0, logprobs=2)
    scores: Any = done.choices[0].logprobs
    assert "".join(scores.tokens) == done.choices[0].text
    assert scores.text_offset == [0, 1, 2, 3, 4]
    assert [max(top.values()) for top in scores.top_logprobs] == scores.token_logprobs
    assert all(len(top) == 2 for top in scores.top_logprobs)


def test_penalties_and_biases_change_the_answer(served: Served) -> None:
    only = {letter("a"): 100, letter("b"): 98.5}
    asked: dict[str, dict[str, Any]] = {
        "bias": {"logit_bias": {str(letter("a")): 100}},
        "presence": {"logit_bias": {str(k): v for k, v in only.items()}, "presence_penalty": 2},
        "frequency": {"logit_bias": {str(k): v for k, v in only.items()}, "frequency_penalty": 2},
    }
    texts = {
        name: served.chat("Hello", model="base", max_tokens=8, **fields).json()["choices"][0]["message"]["content"]
        for name, fields in asked.items()
    }
    assert texts["bias"] == "a" * 8
    assert set(texts["presence"]) | set(texts["frequency"]) <= {"a", "b"}
    assert set(texts["frequency"]) == {"a", "b"}


# --- completions, embeddings, tokens ----------------------------------------------------------------------------


def test_prompts_may_be_many_and_may_be_tokens(served: Served) -> None:
    asked: dict[str, Any] = {"model": "base", "max_tokens": 5, "temperature": 0}
    ids = [BOS, letter("O"), letter("n")]
    text = served.client.completions.create(**asked, prompt="On").choices[0].text
    served.client.completions.create(**asked, prompt=["On", "Or"])  # the two below then find the same cache
    many = served.client.completions.create(**asked, prompt=["On", "Or"], n=2)
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    assert many.choices[0].text == many.choices[1].text == text != many.choices[2].text
    assert many.usage is not None and many.usage.prompt_tokens == 6 and many.usage.completion_tokens == 20
    tokens = served.client.completions.create(**asked, prompt=ids)
    assert tokens.choices[0].text == text
    assert tokens.usage is not None and tokens.usage.prompt_tokens == 3
    bad: Any
    for bad in ([10**6], [-1], [[]], [[1], ["x"]], [], ["x"] * 129, {"a": 1}):
        assert served.post("/v1/completions", {**asked, "prompt": bad}).status_code == 400, bad


@pytest.mark.parametrize("field", [{"echo": True}, {"suffix": "x"}, {"best_of": 2}])
def test_what_completions_cannot_do_is_refused_by_name(served: Served, field: dict[str, Any]) -> None:
    reply = served.post("/v1/completions", {"model": "base", "prompt": "x", "max_tokens": 1, **field})
    assert reply.status_code == 400 and next(iter(field)) in error_of(reply)["message"]
    allowed = {"echo": False, "suffix": None, "best_of": 1}
    assert served.post("/v1/completions", {"model": "base", "prompt": "x", "max_tokens": 1, **allowed}).is_success


def test_embeddings_come_as_floats_and_as_base64(served: Served) -> None:
    done = served.client.embeddings.create(model="tiny", input=["cat", "dog", "cat"])
    vectors = [row.embedding for row in done.data]
    assert [row.index for row in done.data] == [0, 1, 2]
    assert vectors[0] == vectors[2] != vectors[1]
    assert sum(value * value for value in vectors[0]) == pytest.approx(1, abs=1e-5)
    assert done.usage.prompt_tokens == 12
    body = {"model": "base", "input": "cat"}
    floats = served.post("/v1/embeddings", body).json()["data"][0]["embedding"]
    raw = served.post("/v1/embeddings", {**body, "encoding_format": "base64"}).json()["data"][0]["embedding"]
    assert struct.unpack(f"<{len(floats)}f", base64.b64decode(raw)) == pytest.approx(floats, abs=1e-7)
    assert served.post("/v1/embeddings", {**body, "dimensions": len(floats)}).is_success
    bad: dict[str, Any]
    for bad in ({"dimensions": 3}, {"input": []}, {"input": [1, "a"]}, {"input": ""}, {"input": "x" * 3000}):
        assert served.post("/v1/embeddings", {**body, **bad}).status_code == 400, bad
    assert served.post("/v1/embeddings", {**body, "model": "en"}).status_code == 404


def test_tokens_go_there_and_back(served: Served) -> None:
    tokens = served.post("/tokenize", {"content": "Hi 日本", "add_special": True}).json()["tokens"]
    assert tokens[:3] == [BOS, letter("H"), letter("i")]
    assert served.post("/detokenize", {"tokens": tokens[1:]}).json() == {"content": "Hi 日本"}
    assert served.post("/detokenize", {"tokens": [10**6]}).status_code == 400


def test_the_servers_state_has_llama_servers_shape(served: Served) -> None:
    props = httpx.get(f"{served.url}/props").json()
    assert props["default_generation_settings"]["n_ctx"] == 2048 and props["total_slots"] == 4
    slots = httpx.get(f"{served.url}/slots").json()
    assert [slot["id"] for slot in slots] == [0, 1, 2, 3]
    assert not any(slot["is_processing"] for slot in slots)
    assert served.client.models.retrieve("ja").id == "ja"
    assert served.client.models.retrieve("base").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="known: en, ja, tiny"):
        served.client.models.retrieve("fr")


# --- hostile input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "{{ 'x' * 10**11 }}",
    "{{ raise_exception('only cats') }}", "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{% for",
])  # fmt: skip
def test_a_hostile_template_is_a_400_and_the_server_lives(served: Served, tmp_path: Path, template: str) -> None:
    served.engine.load_adapter("hostile", write_adapter(tmp_path / "hostile.gguf", template=template))
    try:
        reply = served.chat("Hello", model="hostile")
        assert reply.status_code == 400
        assert "chat template" in error_of(reply)["message"]
        assert served.chat("Hello", model="en").status_code == 200
    finally:
        served.engine.unload_adapter("hostile")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="schemathesis needs Python 3.11")
def test_no_request_that_the_schema_allows_or_forbids_is_a_500(tmp_path: Path) -> None:
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis import GenerationMode

    model = write_model(tmp_path / "small.gguf")
    adapters = {"en": write_adapter(tmp_path / "en.gguf")}
    seen: dict[str, int] = {}
    with open_engine(model, adapters, threads=1, context=64) as engine, running(engine, tmp_path) as server:
        api = schemathesis.openapi.from_url(f"{server.url}/openapi.json", timeout=60)
        operations: list[Any] = [found.ok() for found in api.get_all_operations()]  # type: ignore[union-attr]
        for operation in operations:
            # A GET has nothing that could be sent wrongly.
            for mode in [GenerationMode.POSITIVE] + [GenerationMode.NEGATIVE] * (operation.method.upper() == "POST"):

                @given(case=operation.as_strategy(generation_mode=mode))
                @settings(max_examples=7, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
                          suppress_health_check=list(HealthCheck))  # fmt: skip
                def examine(case: Any) -> None:
                    reply = case.call(timeout=60)
                    seen[case.operation.label] = seen.get(case.operation.label, 0) + 1
                    assert reply.status_code < 500, (case.operation.label, case.body, reply.text)
                    if reply.status_code >= 400 and reply.request.method != "HEAD":
                        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}

                examine()
        assert engine.restarts == 0
    assert {"POST /v1/chat/completions", "POST /v1/completions", "POST /v1/embeddings", "GET /slots"} <= set(seen)
    assert seen["POST /v1/chat/completions"] >= 12
