"""The next token and the text it becomes: llama.cpp's sampler chain, stop strings, whole characters.

It knows nothing of batches, contexts' contents or the protocol.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from slm.joints import SamplingOptions
from slm.llama import library

# How far back the repeat penalty looks, in tokens (llama.cpp's default for penalty_last_n).
_PENALTY_WINDOW = 64


def open_sampler(stack: ExitStack, options: SamplingOptions, prompt: Sequence[int], *, vocab_size: int) -> Any:
    """A sampler chain for one request: penalty, then greedy (temperature 0) or top-k, top-p, min-p, temperature, seed.

    The penalty sees the end of the prompt as well.
    """
    lib = library()
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    stack.callback(lib.llama_sampler_free, chain)
    if options.repeat_penalty != 1.0:
        penalties = lib.llama_sampler_init_penalties(vocab_size, _PENALTY_WINDOW, options.repeat_penalty, 0.0, 0.0)
        lib.llama_sampler_chain_add(chain, penalties)
        for token in prompt[-_PENALTY_WINDOW:]:
            lib.llama_sampler_accept(chain, token)
    if options.temperature <= 0:
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_greedy())
        return chain
    if options.top_k > 0:
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_k(options.top_k))
    if options.top_p < 1.0:
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_p(options.top_p, 1))
    if options.min_p > 0.0:
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_min_p(options.min_p, 1))
    lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_temp(options.temperature))
    lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_dist(options.seed & 0xFFFFFFFF))
    return chain


class TextStream:
    """Turns token bytes into text that can be shown: whole characters only, and never a part of a stop string."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = tuple(text for text in stop if text)
        self._held = ""
        self.stopped = False

    def feed(self, piece: bytes) -> str:
        """Text that became certain with these bytes; sets `stopped` when a stop string was met (it is not shown)."""
        return self._release(self._decoder.decode(piece), last=False)

    def flush(self) -> str:
        """The rest at the end of the answer; an incomplete character becomes U+FFFD."""
        return self._release(self._decoder.decode(b"", True), last=True)

    def _release(self, text: str, *, last: bool) -> str:
        if self.stopped:
            return ""
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        hold = 0 if last else self._possible_stop()
        shown, self._held = self._held[: len(self._held) - hold], self._held[len(self._held) - hold :]
        return shown

    def _possible_stop(self) -> int:
        """How many characters at the end could be the beginning of a stop string."""
        longest = 0
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:size]):
                    longest = size
                    break
        return longest
