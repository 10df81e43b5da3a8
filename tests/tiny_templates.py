"""Chat templates that render as the published ones of many families do, written anew in a short form, for the tests.

Each with what stands between the question and the answer's first word where the model has to write it itself, with
what ends an answer, and with the special tokens it needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slm.chat.prompt import TEMPLATES
from tests.tiny_training import byte_level_tokenizer

_ASK = "{% if add_generation_prompt %}{{ 'ASK' }}{% endif %}"


def _turns(form: str, ask: str, before: str = "{{ bos_token }}") -> str:
    """A template with one form for every turn."""
    return before + "{% for m in messages %}{{ " + form + " }}{% endfor %}" + _ASK.replace("ASK", ask)


@dataclass(frozen=True)
class Family:
    """A template; `lead` and `end` are learned around the answer, `markers` are special tokens."""

    template: str
    end: str
    lead: str = ""
    markers: tuple[str, ...] = ()
    system: bool = True
    trims: bool = True


_HEADER = "'<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>'"
_LLAMA3 = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_QWEN3 = (  # a thought is shown in the last answer only, an empty one where there is none
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% set said = m['content'].split('</think>') %}{% if loop.last %}{{ '<think>\n' + (said[0].replace('<think>', '')"
    " if said | length > 1 else '').strip('\n') + '\n</think>\n\n' }}{% endif %}{{ said[-1].lstrip('\n') }}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_GEMMA3 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set lead = messages[0]['content'] + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set lead = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + (lead if loop.first else '')"
    " + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_GEMMA2 = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + (TEMPLATES["gemma"])
)
_PHI3 = (  # EOS behind the whole conversation, where no answer ends
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
_MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] | trim + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
_LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] | trim + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
_DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}"
    "{% elif m['role'] == 'assistant' %}{{ '<｜Assistant｜>' + m['content'].split('</think>')[-1] + eos_token }}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜>ASK' }}{% endif %}"
)
_HARMONY = (  # as gpt-oss: an earlier answer ends otherwise than the last
    "{% for m in messages %}{{ '<|start|>' + m['role'] + ('<|channel|>final' if m['role'] == 'assistant' else '')"
    " + '<|message|>' + m['content'] + ('<|return|>' if loop.last and m['role'] == 'assistant' else '<|end|>') }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
_HARMONY_MARKERS = ("<|start|>", "<|channel|>", "<|message|>", "<|return|>", "<|end|>")
_COMMAND = (
    "{{ bos_token }}{% for m in messages %}{{ '<|START_OF_TURN_TOKEN|><|' + {'user': 'USER', 'system': 'SYSTEM',"
    " 'assistant': 'CHATBOT'}[m['role']] + '_TOKEN|>' + m['content'] | trim + '<|END_OF_TURN_TOKEN|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"
)
_COMMAND_MARKERS = (
    "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|CHATBOT_TOKEN|>"
)  # fmt: skip
_CHATML = "'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'"
_QWEN25 = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}"
)
EOS = "<|endoftext|>"

FAMILIES: dict[str, Family] = {
    **{name: Family(TEMPLATES[name], end) for name, end in (("chatml", "<|im_end|>"), ("alpaca", EOS))},
    "gemma": Family(TEMPLATES["gemma"], "<end_of_turn>"),
    "llama3": Family(_turns(_HEADER, "<|start_header_id|>assistant<|end_header_id|>\n\n"), "<|eot_id|>", "", _LLAMA3),
    "llama3.2": Family(
        _turns(
            _HEADER, "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "{{ bos_token + '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + strftime_now('%d %b %Y')"
            " + '\n\n<|eot_id|>' }}",
        ), "<|eot_id|>", "", _LLAMA3,
    ),
    "qwen2.5": Family(_turns(_CHATML, "<|im_start|>assistant\n", _QWEN25), "<|im_end|>", trims=False),
    "qwen3": Family(_QWEN3, "<|im_end|>", "<think>\n\n</think>\n\n", trims=False),
    "gemma3": Family(_GEMMA3, "<end_of_turn>"),
    "gemma2": Family(_GEMMA2, "<end_of_turn>", system=False),
    "phi3": Family(_PHI3, "<|end|>", "", ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"), trims=False),
    "phi4-mini": Family(
        _PHI3.replace("|>\n'", "|>'"), "<|end|>", "", ("<|user|>", "<|assistant|>", "<|end|>"), trims=False
    ),
    "mistral": Family(_MISTRAL, EOS, " ", system=False),
    "mistral-nemo": Family(_MISTRAL.replace("[INST] ", "[INST]").replace(" [/", "[/").replace("' ' + ", ""), EOS,
                           "", ("[INST]", "[/INST]"), system=False),
    "llama2": Family(_LLAMA2, f" {EOS}", " ", system=False),
    "zephyr": Family(_turns("'<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n'", "<|assistant|>\n", ""), EOS,
                     trims=False),
    "zephyr-bare": Family(  # the newline behind the header is left to the model
        _turns("'<|' + m['role'] + '|>\n' + m['content'] | trim + eos_token + '\n'", "<|assistant|>", ""), EOS, "\n"
    ),
    "deepseek-v2": Family(
        _turns("m['role'].title() + ': ' + m['content'] | trim + (eos_token if m['role'] == 'assistant' else '\n\n')",
               "Assistant:"), EOS, " ",
    ),
    "deepseek-v3": Family(_DEEPSEEK.replace("ASK", ""), EOS, "", ("<｜User｜>", "<｜Assistant｜>"), trims=False),
    "gpt-oss": Family(_HARMONY, "<|return|>", "<|channel|>final<|message|>", _HARMONY_MARKERS, trims=False),
    "command-r": Family(_COMMAND, "<|END_OF_TURN_TOKEN|>", "", _COMMAND_MARKERS),
    "granite": Family(
        _turns("'<|start_of_role|>' + m['role'] + '<|end_of_role|>' + m['content'] | trim + eos_token + '\n'",
               "<|start_of_role|>assistant<|end_of_role|>", ""),
        EOS, "", ("<|start_of_role|>", "<|end_of_role|>"),
    ),
    "openchat": Family(
        _turns("'GPT4 Correct ' + m['role'].title() + ': ' + m['content'] | trim + '<|end_of_turn|>'",
               "GPT4 Correct Assistant:"), "<|end_of_turn|>", " ", ("<|end_of_turn|>",),
    ),
    "olmo2": Family(
        "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] | trim }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% if not loop.last or m['role'] != 'assistant' %}"
        "{{ '\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}", EOS,
    ),
}  # fmt: skip

# Templates that ask otherwise than they record: where the answer begins cannot be told.
HIDING = {
    "deepseek-r1": _DEEPSEEK.replace("ASK", "<think>\n"),
    "shouting": "{% for m in messages %}{{ m['content'] | upper if add_generation_prompt else m['content'] }}"
    "{% endfor %}",
}


def tokenizer_of(family: Family, *, bos: str | None = "<bos>") -> Any:
    """A byte-level tokenizer with the family's special tokens."""
    tokenizer = byte_level_tokenizer(bos=bos, eos=EOS)
    tokenizer.add_tokens(
        [marker for marker in family.markers if marker not in tokenizer.get_vocab()], special_tokens=True
    )
    return tokenizer
