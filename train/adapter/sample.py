"""Generation from a checkpoint folder with transformers, with or without an adapter, piece by piece.

For trying a checkpoint before it is converted; it knows nothing of GGUF or of the server's engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm.artifacts import MANIFEST, read_manifest, require_folder
from slm.errors import InputError, UnknownNameError
from slm.text import language
from train.adapter.opened import load_with_adapter, tokenizer_with
from train.base import load_tokenizer
from train.data.masks import ExampleEncoder, end_of_turn_id

_CONTINUATION_PENALTY = 1.15


@dataclass(frozen=True)
class GenerateOptions:
    """How the next token is chosen. Temperature 0 is greedy.

    repetition_penalty None: 1.15 for a continuation, where small base models go in circles, and 1 for an answer.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 0.95
    repetition_penalty: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        faults = []
        if self.max_new_tokens < 1:
            faults.append(f"--max-new-tokens must be at least 1 (is {self.max_new_tokens})")
        if self.temperature < 0:
            faults.append(f"--temperature must not be negative (is {self.temperature})")
        if not 0 < self.top_p <= 1:
            faults.append(f"--top-p must be above 0 and at most 1 (is {self.top_p})")
        if self.repetition_penalty is not None and self.repetition_penalty <= 0:
            faults.append(f"--repetition-penalty must be positive (is {self.repetition_penalty})")
        if faults:
            raise InputError("the options do not work: " + "; ".join(faults))


def end_of_turn_ids(tokenizer: Any, model: Any = None) -> list[int]:
    """The ids that end an answer: EOS, those of the model's generation_config.json, and the special token the chat
    template puts behind one."""
    listed = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = [tokenizer.eos_token_id, *(listed if isinstance(listed, list) else [listed])]
    ends = list(dict.fromkeys(int(token) for token in ends if token is not None))
    own = tokenizer.chat_template
    marker = end_of_turn_id(tokenizer, own) if isinstance(own, str) and own else None
    return ends if marker is None or marker in ends else [*ends, marker]


def open_generator(base: Path, adapter: Path | None = None) -> Generator:
    """A checkpoint with its tokenizer (the adapter's own where it has one), ready to answer."""
    model = load_with_adapter(base, adapter)
    return Generator(model, load_tokenizer(base) if adapter is None else tokenizer_with(base, adapter))


class Generator:
    """A loaded model and its tokenizer. As a conversation when there is a chat template, else as a continuation."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model, self._tokenizer = model, tokenizer

    def stream(self, prompt: str, options: GenerateOptions | None = None, *, chat: bool | None = None) -> Iterator[str]:
        """Yield the answer's text as it is made. `chat` None: as a conversation if the tokenizer has a template."""
        import torch

        options = options or GenerateOptions()
        own = self._tokenizer.chat_template
        template = own if isinstance(own, str) else ""
        if chat and not template:
            raise InputError("this checkpoint has no chat template", hint="Leave out --chat to continue the prompt.")
        encoder = ExampleEncoder(self._tokenizer, template)
        as_chat = bool(template) if chat is None else chat
        ids = encoder.prompt([{"role": "user", "content": prompt}]) if as_chat else encoder.ids(prompt)
        if not ids:
            raise InputError("the prompt is empty")
        limit = int(getattr(self._model.config, "max_position_embeddings", 0) or 1 << 30)
        room = limit - len(ids)
        if room < 1:
            raise InputError(f"the prompt has {len(ids)} tokens; the model holds {limit}")
        ends = end_of_turn_ids(self._tokenizer, self._model)
        generator = torch.Generator().manual_seed(options.seed)
        penalty = options.repetition_penalty or (1.0 if as_chat else _CONTINUATION_PENALTY)
        made: list[int] = []
        # Decoded together with the prompt, because some tokenizers drop a space at the start of a text.
        shown = self._tokenizer.decode(ids, skip_special_tokens=True)
        cache, feed = None, torch.tensor([ids])
        with torch.inference_mode():
            for _ in range(min(options.max_new_tokens, room)):
                out = self._model(input_ids=feed, past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                token = _choose(out.logits[0, -1].float(), made, penalty, options, generator)
                if token in ends:
                    break
                made.append(token)
                feed = torch.tensor([[token]])
                text = self._tokenizer.decode(ids + made, skip_special_tokens=True)
                if not text.endswith("�"):  # the rest of a character is still to come
                    yield text[len(shown) :]
                    shown = text
        rest = self._tokenizer.decode(ids + made, skip_special_tokens=True)[len(shown) :]
        if rest:
            yield rest


def _choose(logits: Any, made: list[int], penalty: float, options: GenerateOptions, generator: Any) -> int:
    """The next token id from logits of shape (vocabulary,): greedy, or nucleus sampling (arXiv 1904.09751).

    The penalty is that of CTRL (arXiv 1909.05858) over the generated tokens only, so that it does not
    punish words of the question.
    """
    import torch

    if made and penalty != 1.0:
        seen = torch.tensor(sorted(set(made)))
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if options.temperature == 0.0:
        return int(logits.argmax())
    values, order = torch.softmax(logits / options.temperature, dim=-1).sort(descending=True)
    keep = values.cumsum(0) - values < options.top_p
    return int(order[torch.multinomial(values * keep, 1, generator=generator)])


@dataclass(frozen=True)
class ChosenAdapter:
    """The adapter that a text goes to, and why."""

    name: str
    folder: Path
    reason: str


def route(text: str, adapters: dict[str, list[Path]], default: str | None = None) -> ChosenAdapter:
    """The adapter for the language of `text`, out of {name: [folder]}; undecided texts go to `default` or the first.

    An adapter's language is its manifest's "lang", else its name. Raises UnknownNameError for `default`.
    """
    if default is not None and default not in adapters:
        raise UnknownNameError("adapter", default, adapters)
    languages: dict[str, str] = {}
    for name, folders in adapters.items():
        if len(folders) > 1:
            raise InputError(f"two adapters have the name '{name}'")
        require_folder(folders[0])
        known = read_manifest(folders[0]).get("lang") if (folders[0] / MANIFEST).exists() else None
        languages.setdefault(str(known or name), name)
    guess = language.detect(text, among=languages)
    name = languages.get(guess.language or "") or default or next(iter(adapters))
    reason = guess.reason if guess.language in languages else f"{guess.reason}; the default"
    return ChosenAdapter(name, adapters[name][0], reason)
