"""How fast a GGUF model reads a prompt and writes an answer on this machine. It knows nothing of quality.

As the server runs it: flash attention and the cache's type left to llama.cpp, a thread a physical core. The best of a
few repetitions is taken, since other processes can only make a run slower.
"""

from __future__ import annotations

import platform
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slm.native import llama
from slm.native.process import cpu_name
from slm.weights.gguf_reader import read_gguf

PROMPT_TOKENS, ANSWER_TOKENS, REPEATS = 256, 24, 3


@dataclass(frozen=True)
class Speed:
    """Tokens a second: `prefill` of a prompt at once, `decode` one after another after it."""

    prefill_tok_s: float
    decode_tok_s: float


def measure_speed(
    path: Path, *, prompt_tokens: int = PROMPT_TOKENS, answer_tokens: int = ANSWER_TOKENS, repeats: int = REPEATS
) -> Speed:
    """Time a model on random tokens, which cost what any cost. Raises the errors of `read_gguf` and EngineError."""
    with ExitStack() as stack:
        model = llama.open_model(stack, read_gguf(path).path)
        trained = int(llama.library().llama_model_n_ctx_train(model))
        answer = max(1, min(answer_tokens, trained // 4))
        prompt = max(1, min(prompt_tokens, trained - answer))
        context = llama.open_context(stack, model, llama.ContextParams(n_ctx=prompt + answer, n_batch=prompt))
        ids = np.random.default_rng(0).integers(0, llama.vocab_size(model), prompt + answer).tolist()
        prefills, decodes = [], []
        for _ in range(1 + repeats):  # the first run pages the weights in
            llama.forget(context)
            started = time.perf_counter()
            llama.decode_tokens(context, ids[:prompt], 0)
            read = time.perf_counter()
            for at in range(prompt, prompt + answer):
                llama.decode_tokens(context, ids[at : at + 1], at)
            prefills.append(prompt / (read - started))
            decodes.append(answer / (time.perf_counter() - read))
    return Speed(round(max(prefills[1:]), 1), round(max(decodes[1:]), 1))


def machine() -> dict[str, Any]:
    """What the figures were measured on: CPU, threads used, system."""
    return {
        "cpu": cpu_name(),
        "threads": llama.physical_cores(),
        "system": f"{platform.system()} {platform.machine()}",
    }
