"""Who is measured: our server and llama.cpp's two, how each is started and how a request names an adapter.

It knows nothing of the load they are put under.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve import upstream
from serve.upstream import LLAMA_CPP_PYTHON, LLAMA_SERVER, Launch, UpstreamOptions
from slm.chat.turn_end import END_TOKENS
from slm.errors import SlmError
from slm.native.process import child_environment
from slm.weights.gguf_reader import read_gguf

OURS = "slm"
# Tokens that end an answer beside the ones the file names (llama.cpp, src/llama-vocab.cpp, `special_eog_ids`).
_ENDS = frozenset(
    ["<|im_end|>", "<|endoftext|>", "<end_of_turn>", "</s>", "<eos>", "<|eot_id|>", "<|end_of_text|>", "<|end|>",
     "<|eom_id|>", "<turn|>"]
)  # fmt: skip


@dataclass(frozen=True)
class Contender:
    """A server under test.

    launch(options) is a block in which it can be started. fields(number) are what a request adds to be answered by
    that adapter; `full_length` keeps answers from ending before max_tokens.
    """

    name: str
    launch: Callable[[UpstreamOptions], AbstractContextManager[Launch]]
    fields: Callable[[int], dict[str, Any]]
    full_length: dict[str, Any]


def ours_launch(options: UpstreamOptions, extra: Sequence[str] = ()) -> Launch:
    """`slm serve` with the same options as its peers."""
    argv = [sys.executable, "-m", "slm_cli", "serve", str(options.model), "--host", options.host]
    argv += ["--port", str(options.port), "--context", str(options.context), "--parallel", str(options.parallel)]
    argv += ["--threads", str(options.threads), *extra]
    for name, path in options.adapters:
        argv += ["--adapter", f"{name}={path}"]
    return Launch(argv, {"PYTHONPATH": child_environment()["PYTHONPATH"]}, "/health")


def end_tokens(model: Path) -> list[int]:
    """Ids of the tokens that end an answer."""
    metadata = read_gguf(model).metadata
    named = {metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")}
    listed = metadata.get(END_TOKENS)
    ids = {id for id in named if isinstance(id, int)} | set([] if listed is None else listed.tolist())
    return sorted(ids | {id for id, text in enumerate(metadata["tokenizer.ggml.tokens"]) if text in _ENDS})


def contenders(
    model: Path, adapters: Sequence[str], peers: Sequence[str], binary: Path | None = None
) -> tuple[list[Contender], list[str]]:
    """Ours and the peers that can be started, and why another cannot.

    adapters: their names. peers: names of engines; one of them that is missing raises its error, unless "all" is
    asked for. binary: llama-server's, default the one on PATH.
    """
    no_end = {"logit_bias": {str(id): -100 for id in end_tokens(model)}}

    def by_name(number: int) -> dict[str, Any]:
        return {"model": adapters[number]}

    def by_scale(number: int) -> dict[str, Any]:
        return {"lora": [{"id": number, "scale": 1.0}]}

    @contextmanager
    def ours(options: UpstreamOptions) -> Iterator[Launch]:
        yield ours_launch(options)

    found, missing = [Contender(OURS, ours, by_name, no_end)], []
    for name in upstream.ENGINES if "all" in peers else peers:
        try:
            if name == LLAMA_SERVER:
                upstream.find_llama_server(binary)
            else:
                upstream.check_llama_cpp_server()
        except SlmError as error:
            if "all" not in peers:
                raise
            missing.append(f"{name} is not measured: {error}")
            continue
        found.append(_peer(name, binary, by_scale, by_name, no_end))
    return found, missing


def _peer(
    name: str,
    binary: Path | None,
    by_scale: Callable[[int], dict[str, Any]],
    by_name: Callable[[int], dict[str, Any]],
    no_end: dict[str, Any],
) -> Contender:
    def launch(options: UpstreamOptions) -> AbstractContextManager[Launch]:
        return upstream.prepared(name, options, binary)

    if name == LLAMA_CPP_PYTHON:
        return Contender(name, launch, by_name, no_end)
    return Contender(name, launch, by_scale, {"ignore_eos": True})
