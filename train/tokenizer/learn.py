"""Trains a SentencePiece BPE tokenizer and saves it as a transformers folder that splits text the same way.

Lossless: no normalization, no space put in front, spaces kept as they are, digits alone, and bytes for what is no
piece (line breaks and tabs among it); only U+2581, which stands for the space, comes back as a space. There is no
token for the beginning of a text. It knows nothing of models.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm.chat.prompt import named_template
from slm.errors import InputError
from slm.terminal.console import note, progress
from slm.terminal.text_file import read_text
from train.tokenizer.balance import copies, search_parity, sentences, temperature_shares
from train.tokenizer.corpus import CorpusPassage, Files, is_held_out, passages

UNK, EOS, PAD = "<unk>", "<|endoftext|>", "<pad>"
MARKERS = ("<|im_start|>", "<|im_end|>")
SMALLEST = 3 + len(MARKERS) + 256  # what every vocabulary holds before its first piece
_SPACE = "▁"
_ALWAYS = "".join(map(chr, range(0x21, 0x7F)))  # pieces even where the text lacks them: digits, code


@dataclass(frozen=True)
class TokenizerOptions:
    """What `slm train tokenizer` needs.

    temperature: T of p_l ~ n_l^(1/T). parallel: {language: file}, two files of equal meaning line by line; the
    shares are then searched so that both take equally many tokens. coverage: of the characters, how many become
    pieces rather than bytes. sample_mb: how much text SentencePiece is given at most.
    """

    text: Files
    vocab_size: int
    output: Path
    temperature: float = 3.0
    parallel: Files | None = None
    eval_fraction: float = 0.02
    coverage: float = 0.9995
    sample_mb: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = []
        if self.vocab_size <= SMALLEST:
            wrong.append(f"--vocab-size must be above {SMALLEST}, the special tokens and bytes (is {self.vocab_size})")
        if not self.temperature > 0:
            wrong.append(f"--temperature must be positive (is {self.temperature})")
        if not 0.0 < self.eval_fraction < 1.0:
            wrong.append(f"--eval-fraction must lie between 0 and 1 (is {self.eval_fraction})")
        if not 0.9 <= self.coverage <= 1.0:
            wrong.append(f"--coverage must be from 0.9 to 1 (is {self.coverage})")
        if not self.sample_mb > 0:
            wrong.append(f"--sample-mb must be positive (is {self.sample_mb})")
        if self.parallel is not None and (len(self.parallel) != 2 or any(len(f) != 1 for f in self.parallel.values())):
            wrong.append("--parallel must be given twice, once for each of two languages")
        if self.parallel is not None and set(self.parallel) != set(self.text):
            wrong.append("--parallel must name the same two languages as --text")
        if wrong:
            raise InputError("the tokenizer options do not work: " + "; ".join(wrong))


@dataclass(frozen=True)
class Trained:
    """A SentencePiece model file's bytes and how it was balanced. sizes: bytes of training text by language."""

    model: bytes
    sizes: dict[str, int]
    shares: dict[str, float]


def train(options: TokenizerOptions, parallel: dict[str, list[str]] | None = None) -> Trained:
    """Train the tokenizer; parallel: {language: lines} to balance by. Raises InputError for too little text."""
    sizes = dict.fromkeys(options.text, 0)
    for passage in training_side(options):
        sizes[passage.lang] += len(passage.text.encode())
    if missing := [lang for lang, size in sizes.items() if not size]:
        raise InputError(f"all text of '{missing[0]}' is held out", hint="Lower --eval-fraction, or add text.")
    shares = temperature_shares(sizes, options.temperature)
    models: dict[tuple[float, ...], bytes] = {}

    def fit(tried: dict[str, float]) -> bytes:
        shown = ", ".join(f"{share:.0%} {lang}" for lang, share in tried.items())
        with progress(f"learning {options.vocab_size:,} pieces from {shown}"):
            times = copies(sizes, tried, int(options.sample_mb * 1e6))
            lines = sentences(training_side(options), times, options.seed)
            models[tuple(tried.values())] = train_pieces(lines, options.vocab_size, options.coverage)
        return models[tuple(tried.values())]

    if parallel is not None:

        def measure(tried: dict[str, float]) -> dict[str, int]:
            processor = load_pieces(fit(tried))
            tokens = {lang: sum(map(len, processor.encode(lines))) for lang, lines in parallel.items()}
            note("tokens of the parallel text: " + ", ".join(f"{count:,} {lang}" for lang, count in tokens.items()))
            return tokens

        shares = search_parity(measure, shares)
    else:
        fit(shares)
    return Trained(models[tuple(shares.values())], sizes, shares)


def read_parallel(files: Files) -> dict[str, list[str]]:
    """{language: lines} of files that are translations of each other. Raises InputError, DamagedFileError."""
    lines: dict[str, list[str]] = {}
    for lang, (path,) in files.items():
        lines[lang] = read_text(path).splitlines()
    counts = {lang: len(side) for lang, side in lines.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise InputError(
            "the files of --parallel must have equally many lines, each the translation of the other's",
            found=", ".join(f"{count} {lang}" for lang, count in counts.items()),
        )
    return lines


def held_out_side(options: TokenizerOptions) -> Iterator[CorpusPassage]:
    """The passages that the tokenizer has not seen."""
    return (p for p in passages(options.text) if is_held_out(p.text, options.eval_fraction, options.seed))


def training_side(options: TokenizerOptions) -> Iterator[CorpusPassage]:
    """The passages that are not held out."""
    return (p for p in passages(options.text) if not is_held_out(p.text, options.eval_fraction, options.seed))


def train_pieces(lines: Iterable[str], vocab_size: int, coverage: float = 0.9995) -> bytes:
    """A SentencePiece BPE model file of exactly `vocab_size` tokens. Raises InputError when the text is too little."""
    import sentencepiece

    file = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=file,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=coverage,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            required_chars=_ALWAYS,
            unk_id=0,
            eos_id=1,
            pad_id=2,
            bos_id=-1,
            unk_piece=UNK,
            eos_piece=EOS,
            pad_piece=PAD,
            control_symbols=list(MARKERS),
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"SentencePiece cannot make {vocab_size:,} tokens of this text",
            found=str(error).strip().splitlines()[-1][-160:],
            hint="Give more text, or a smaller --vocab-size.",
        ) from error
    return file.getvalue()


def load_pieces(model: bytes) -> Any:
    """The SentencePieceProcessor of a model file's bytes."""
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=model)


def merges_of(pieces: list[str]) -> list[tuple[str, str]]:
    """The merge rules of pieces in order of their scores, best first.

    SentencePiece joins any two neighbours whose union is a piece, the best-scored union first; `tokenizers` joins
    listed pairs in the order of the list. So every split of every piece into two pieces is listed.
    """
    known = {piece: number for number, piece in enumerate(pieces)}
    rules: list[tuple[str, str]] = []
    for piece in pieces:
        halves = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        pairs = [(left, right) for left, right in halves if left in known and right in known]
        rules += sorted(pairs, key=lambda pair: (known[pair[0]], known[pair[1]]))
    return rules


def fast_tokenizer(model: bytes) -> Any:
    """The transformers tokenizer that splits as a SentencePiece model of `train_pieces` does, with ChatML."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    processor = load_pieces(model)
    names = [processor.id_to_piece(number) for number in range(processor.vocab_size())]
    normal = [
        name
        for number, name in enumerate(names)
        if not (processor.is_control(number) or processor.is_byte(number) or processor.is_unknown(number))
    ]
    core = Tokenizer(
        models.BPE(
            vocab={name: number for number, name in enumerate(names)},
            merges=merges_of(normal),
            byte_fallback=True,
            unk_token=UNK,
            fuse_unk=True,
        )
    )
    core.normalizer = normalizers.Replace(" ", _SPACE)
    core.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    core.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in (UNK, EOS, PAD, *MARKERS)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token=UNK, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = named_template("chatml")
    return tokenizer


def write_tokenizer(model: bytes, folder: Path) -> Any:
    """tokenizer.json, tokenizer.model, tokenizer_config.json and the chat template; returns the tokenizer."""
    tokenizer = fast_tokenizer(model)
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(model)
    return tokenizer
