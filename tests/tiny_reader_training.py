"""Tiny bases whose vocabulary has "yes" and "no", and questions with lines that a tiny reader can learn to judge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import tiny_checkpoints, tiny_families
from tests.tiny_training import write_jsonl
from train.config import TrainOptions

FAMILIES = ["gemma3", "gemma2", "llama"]  # SentencePiece BPE with BOS, the same under capped logits, byte-level BPE
_WORDS = {
    "en": ("Question: Where is desk {n}?\nWhich line answers it?\n\n", "Office > Desks\n", "Desk {n} is here.\n",
           "Nobody has desk {m}.\n", "Office > Rules\n", "Wear a badge.\n", "Rule {m}.\n"),
    "ja": ("Question: 机{n}はどこですか。\nWhich line answers it?\n\n", "事務所 > 机\n", "机{n}はここです。\n",
           "机{m}はだれも使いません。\n", "事務所 > 規則\n", "名札を着けます。\n", "規則{m}です。\n"),
}  # fmt: skip


@pytest.fixture(scope="session")
def reader_bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny checkpoint of a family, made when it is first asked for."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(tiny_checkpoints, "CORPUS", [*tiny_checkpoints.CORPUS, *["yes", "no"] * 50])
                made[family] = tiny_families.MAKE[family](tmp_path_factory.mktemp("reader") / family)
        return made[family]

    return get


def question(n: int, lang: str = "en") -> dict[str, Any]:
    """The right line is the first or second of the first or second passage; every fourth question has none."""
    head, place, here, nobody, other, badge, rule = (text.format(n=n, m=n + 3) for text in _WORDS[lang])
    own = [here, nobody] if n % 2 else [nobody, here]
    if n % 4 == 0:
        own = [nobody]
    prompts = [[head, place, *own], [head, other, badge, rule]]
    right = [[0, 2 + own.index(here)]] if here in own else []
    if n % 3 == 0:
        prompts, right = prompts[::-1], [[1 - prompt, piece] for prompt, piece in right]
    return {"form": 1, "lang": lang, "prompts": prompts, "right": right, "ignored": [], "every": False}


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
        "save_every_s": 1e-9, "eval_every": 4, "max_length": 200,
    }  # fmt: skip
    return TrainOptions(base=base, data=data[:1], eval_data=data[1:], output=output, **(quick | changes))
