"""What clients may send to generate text, as OpenAI writes it, with llama-server's and vLLM's further fields.

What a client may send and we do not do is refused by name (`serve.server.api.request.fields`); what has no effect on
the answer is ignored. It knows nothing of the engine or of how an answer is built.
"""

from __future__ import annotations

import random
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from serve.server.api.request.fields import HARMLESS, OFF, Fields, Off, TokenId, one_name, refused
from serve.server.api.request.messages import TurnOf
from serve.server.api.request.retrieval import Retrieval
from serve.server.api.request.tools import Tool, ToolChoice, checked_choice
from serve.server.api.request.wanted import Shaped
from serve.server.guard import MAX_ANSWERS
from slm.chat.prompt import TemplateVariables
from slm.errors import InputError
from slm.joints import EVERYTHING, Filters, Message, SamplingOptions

# The answer's length when a request names none and the context has room for it.
DEFAULT_MAX_TOKENS = 512
# The names of an object are texts in JSON.
_Key = Annotated[int, Field(strict=False)]
# Every piece of text is searched for all of them.
_STOPS, _STOP_CHARACTERS = 16, 1_000


class StreamOptions(Fields):
    """stream_options of OpenAI."""

    harmless = frozenset({"include_obfuscation"})
    off: ClassVar[Off] = {"continuous_usage_stats": (False,)}

    include_usage: bool = False


class LoraScale(Fields):
    """One adapter of a request's own set, as llama-server: `id` as GET /lora-adapters lists it."""

    id: int = Field(ge=0)
    scale: float = Field(ge=-10, le=10)


class GenerationRequest(Shaped):
    """What chat and completion requests share."""

    harmless = HARMLESS
    off = OFF

    model: str = "auto"
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    min_tokens: int = Field(0, ge=0)
    ignore_eos: bool = False
    stop_token_ids: list[TokenId] = Field(default_factory=list, max_length=64)
    temperature: float = Field(0.7, ge=0, le=5)
    top_p: float = Field(0.95, ge=0, le=1, description="0: the likeliest token, as of any share that it holds")
    top_k: int = Field(40, ge=0)
    min_p: float = Field(0.05, ge=0, le=1)
    repeat_penalty: float = Field(1.0, ge=0.1, le=10)
    repeat_last_n: int = Field(64, ge=-1, description="How far back repeat_penalty looks; -1: at everything")
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: dict[_Key, Annotated[float, Field(ge=-100, le=100)]] = Field(default_factory=dict, max_length=1024)
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int = Field(1, ge=1, le=MAX_ANSWERS)  # what --max-n allows is the guard's affair
    best_of: int | None = None
    lora: list[LoraScale] | None = Field(None, max_length=64)

    @classmethod
    def renamed(cls, given: dict[str, Any]) -> dict[str, Any]:
        one_name(given, "repeat_penalty")
        for name in ("n_predict", "max_tokens", "max_completion_tokens"):
            if given.get(name) == -1:  # llama-server's and LM Studio's word for no limit
                del given[name]
        one_name(given, "max_tokens")
        if given.get("top_k") == -1:  # vLLM's word for all of them
            given["top_k"] = 0
        return given

    @field_validator("stop", mode="before")
    @classmethod
    def _few_stops(cls, value: Any) -> Any:
        stops = value if isinstance(value, list) else [value]
        if not all(isinstance(stop, str) for stop in stops):
            raise ValueError("has to be a text or a list of texts")
        if len(stops) > _STOPS or any(len(stop) > _STOP_CHARACTERS for stop in stops):
            raise ValueError(f"at most {_STOPS} stop strings of {_STOP_CHARACTERS:,} characters are looked for")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> GenerationRequest:
        if self.best_of is not None and self.best_of != self.n:
            raise refused("best_of", "this server does not do it: all answers that are made are given")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise refused("max_completion_tokens", "it is another name of 'max_tokens', which has another value")
        if self.limit is not None and self.min_tokens > self.limit:
            raise refused("min_tokens", f"an answer of at least {self.min_tokens} tokens is longer than max_tokens")
        return self

    @property
    def limit(self) -> int | None:
        """The longest answer the client asked for, in tokens."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings that end the answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def sampling(self, *, grammar: str = "", grammar_field: str = "", logprobs: int | None = None) -> SamplingOptions:
        """The engine's options. Without a seed, or with -1, every request draws another one.

        Raises InputError where an answer of a form is not to end where the form does.
        """
        if grammar and (self.ignore_eos or self.min_tokens):
            field = "ignore_eos" if self.ignore_eos else "min_tokens"
            raise InputError(f"{field}: does not go with an answer that has a form or may hold calls")
        seed = random.getrandbits(32) if self.seed in (None, -1) else self.seed or 0
        return SamplingOptions(
            max_tokens=self.limit or max(DEFAULT_MAX_TOKENS, self.min_tokens),
            min_tokens=self.min_tokens,
            ignore_eos=self.ignore_eos,
            stop_tokens=tuple(self.stop_token_ids),
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repeat_penalty=self.repeat_penalty,
            repeat_last_n=self.repeat_last_n,
            seed=seed & (2**63 - 1),
            stop=self.stops,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=tuple(self.logit_bias.items()),
            logprobs=logprobs,
            grammar=grammar,
            grammar_field=grammar_field,
        )


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions. `rag`: answer from the server's index (or from some of its pages), with citations."""

    off: ClassVar[Off] = {**OFF, "add_special_tokens": (False,)}  # a template writes them itself
    effort_field: ClassVar[str] = "reasoning_effort"  # what the client calls it

    messages: list[TurnOf]
    rag: bool | Retrieval = False
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    tools: list[Tool] = Field(default_factory=list, max_length=128)
    tool_choice: Annotated[ToolChoice, BeforeValidator(checked_choice)] = "auto"
    parallel_tool_calls: bool = True
    add_generation_prompt: bool | None = Field(None, description="Default: unless the final message is continued")
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, max_length=32)
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None

    @model_validator(mode="after")
    def _one_ending(self) -> ChatRequest:
        if not self.messages:
            raise refused("messages", "the conversation is empty")
        if self.continues and self.add_generation_prompt:
            reason = "it begins another answer, and continue_final_message goes on with the last one"
            raise refused("add_generation_prompt", reason)
        for number, turn in enumerate(self.messages[:-1]):
            if turn.prefix:
                raise refused("messages", f"only the last one can be continued, not number {number}")
        if self.continues:
            last = self.messages[-1] if self.messages else None
            if last is None or last.role != "assistant" or last.tool_calls:
                raise refused("continue_final_message", "the final message has to be a text of the assistant")
        return self

    @property
    def filters(self) -> Filters:
        """Which documents of the index count."""
        return self.rag.filters() if isinstance(self.rag, Retrieval) else EVERYTHING

    @property
    def reader(self) -> str | None:
        """Who is to answer from the documents: point, model, or None, which is for the server to say."""
        return self.rag.reader if isinstance(self.rag, Retrieval) else None

    @property
    def continues(self) -> bool:
        """Whether the answer goes on from the final message."""
        return self.continue_final_message or bool(self.messages and self.messages[-1].prefix)

    @property
    def template_variables(self) -> TemplateVariables:
        """What the chat template is told beside the messages."""
        given = self.chat_template_kwargs
        if self.reasoning_effort == "none":  # off, in whichever word the template has for it
            return TemplateVariables({"enable_thinking": False, "thinking": False, **given})
        if self.reasoning_effort is None or "reasoning_effort" in given:
            return TemplateVariables(given)
        effort = {"reasoning_effort": self.reasoning_effort, **given}
        return TemplateVariables(effort, {"reasoning_effort": self.effort_field})

    def conversation(self) -> list[Message]:
        """The messages for the chat template; a tool's result gets the name of the function that was called."""
        messages = [turn.plain() for turn in self.messages]
        names: dict[str, str] = {}
        for message in messages:
            names |= {call["id"]: call["function"]["name"] for call in message.get("tool_calls", ())}
            if message["role"] == "tool" and "name" not in message:
                message["name"] = names.get(message["tool_call_id"], "")
        return messages

    @property
    def scores(self) -> int | None:
        """How many likeliest tokens to report with each one; None: no scores. Raises InputError."""
        if self.top_logprobs and not self.logprobs:
            raise InputError("top_logprobs: needs logprobs to be true")
        return self.top_logprobs if self.logprobs else None


class CompletionRequest(GenerationRequest):
    """POST /v1/completions: one prompt or several, as text or as token ids."""

    off: ClassVar[Off] = {**OFF, "add_special_tokens": (True,)}

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    logprobs: int | None = Field(None, ge=0, le=20)

    @field_validator("prompt", mode="before")
    @classmethod
    def _some(cls, value: Any) -> Any:
        if value == []:
            raise ValueError("is empty")
        return value

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or token ids. Raises InputError for none or too many."""
        prompt: Any = self.prompt
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            prompt = [prompt]
        if not 1 <= len(prompt) * self.n <= MAX_ANSWERS:
            raise InputError(
                f"prompt: a request may ask for 1 to {MAX_ANSWERS} answers", found=str(len(prompt) * self.n)
            )
        return list(prompt)
