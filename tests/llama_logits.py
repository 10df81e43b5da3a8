"""Every logit of a sequence as llama.cpp computes it: what conversions and the engine are compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from slm.native.llama import viewed_logits


def all_logits(model: Any, context: Any, tokens: list[int]) -> npt.NDArray[np.float32]:
    """Logits at every position of one sequence, (len(tokens), vocabulary) float32, copied; clears the context first."""
    logits: npt.NDArray[np.float32] = viewed_logits(model, context, tokens).copy()
    return logits
