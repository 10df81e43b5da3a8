"""Which PEFT adapters no merge can fold into a base, by their settings, and what to do with them.

It knows nothing of files or of weights, and nothing of which kinds a room can use besides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# They put vectors before the prompt, or into attention, and change no weight (peft/utils/peft_types.py).
_PROMPTS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE",
            "ADAPTION_PROMPT")  # fmt: skip
# Initializations that move the base's own weights in a way that the adapter's folder does not tell. PiSSA without
# random numbers and OLoRA move them as the base alone says, so that PEFT does it again at every loading.
_UNTOLD = {
    "pissa_niter": ("a randomized PiSSA", "the base's part of it is drawn anew at every loading"),
    "corda": ("CorDA", "the base's part of it depends on the texts that it was begun with"),
    "lora_ga": ("LoRA-GA", "the base's part of it depends on the texts that it was begun with"),
    "loftq": ("LoftQ", "it belongs to the quantized base that LoftQ made with it"),
}
_CONVERT = "Save it again with PEFT's path_initial_model_for_weight_conversion, which makes an ordinary LoRA of it."
_ON_ITS_OWN = "Merge it with PEFT into the base that LoftQ wrote, and convert what comes out."


@dataclass(frozen=True)
class Unmergeable:
    """Why an adapter cannot be folded into its base, in words: what it is, the reason, what to do."""

    what: str
    why: str
    hint: str


def unmergeable(settings: Mapping[str, Any]) -> Unmergeable | None:
    """Why the adapter of an adapter_config.json cannot be merged; None where it can be as far as its settings tell."""
    kind = str(settings.get("peft_type"))
    if kind in _PROMPTS:
        return Unmergeable(
            f"is of the kind {kind}", "it puts vectors beside the prompt and changes no weights",
            "Train a LoRA instead, or use it with PEFT.",
        )  # fmt: skip
    start = str(settings.get("init_lora_weights")).lower()
    for name, (shown, why) in _UNTOLD.items():
        if start.startswith(name):
            return Unmergeable(
                f"began with {shown} and was not turned into a LoRA for its base", why,
                _ON_ITS_OWN if name == "loftq" else _CONVERT,
            )  # fmt: skip
    return None
