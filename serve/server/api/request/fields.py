"""The rule for fields of requests: each one is done, or cannot change the answer, or is refused by its name.

`Fields` is the base of everything a client sends. Null is as good as absent. It knows nothing of what the fields mean.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Off = Mapping[str, tuple[Any, ...]]

# What cannot change an answer: labels, hints about caches and speed, and knobs of a method that stays off.
HARMLESS = frozenset({
    # OpenAI (api reference of chat/completions)
    "metadata", "user", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "prompt_cache_options", "prediction",
    # vLLM (vllm/entrypoints/openai/*/protocol.py)
    "priority", "request_id", "session_id", "guided_decoding_backend", "truncation_side",
    # llama-server (llama.cpp, tools/server/README.md)
    "cache_prompt", "id_slot", "n_keep", "n_discard", "timings_per_token", "return_progress", "mirostat_tau",
    "mirostat_eta", "dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers", "xtc_threshold",
    "dynatemp_exponent", "speculative.n_max", "speculative.n_min", "speculative.p_min", "backend_sampling",
    # LM Studio, Ollama
    "ttl", "draft_model", "keep_alive",
})  # fmt: skip

# What is not done here, with the values that ask for nothing; clients send those by default.
OFF: Off = {
    "audio": (), "functions": ([],), "function_call": ("none", "auto"), "modalities": (["text"],),
    "verbosity": ("medium",), "web_search_options": (), "moderation": (), "suffix": ("",), "echo": (False,),
    "use_beam_search": (False,), "length_penalty": (1,), "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,), "spaces_between_special_tokens": (True,), "truncate_prompt_tokens": (),
    "prompt_logprobs": (), "allowed_token_ids": ([],), "bad_words": ([],), "documents": ([],), "chat_template": (),
    "mm_processor_kwargs": ({},), "media_io_kwargs": ({},), "logits_processors": ([],), "cache_salt": (),
    "return_tokens_as_token_ids": (False,), "return_token_ids": (False,), "include_reasoning": (True,),
    "thinking_token_budget": (), "repetition_detection": (), "logprob_token_ids": ([],), "structural_tag": (),
    "kv_transfer_params": (), "vllm_xargs": ({},), "guided_whitespace_pattern": (), "watermarking": (False,),
    "return_prompt_text": (False,), "return_token_offsets": (False,),
    "typical_p": (1,), "tfs_z": (1,), "mirostat": (0,), "dynatemp_range": (0,), "xtc_probability": (0,),
    "dry_multiplier": (0,), "top_n_sigma": (-1, 0), "top_a": (0,), "n_indent": (0,), "min_keep": (0, 1),
    "t_max_predict_ms": (0, -1), "samplers": (), "n_probs": (0,), "post_sampling_probs": (False,),
    "return_tokens": (False,), "response_fields": ([],), "reasoning_format": ("none",), "reasoning_budget": (-1,),
    "thinking_forced_open": (False,), "parse_tool_calls": (True,), "grammar_lazy": (False,), "grammar_triggers": ([],),
    "preserved_tokens": ([],), "options": ({},), "format": ("",), "think": (False,), "raw": (False,),
    "extra_body": ({},),
}  # fmt: skip


# Other servers' words for what is said elsewhere here.
_ELSEWHERE = {
    "enable_thinking": 'chat_template_kwargs: {"enable_thinking": ...}',
    "thinking": 'chat_template_kwargs: {"enable_thinking": ...}', "reasoning": "reasoning_effort",
    "guided_decoding": "structured_outputs", "num_predict": "max_tokens", "num_ctx": "slm serve --context",
    "system": "a message of the role 'system'", "adapter": "model", "lora_adapter": "model",
}  # fmt: skip

OTHER_NAMES: Mapping[str, tuple[str, ...]] = {
    "repeat_penalty": ("repetition_penalty",), "max_tokens": ("n_predict",), "prefix": ("partial",),
    "reasoning_content": ("reasoning",), "tool_calls": ("function_call",),
}  # fmt: skip
"""Fields that clients may send under other names; errors name the one that was sent (`spelled`)."""


class Fields(BaseModel):
    """Part of a request. harmless and off: further fields that it may carry, as `HARMLESS` and `OFF`."""

    # `_understood` has refused what is not known. strict: a type is never taken for another ("5", "yes", true for 1).
    model_config = ConfigDict(extra="ignore", strict=True)
    harmless: ClassVar[frozenset[str]] = frozenset()
    off: ClassVar[Off] = {}

    @model_validator(mode="before")
    @classmethod
    def _understood(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        given = cls.renamed({name: part for name, part in value.items() if part is not None})
        known = {field.alias or name for name, field in cls.model_fields.items()}
        for name in list(given):
            if name in known:
                given[name] = whole(given[name])
                continue
            if name not in cls.harmless and not asks_nothing(given[name], cls.off.get(name, ())):
                raise refused(name, "this server does not do it" if name in cls.off else _unknown(name, known))
            del given[name]
        return given

    @classmethod
    def renamed(cls, given: dict[str, Any]) -> dict[str, Any]:
        """The fields by the names that they have here. May raise ValueError."""
        return given


def whole(value: Any) -> Any:
    """A number like 5.0 as the integer that it is to JSON, also in lists; what stands in objects is theirs to say."""
    if isinstance(value, list):
        return [whole(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def asks_nothing(value: Any, nothing: tuple[Any, ...]) -> bool:
    """Whether a value is one of those; a truth value is no number."""
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in nothing)


TokenId = Annotated[int, Field(ge=0)]


def refused(field: str | int, reason: str) -> PydanticCustomError:
    """The error for one field of a form, which is named as its place."""
    return PydanticCustomError("refused_field", "{reason}", {"field": field, "reason": reason})


def spelled(name: str, given: Mapping[str, Any]) -> str:
    """The name that the client sent a field by; null is as good as absent."""
    return next((one for one in (name, *OTHER_NAMES.get(name, ())) if given.get(one) is not None), name)


def one_name(given: dict[str, Any], name: str) -> None:
    """Move the value of another spelling to `name`. Raises an error when two of them differ."""
    for other in OTHER_NAMES[name]:
        if other in given:
            value = given.pop(other)
            if given.setdefault(name, value) != value:
                raise refused(other, f"it is another name of '{name}', which has another value")


def _unknown(name: str, known: set[str]) -> str:
    if name in _ELSEWHERE:
        return f"this field is unknown. Here it is: {_ELSEWHERE[name]}"
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return "this field is unknown" + (f". Did you mean '{near[0]}'?" if near else ". Leave it out of the request.")
