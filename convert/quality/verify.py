"""Compares a GGUF with its reference: token ids, logits, top-1 agreement, KL divergence, perplexity, by language.

The reference is a checkpoint folder (run by transformers, with PEFT for an adapter) or another GGUF. Both models run
side by side in this process, a few tokens at a time: no logits are kept. It knows nothing of how either was made.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from convert.output.vet import vet_model
from convert.quality.bounds import Bound, check_languages, each_language, value_of
from convert.quality.kld import NO_TARGET, Figures, Logits, Tally, pooled
from convert.quality.sample_text import read_texts
from convert.quantize.quantize import types_written
from convert.vocabulary.base.proof import MIXED_LINES
from slm.artifacts import require_file
from slm.errors import InputError, UnsupportedError
from slm.native import llama
from slm.terminal.console import progress
from slm.weights.gguf_reader import GgufFile, read_gguf

WINDOW = 256  # tokens of context at most; most of what a chunk of 512 would show in half the time and memory
_BLOCK = 64  # rows of logits at a time in the runtime's buffer: 64 MB for a vocabulary of 262,144
MAX_TOKENS = 1024  # of each language, unless told otherwise


@dataclass(frozen=True)
class Bounds:
    """What may at most be lost over all languages together, and by_language in one, or in each.

    relative: max |difference| / max |reference logit|; kl in nats, mean over tokens.
    """

    relative: float
    top1: float
    kl: float
    by_language: tuple[Bound, ...] = ()

    @property
    def overall(self) -> Bounds:
        """The same with no limit on the measures (kld, top1) that are bounded by language."""
        measures = {bound.measure for bound in self.by_language}
        return replace(
            self,
            top1=0.0 if "top1" in measures else self.top1,
            kl=math.inf if "kld" in measures else self.kl,
        )


# Measured on SmolLM2-135M and Gemma-3-270m with room to spare; published figures are for models 50 times as large,
# which lose less. Q4_0 of weights that come from another 4-bit grid is the worst case: KL 0.5, top-1 0.5.
# llama.cpp multiplies quantized weights with activations rounded to 8 bits.
_BOUNDS = {
    "f32": Bounds(0.01, 0.99, 0.001), "f16": Bounds(0.02, 0.98, 0.002), "bf16": Bounds(0.05, 0.95, 0.01),
    "q8_0": Bounds(0.15, 0.90, 0.05), "q6": Bounds(0.25, 0.85, 0.10), "q5": Bounds(0.40, 0.75, 0.25),
    "q4": Bounds(0.80, 0.40, 0.80), "low": Bounds(1.0, 0.40, 2.0),
}  # fmt: skip


def bounds_for(file: GgufFile) -> tuple[str, Bounds]:
    """The default bounds by the coarsest type that a sixth or more of a file's matrices have."""
    types = {t: n for t, n in types_written(file).items() if t != "F32"} or {"F32": 1}
    total = sum(types.values())
    ladder = [
        ("low", ("Q2", "Q3", "IQ1", "IQ2", "IQ3", "TQ")),
        ("q4", ("Q4", "IQ4", "MXFP4")),
        ("q5", ("Q5",)),
        ("q6", ("Q6",)),
        ("q8_0", ("Q8",)),
        ("bf16", ("BF16",)),
        ("f16", ("F16",)),
    ]
    share = 0.0
    for name, starts in ladder:
        share += sum(n for t, n in types.items() if t.startswith(starts)) / total
        if share >= 1 / 6:
            return name, _BOUNDS[name]
    return "f32", _BOUNDS["f32"]


def broken_bounds(figures: Figures, bounds: Bounds) -> list[str]:
    """A sentence for each bound that is broken."""
    broken = []
    if not figures.max_relative_difference <= bounds.relative:
        broken.append(f"max relative difference {figures.max_relative_difference:.4g} > {bounds.relative:g}")
    if not figures.top1_agreement >= bounds.top1:
        broken.append(f"top-1 agreement {figures.top1_agreement:.4f} < {bounds.top1:g}")
    if not figures.mean_kl_divergence <= bounds.kl:
        broken.append(f"mean KL divergence {figures.mean_kl_divergence:.4g} > {bounds.kl:g}")
    return broken


@dataclass(frozen=True)
class Runner:
    """Something that gives ids for a text, and a (1, vocabulary) row of logits for each of the ids, in order."""

    encode: Callable[[str], list[int]]
    rows: Callable[[list[int]], Iterator[Logits]]
    start: tuple[int, ...] = ()  # the BOS that the vocabulary puts before a text; models answer wildly without it
    context: int = WINDOW  # tokens it was trained to look back at
    token_bytes: Callable[[int], int] = lambda _: 0


def is_language_model(file: GgufFile) -> bool:
    """Whether a model predicts next tokens; llama.cpp marks embedders by their pooling or by their attention."""
    key = file.architecture
    return bool(file.metadata.get(f"{key}.attention.causal", True)) and not file.metadata.get(f"{key}.pooling_type")


def gguf_runner(stack: ExitStack, path: Path, adapter: Path | None = None) -> Runner:
    """Run a GGUF model by llama.cpp. Raises UnsupportedError for an embedder, which predicts no next token."""
    file = read_gguf(path)
    vet_model(file)
    if not is_language_model(file):
        raise UnsupportedError(f"'{path}' is an embedder: it has no next-token distribution to compare")
    model = llama.open_model(stack, path)
    # Without flash attention and with an f32 cache: the runtime's f16 shortcuts are no property of the file.
    context = llama.open_context(
        stack, model, llama.ContextParams(n_ctx=WINDOW, n_batch=_BLOCK, flash_attention=False, exact_cache=True)
    )
    if adapter is not None:
        llama.set_adapters(context, [(llama.open_adapter(stack, model, adapter), 1.0)])

    def rows(ids: list[int]) -> Iterator[Logits]:
        llama.forget(context)
        for at in range(0, len(ids), _BLOCK):
            part = ids[at : at + _BLOCK]
            llama.decode_tokens(context, part, at, every=True)
            for row in range(len(part)):
                yield llama.logits_at(model, context, row)[None]

    return Runner(
        lambda text: llama.tokenize(model, text, add_special=False, parse_special=True),
        rows,
        tuple(llama.tokenize(model, "", add_special=True, parse_special=False)),
        int(llama.library().llama_model_n_ctx_train(model)),
        lambda token: len(llama.token_bytes(model, token)),
    )


def _checkpoint_runner(folder: Path, peft: Path | None) -> Runner:
    import torch
    import transformers

    from convert.source.checkpoint import read_checkpoint
    from convert.vocabulary.vocab_source import read_vocabulary

    # The tokenizer as conversion reads it: some classes of transformers change it while loading.
    encode = read_vocabulary(folder, read_checkpoint(folder).config).encoder()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    if peft is not None:
        from peft import PeftModel

        # PEFT asks transformers for a name that it will drop; the reader can do nothing about it.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
        model = PeftModel.from_pretrained(model, str(peft))
    model.eval()

    def rows(ids: list[int]) -> Iterator[Logits]:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].float().numpy()
        yield from (logits[row : row + 1] for row in range(len(ids)))

    return Runner(encode, rows)


def windows(ids: Sequence[int], start: Sequence[int], size: int) -> Iterator[tuple[list[int], list[int]]]:
    """(tokens, the token that follows each) of a text in windows of at most `size`, each begun with `start`.

    Every token of the text is predicted exactly once; without a BOS before it the very first one is not.
    """
    room = size - len(start)
    for at in range(0, len(ids), room):
        window = [*start, *ids[at : at + room]]
        after = NO_TARGET if start or at + room >= len(ids) else ids[at + room]
        yield window, [*([NO_TARGET] * (len(start) - 1)), *window[max(1, len(start)) :], after]


def measure(candidate: Runner, reference: Runner, texts: Mapping[str, str], max_tokens: int) -> dict[str, Tally]:
    """Run both over the texts, {language: text}, at most `max_tokens` (0: all) of each; {language: tally}.

    Raises InputError for a text without tokens, MismatchError and VerificationError as `Tally.add` does.
    """
    size = min(WINDOW, candidate.context, reference.context)
    if size < 2 + len(candidate.start):
        raise InputError(f"a context of {size} tokens is too short to compare anything in")
    encoded = {lang: _cut(text, reference.encode, max_tokens) for lang, text in texts.items()}
    tallies = {lang: Tally() for lang in texts}
    with progress("comparing", sum(len(ids) for _, ids in encoded.values()), "tokens") as show:
        done = 0
        for lang, (text, ids) in encoded.items():
            if len(ids) < 2:
                raise InputError(f"the text in {lang} has fewer than two tokens", found=repr(text[:40]))
            tally = tallies[lang]
            tally.utf8_bytes = len(text.encode()) - (0 if candidate.start else candidate.token_bytes(ids[0]))
            for window, targets in windows(ids, candidate.start, size):
                pairs = zip(reference.rows(window), candidate.rows(window), strict=True)
                for (expected, found), target in zip(pairs, targets, strict=True):
                    tally.add(expected, found, [target])
                done += len(window)
                show(done)
    return tallies


def _cut(text: str, encode: Callable[[str], list[int]], most: int) -> tuple[str, list[int]]:
    """The text's beginning that has at most `most` tokens (0: the whole), and its ids."""
    ids = encode(text)
    while most and len(ids) > most:
        text = text[: min(len(text) - 1, len(text) * most // len(ids))]
        ids = encode(text)
    return text, ids


def by_language(tallies: Mapping[str, Tally]) -> dict[str, dict[str, Any]]:
    """{language: figures} for JSON."""
    return {lang: asdict(tally.figures()) for lang, tally in tallies.items()}


def verify_model(
    candidate: Path | str,
    against: Path | str,
    *,
    adapter: Path | str | None = None,
    peft: Path | str | None = None,
    texts: Mapping[str, Path] | None = None,
    bounds: Bounds | None = None,
    max_tokens: int = MAX_TOKENS,
) -> dict[str, Any]:
    """Compare a GGUF (with an adapter GGUF) with a checkpoint folder (with a PEFT folder) or a GGUF.

    texts: {language: file}, by default the package's English and Japanese; at most `max_tokens` (0: all) of each.
    bounds: by default `bounds_for` the file. Returns {ok, broken, bounds, token_ids, by_language, overall, ...}; `ok`
    says whether every bound holds.
    """
    file = read_gguf(candidate)
    if file.is_adapter:
        raise InputError(f"'{file.path}' is an adapter", hint="Give its base as CANDIDATE and it as --adapter.")
    reference, adapter_path = Path(against), None if adapter is None else read_gguf(adapter).path
    if (adapter is None) != (peft is None) and reference.is_dir():
        raise InputError("--adapter and --peft belong together: the GGUF adapter and the PEFT folder it came from")
    if adapter_path is not None and "adapter.alora.invocation_tokens" in read_gguf(adapter_path).metadata:
        raise UnsupportedError(
            f"'{adapter}' is an activated LoRA, which acts from certain tokens on; it is not compared"
        )
    prose = read_texts(texts)
    kind, default = bounds_for(file)
    bounds = bounds or default
    check_languages(bounds.by_language, list(prose))
    with ExitStack() as stack:
        found = gguf_runner(stack, file.path, adapter_path)
        if reference.is_dir():
            expected = _checkpoint_runner(reference, None if peft is None else Path(peft))
        else:
            expected = gguf_runner(stack, read_gguf(require_file(reference)).path, adapter_path)
        lines = list(MIXED_LINES)
        for text in prose.values():
            lines += [line for line in _cut(text, expected.encode, max_tokens)[0].splitlines() if line.strip()]
        token_ids = _compare_ids(lines, found, expected)
        tallies = measure(found, expected, prose, max_tokens)
    overall = pooled(tallies.values()).figures()
    result: dict[str, Any] = {
        "candidate": str(candidate),
        "against": str(against),
        "adapter": None if adapter is None else str(adapter),
        "bounds_for": kind,
        "bounds": {**asdict(bounds), "by_language": [str(bound) for bound in bounds.by_language]},
        "token_ids": token_ids,
        "by_language": by_language(tallies),
        "overall": asdict(overall),
    }
    broken = broken_bounds(overall, bounds.overall)
    for bound in bounds.by_language:
        for single in each_language(bound, list(prose)):
            sentence = single.broken_by(value_of(single, result))
            broken += [] if sentence is None else [sentence]
    if token_ids["lines_different"]:
        broken.insert(0, f"token ids differ on {token_ids['lines_different']} of {token_ids['lines']} lines")
    return {**result, "ok": not broken, "broken": broken}


def _compare_ids(lines: Sequence[str], found: Runner, expected: Runner) -> dict[str, Any]:
    different = [line for line in lines if found.encode(line) != expected.encode(line)]
    return {
        "lines": len(lines),
        "lines_different": len(different),
        "first_different": different[0][:120] if different else None,
    }
