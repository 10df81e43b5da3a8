"""OpenAI's surface once more, with an engine whose model is computed elsewhere: what clients see is the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

from tests.remote_engine import fleet
from tests.served import Served, running
from tests.test_serve_http import (
    test_auto_routes_by_language_and_says_so,
    test_errors_are_the_openai_clients_own_exceptions,
    test_the_openai_client_chats_streamed_and_whole_with_the_same_text,
    test_the_openai_client_completes_plain_text_and_lists_models,
)
from tests.test_serve_openai import (
    test_completions_have_their_own_shape_of_logprobs,
    test_embeddings_come_as_floats_and_as_base64,
    test_logprobs_are_of_the_tokens_that_were_said,
    test_n_answers_are_those_of_n_seeds,
    test_penalties_and_biases_change_the_answer,
    test_prompts_may_be_many_and_may_be_tokens,
    test_the_servers_state_has_llama_servers_shape,
    test_tokens_go_there_and_back,
    test_what_completions_cannot_do_is_refused_by_name,
)
from tests.tiny_gguf import write_adapter, write_model

__all__ = [
    "test_auto_routes_by_language_and_says_so",
    "test_completions_have_their_own_shape_of_logprobs",
    "test_embeddings_come_as_floats_and_as_base64",
    "test_errors_are_the_openai_clients_own_exceptions",
    "test_logprobs_are_of_the_tokens_that_were_said",
    "test_n_answers_are_those_of_n_seeds",
    "test_penalties_and_biases_change_the_answer",
    "test_prompts_may_be_many_and_may_be_tokens",
    "test_the_openai_client_chats_streamed_and_whole_with_the_same_text",
    "test_the_openai_client_completes_plain_text_and_lists_models",
    "test_the_servers_state_has_llama_servers_shape",
    "test_tokens_go_there_and_back",
    "test_what_completions_cannot_do_is_refused_by_name",
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("remote")
    adapters = {name: write_adapter(folder / f"{name}.gguf", seed=n) for n, name in enumerate(("en", "ja"), 1)}
    model = write_model(folder / "tiny.gguf")
    with fleet(model, adapters, replicas=1) as opened, running(cast(Any, opened.remote), folder) as server:
        yield server
