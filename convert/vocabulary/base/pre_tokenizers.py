r"""Byte-level BPE's pre-tokenizers: how a `tokenizer.json` writes each one, and llama.cpp's name for it.

It knows nothing of vocabularies. A pre-tokenizer is recognized by the regexes it splits with, in their order, never
by the ids of a sample text: a vocabulary trained or extended yesterday has the pre-tokenizer of its parent. Names
and regexes: llama.cpp, src/llama-vocab.cpp, `llm_tokenizer_bpe`; whether the runtime really splits so is proven
id for id by `convert.vocabulary.base.proof`.
"""

from __future__ import annotations

from typing import Any

from slm.errors import UnsupportedError

GPT2_REGEX = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
# Words that start with capitals or end in small letters, as GPT-4o and Mistral's Tekken split them.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = [rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"]
_TAIL = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_LLAMA3 = rf"{_ENDINGS}|{_WORDS}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}"

# Name -> the regexes of its Split steps, as published in the tokenizer.json of each family. Those with `ignore_merges`
# take a word that is a token whole; llama.cpp ties this to the name.
SPLITS: dict[str, tuple[str, ...]] = {
    "gpt-2": (GPT2_REGEX,),  # GPT-2, GPT-NeoX, Pythia, ModernBERT, OLMo, MPT
    "smollm": (r"\p{N}", GPT2_REGEX),  # SmolLM 1 and 2, StarCoder, Command R
    "llama-bpe": (_LLAMA3,),
    "dbrx": (_LLAMA3,),
    "qwen2": (rf"{_ENDINGS}|{_WORDS}|\p{{N}}|{_SIGNS}|{_SPACES}",),  # Qwen 2, 2.5 and 3, StableLM 2
    "qwen35": (
        rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}",
    ),
    "seed-coder": (rf"{_ENDINGS}|{_WORDS}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",),
    "tekken": (rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_TAIL}",),
    "gpt-4o": (rf"{_CASED[0]}{_ENDINGS}?|{_CASED[1]}{_ENDINGS}?|\p{{N}}{{1,3}}|{_TAIL}",),
    "deepseek-v3": (
        r"\p{N}{1,3}",
        "[一-龥぀-ゟ゠-ヿ]+",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"""
        rf"[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
    ),
}
# llama.cpp's BPE over raw characters with ranked merges, spaces written as ▁, bytes as <0xXX>, words cut at newlines.
RANKED_PRE = "sarvam-moe"
_IGNORE_MERGES = ("llama-bpe", "tekken")
_ALIASES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "modern-bert": "gpt-2", "olmo": "gpt-2", "mpt": "gpt-2"}
# Other spellings of the same regex.
_SAME = [("\r", r"\r"), ("\n", r"\n"), ("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", _ENDINGS)]


def canonical(regex: str) -> str:
    """One spelling for regexes that differ in writing only."""
    for spelling, ours in _SAME:
        regex = regex.replace(spelling, ours)
    return regex


def _splits(step: dict[str, Any]) -> list[str] | None:
    """The regexes that a pre-tokenizer's step splits with; None for a step that does something else."""
    kind = step["type"]
    if kind == "ByteLevel":
        return [GPT2_REGEX] if step.get("use_regex", True) else []
    if kind == "Digits":
        return [r"\p{N}" if step.get("individual_digits") else r"\p{N}+"]
    if kind == "Split":
        regex = step["pattern"].get("Regex")
        # Keeping the matches alone is the same as isolating them, for a regex that matches everything.
        kept = step.get("behavior") == "Isolated" or (step.get("behavior") == "Removed" and step.get("invert"))
        return [canonical(regex)] if kept and regex is not None else None
    return None


def pre_name(steps: list[dict[str, Any]], ignore_merges: bool) -> str:
    """llama.cpp's name of a byte-level pre-tokenizer, from its flattened steps. Raises UnsupportedError.

    A name that ignores merges is preferred for a tokenizer that does; merges that are whole give the same ids anyway.
    """
    kinds = [step["type"] for step in steps]
    if steps and steps[-1]["type"] == "ByteLevel" and steps[-1].get("add_prefix_space"):
        raise UnsupportedError("the tokenizer puts a space before each text (add_prefix_space), the runtime does not")
    found = [_splits(step) for step in steps]
    if kinds[-1:] == ["ByteLevel"] and None not in found:
        regexes = tuple(regex for step in found for regex in step or [])
        names = [name for name, known in SPLITS.items() if tuple(map(canonical, known)) == regexes]
        for name in names:
            if (name in _IGNORE_MERGES) == ignore_merges:
                return name
        if names:
            return names[0]
    raise UnsupportedError(
        f"the pre-tokenizer ({', '.join(kinds) or 'none'}) is not one the runtime knows",
        hint=f"Supported: those of {', '.join(SPLITS)}.",
    )


def ignores_merges(pre: str) -> bool:
    """Whether llama.cpp takes a word that is a token whole under this name."""
    return _ALIASES.get(pre, pre) in _IGNORE_MERGES


def byte_level_step(use_regex: bool) -> dict[str, Any]:
    """The ByteLevel step of a `tokenizer.json`, as pre-tokenizer or decoder."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def pre_tokenizer_of(pre: str) -> dict[str, Any]:
    """The `pre_tokenizer` of a byte-level BPE by its llama.cpp name. Raises UnsupportedError."""
    pre = _ALIASES.get(pre, pre)
    if pre not in SPLITS:
        raise UnsupportedError(f"the pre-tokenizer '{pre}' is not restored", hint=f"Supported: {', '.join(SPLITS)}.")
    if pre == "gpt-2":
        return byte_level_step(True)
    if pre == "smollm":
        digits = {"type": "Digits", "individual_digits": True}
        return {"type": "Sequence", "pretokenizers": [digits, byte_level_step(True)]}
    splits = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False} for regex in SPLITS[pre]
    ]
    return {"type": "Sequence", "pretokenizers": [*splits, byte_level_step(False)]}
