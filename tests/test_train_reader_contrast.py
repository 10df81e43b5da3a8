"""A causal reader's scores against transformers' logits, and a whole run that makes one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rag.answer.reader.card import CONTRAST, read_card
from slm.errors import UnsupportedError
from tests.tiny_causal_reader import FAMILIES, causal_bases
from tests.tiny_reader_training import asked, question, reader_data
from tests.tiny_training import write_checkpoint, write_jsonl
from train.base import load_model, load_tokenizer
from train.batch.attention import packed_attention
from train.run.reader import run as module
from train.run.reader.contrast import contrast_head
from train.run.reader.examples import ReaderRow, read_examples
from train.run.reader.run import train_reader

__all__ = ["causal_bases", "reader_data"]  # fixtures


def rows_read(path: Path, base: Path) -> list[ReaderRow]:
    words = load_model(base).config.vocab_size
    data = write_jsonl(path, [question(n, lang) for n in range(1, 4) for lang in ("en", "ja")])
    return [row for one in read_examples([data], words, 1 << 20)[0] for row in one.rows]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_line_is_judged_at_its_end_by_yes_against_no(
    causal_bases: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    """Rows of one question begin alike and are computed once; each has the scores that it has alone, unpacked."""
    base = causal_bases(family)
    model, tokenizer = load_model(base), load_tokenizer(base)
    rows = rows_read(tmp_path / "q.jsonl", base)
    head = contrast_head(model, tokenizer)
    with torch.no_grad(), packed_attention(model):
        found = head(model, rows)
    yes, no = (tokenizer(word, add_special_tokens=False).input_ids[0] for word in ("yes", "no"))
    for row, scores in zip(rows, found, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([row.ids])).logits[0]
        expected = [float(logits[end - 1, yes] - logits[end - 1, no]) for _, end in row.lines]
        assert scores.tolist() == pytest.approx(expected, abs=1e-4)
    assert torch.cat(found).std() > 1e-3, "they tell lines apart"


def test_a_vocabulary_without_the_words_is_refused(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "llama", "llama")
    tokenizer = load_tokenizer(base)
    assert any(len(tokenizer(word, add_special_tokens=False).input_ids) > 1 for word in ("yes", "no"))
    with pytest.raises(UnsupportedError, match="a reader needs it to be one"):
        contrast_head(load_model(base), tokenizer)


def test_a_run_makes_a_causal_reader(
    causal_bases: Callable[[str], Path],
    reader_data: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "save_curve", lambda *_: None)
    result = train_reader(asked(causal_bases("gemma3"), reader_data, tmp_path / "reader", max_steps=24, eval_every=8))
    assert result.held_out_loss_after < 0.8 * result.held_out_loss_before
    card = read_card(tmp_path / "reader")
    assert (card.kind, card.scale, card.offset, card.refuse_at, card.before) == (CONTRAST, 1.0, 0.0, {}, None)
