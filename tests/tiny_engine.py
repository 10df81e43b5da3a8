"""A tiny random model with three adapters, an engine's answers from it, and an oracle to hold against them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve.engine.engine import Engine, open_engine
from slm.joints import Finish, Message, SamplingOptions
from slm.native.llama import ContextParams, open_adapter, open_context, open_model, set_adapters
from tests.llama_logits import all_logits
from tests.tiny_gguf import TOKENS, letter, write_adapter, write_model

QUESTIONS = ["Hello, who are you?", "What is a lease?", "Tell me more, please.", "12 + 30 ="]


@dataclass(frozen=True)
class Files:
    """One base and adapters that belong to it."""

    folder: Path
    model: Path
    a: Path
    b: Path
    c: Path


def make_files(folder: Path) -> Files:
    """Written anew into the folder."""
    made = [write_adapter(folder / f"{name}.gguf", seed=seed) for seed, name in enumerate("abc", 1)]
    return Files(folder, write_model(folder / "model.gguf", fingerprint="f00d" * 16), *made)


def user(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def ask(
    engine: Engine, text: str | list[Message], adapter: str | None, tokens: int = 24, **options: Any
) -> tuple[str, Finish]:
    messages = user(text) if isinstance(text, str) else text
    *pieces, finish = engine.chat(messages, adapter=adapter, sampling=SamplingOptions(max_tokens=tokens, **options))
    assert isinstance(finish, Finish)
    return "".join(str(piece) for piece in pieces), finish


class Oracle:
    """Bare llama.cpp calls that recompute everything for every token: no cache, no batch of several requests.

    An adapter is a path, None for the base, or {path: scale, ...}.
    """

    def __init__(self, stack: ExitStack, files: Files) -> None:
        self._model = open_model(stack, files.model)
        self._context = open_context(stack, self._model, ContextParams(n_ctx=2048, n_batch=2048, n_threads=1))
        self._adapters = {p: open_adapter(stack, self._model, p) for p in (files.a, files.b, files.c)}

    def _last(self, adapter: Path | dict[Path, float] | None, tokens: list[int]) -> Any:
        scales = adapter if isinstance(adapter, dict) else {adapter: 1.0} if adapter else {}
        set_adapters(self._context, [(self._adapters[path], scale) for path, scale in scales.items()])
        return all_logits(self._model, self._context, tokens)[-1]

    def greedy(self, adapter: Path | dict[Path, float] | None, tokens: list[int], count: int = 24) -> str:
        """The next `count` characters."""
        tokens = list(tokens)
        for _ in range(count):
            tokens.append(int(np.argmax(self._last(adapter, tokens))))
        return "".join(TOKENS[token] for token in tokens[-count:]).replace("▁", " ")

    def same(self, adapter: Path | dict[Path, float] | None, prompt: list[int], left: str, right: str) -> bool:
        """Equal, or the first difference is a near tie: a batch of another make-up sums in another order.

        Logits of the random model have a standard deviation of about 8; two adapters' differ by whole units.
        """
        if left == right:
            return True
        at = next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), None)
        if at is None:
            return False
        logits = self._last(adapter, prompt + [letter(char) for char in left[:at]])
        chosen = sorted((logits[letter(left[at])], logits[letter(right[at])]))
        return bool(chosen[1] - chosen[0] < 0.1 and chosen[1] == logits.max())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return make_files(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def engine(files: Files) -> Iterator[Engine]:
    with open_engine(files.model, {"en": files.a, "ja": files.b}, threads=1, parallel=4) as opened:
        yield opened


@pytest.fixture(scope="module")
def oracle(files: Files) -> Iterator[Oracle]:
    with ExitStack() as stack:
        yield Oracle(stack, files)
