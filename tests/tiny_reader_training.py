"""A tiny encoder, and questions with lines that a tiny reader can learn to judge, as rows of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from rag.answer.reader.form import FORM, rows_of
from tests.tiny_training import write_jsonl
from train.config import TrainOptions

WORDS, POSITIONS = 64, 96
_BEGIN, _END, _UNKNOWN = 0, 2, 3
_TEXTS = {
    "en": ("where is desk {n}", "office desks", "desk {n} is here", "nobody has desk {m}", "office rules",
           "wear a badge", "rule {m}"),
    "ja": ("机 {n} は どこ", "事務所 机", "机 {n} は ここ", "机 {m} は 空き", "事務所 規則", "名札 を つける",
           "規則 {m}"),
}  # fmt: skip
_NUMBERS = [str(number) for number in range(20)]
_KNOWN = [*_NUMBERS, *sorted({word for texts in _TEXTS.values() for text in texts for word in text.split()})]


class Words:
    """A tokenizer (implements rag.answer.reader.form.TextTokenizer) to which a word is a token."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        known = {word: _UNKNOWN + 1 + number for number, word in enumerate(_KNOWN)}
        return [[_BEGIN, *(known.get(word, _UNKNOWN) for word in text.split()), _END] for text in texts]


def write_encoder(folder: Path, **changes: Any) -> Path:
    """A BertModel of two layers and random weights."""
    torch.manual_seed(3)
    sizes: dict[str, Any] = {
        "vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "max_position_embeddings": POSITIONS, "type_vocab_size": 1,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.2,
    }  # fmt: skip
    BertModel(BertConfig(**(sizes | changes)), add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("reader") / "bert")


def question(n: int, lang: str = "en") -> dict[str, Any]:
    """The right line is the first or second of the first or second passage; every fourth question has none."""
    asked, place, here, nobody, other, badge, rule = (text.format(n=n, m=n + 3) for text in _TEXTS[lang])
    own = [here, nobody] if n % 2 else [nobody, here]
    if n % 4 == 0:
        own = [nobody]
    passages = [[place, *own], [other, badge, rule]]
    right = [[0, own.index(here)]] if here in own else []
    if n % 3 == 0:
        passages, right = passages[::-1], [[1 - row, line] for row, line in right]
    rows = [
        {"ids": row.ids, "question": row.question, "lines": row.lines}
        for of_passage in rows_of(Words(), asked, passages)
        for row in of_passage
    ]
    return {"form": FORM, "lang": lang, "rows": rows, "right": right, "ignored": [], "every": False}


def write_questions(path: Path, numbers: range) -> Path:
    return write_jsonl(path, [question(n, lang) for n in numbers for lang in ("en", "ja")])


@pytest.fixture(scope="session")
def reader_data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(24 questions to train on, 8 others held out)."""
    folder = tmp_path_factory.mktemp("questions")
    return write_questions(folder / "train.jsonl", range(12)), write_questions(folder / "held.jsonl", range(12, 16))


def asked(base: Path, data: tuple[Path, Path], output: Path, **changes: Any) -> TrainOptions:
    quick: dict[str, Any] = {
        "max_steps": 12, "learning_rate": 1e-2, "rank": 4, "threads": 1, "dtype": "float32", "checkpointing": "off",
        "save_every_s": 1e-9, "eval_every": 4,
    }  # fmt: skip
    return TrainOptions(base=base, data=data[:1], eval_data=data[1:], output=output, **(quick | changes))
