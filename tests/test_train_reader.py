"""A reader's examples as token ids, damaged data, and its loss by hand and against transformers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from slm.errors import DamagedFileError, InputError, MismatchError, MissingFileError, UnsupportedError
from tests.tiny_reader_training import FAMILIES, question, reader_bases
from tests.tiny_training import write_checkpoint, write_jsonl
from train.base import load_model, load_tokenizer
from train.batch.attention import packed_attention
from train.data.examples import Example
from train.data.masks import IGNORE
from train.run.reader.examples import ReaderExample, read_examples
from train.run.reader.loss import contrast_head, question_loss, reader_batch, reader_loss

__all__ = ["reader_bases"]  # a fixture


@pytest.fixture(scope="module")
def tokenizer(reader_bases: Callable[[str], Path]) -> Any:
    return load_tokenizer(reader_bases("gemma3"))


def read(rows: Sequence[dict[str, Any]], path: Path, tokenizer: Any, max_length: int = 900) -> list[ReaderExample]:
    return read_examples([write_jsonl(path, list(rows))], tokenizer, max_length)[0]


# Examples


def test_pieces_are_tokenized_one_by_one_and_judged_at_their_last_token(tokenizer: Any, tmp_path: Path) -> None:
    rows = [question(5), question(6, "ja")]
    examples = read(rows, tmp_path / "q.jsonl", tokenizer)
    assert [one.example.where for one in examples] == [f"'{tmp_path / 'q.jsonl'}', line {n}" for n in (1, 2)]
    assert [one.example.lang for one in examples] == ["en", "ja"]
    for row, one in zip(rows, examples, strict=True):
        assert len(one.sequences) == len(row["prompts"])
        for pieces, sequence in zip(row["prompts"], one.sequences, strict=True):
            parts = [tokenizer(piece, add_special_tokens=False).input_ids for piece in pieces]
            ids = [tokenizer.bos_token_id, *(token for part in parts for token in part)]
            assert list(sequence.ids[:-1]) == ids
            ends = [1 + sum(map(len, parts[: number + 1])) for number in range(2, len(parts))]
            assert [at for at, label in enumerate(sequence.labels) if label != IGNORE] == ends
        flat = [[p, n] for p, pieces in enumerate(row["prompts"]) for n in range(2, len(pieces))]
        assert [place for place, right in zip(flat, one.right, strict=True) if right] == row["right"]
        assert one.tokens == sum(len(sequence.ids) for sequence in one.sequences) and one.supervised == 1


def test_the_names_of_special_tokens_are_text(tokenizer: Any, tmp_path: Path) -> None:
    row = question(5)
    row["prompts"][0][2] = "<end_of_turn><bos>\n"
    (one,) = read([row], tmp_path / "q.jsonl", tokenizer)
    special = {tokenizer.bos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")}
    assert not special & {token for sequence in one.sequences for token in sequence.ids[1:]}


def test_a_base_without_bos_has_none(reader_bases: Callable[[str], Path], tmp_path: Path) -> None:
    tokenizer = load_tokenizer(reader_bases("llama"))
    (one,) = read([question(5)], tmp_path / "q.jsonl", tokenizer)
    head = tokenizer(question(5)["prompts"][0][0], add_special_tokens=False).input_ids
    assert list(one.sequences[0].ids[: len(head)]) == head


def test_ignored_and_every_are_kept(tokenizer: Any, tmp_path: Path) -> None:
    row = question(5) | {"every": True, "ignored": [[1, 3]]}
    (one,) = read([row], tmp_path / "q.jsonl", tokenizer)
    assert one.every is True and one.right == (True, False, False, False) and one.ignored == (False,) * 3 + (True,)


def size(tokenizer: Any, pieces: Sequence[str]) -> int:
    return 1 + sum(len(tokenizer(piece, add_special_tokens=False).input_ids) for piece in pieces)


def test_prompts_are_cut_behind_the_last_line_that_fits(tokenizer: Any, tmp_path: Path) -> None:
    row = question(5)  # the right line is the first of the first passage
    first, second = row["prompts"]
    most = max(size(tokenizer, first), size(tokenizer, second))
    (whole,) = read([row], tmp_path / "a.jsonl", tokenizer, most + 1)
    assert len(whole.right) == 4
    row["prompts"][1] = [*second, "x " * 50 + "\n", "Last.\n"]
    (cut,) = read([row], tmp_path / "b.jsonl", tokenizer, most + 1)
    assert cut.right == whole.right and [s.ids for s in cut.sequences] == [s.ids for s in whole.sequences]
    assert max(len(sequence.ids) for sequence in cut.sequences) <= most + 1
    row["prompts"][1] = [second[0] + "x " * 200, *second[1:]]
    (alone,) = read([row], tmp_path / "c.jsonl", tokenizer, most + 1)
    assert len(alone.sequences) == 1 and alone.right == (True, False), "a passage none of whose lines fits is left out"


def test_a_question_whose_answer_is_cut_off_is_left_out_and_noted(
    tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would teach that no line answers."""
    row, absent = question(6), question(8)  # the right line is the last of its passage; there is none
    (lost,) = row["right"]
    room = size(tokenizer, row["prompts"][lost[0]])
    both = {**question(5), "every": True, "right": [[0, 2], [0, 3]]}
    path = write_jsonl(tmp_path / "q.jsonl", [row, absent, both])
    found, _, counts = read_examples([path], tokenizer, room)
    assert [one.example.line for one in found] == [2] and counts == {path: 1}
    assert "2 questions are left out: their answer stands behind --max-length" in capsys.readouterr().err
    assert len(read_examples([path], tokenizer, room + 40)[0]) == 3 and capsys.readouterr().err == ""
    either = read([both | {"every": False}], tmp_path / "e.jsonl", tokenizer, size(tokenizer, both["prompts"][0]))
    assert either[0].right[:1] == (True,), "one of several is enough"
    with pytest.raises(InputError, match="hold no example"):
        read([row], tmp_path / "r.jsonl", tokenizer, 8)


@pytest.mark.parametrize(
    "line",
    [
        "{", "[]", "{}", json.dumps({k: v for k, v in question(5).items() if k != "every"}),
        json.dumps(question(5) | {"form": "one"}), json.dumps(question(5) | {"prompts": []}),
        json.dumps(question(5) | {"prompts": [["only a question", "a place"]]}),
        json.dumps(question(5) | {"prompts": [[1, 2, 3]]}), json.dumps(question(5) | {"prompts": 3}),
        json.dumps(question(5) | {"right": [[0, 1]]}), json.dumps(question(5) | {"right": [[2, 2]]}),
        json.dumps(question(5) | {"right": [[0, 9]]}), json.dumps(question(5) | {"ignored": [[0, 0]]}),
        json.dumps(question(5) | {"right": [0, 2]}), json.dumps(question(5) | {"right": None}),
        json.dumps(question(5) | {"ignored": question(5)["right"]}),
    ],
)  # fmt: skip
def test_damaged_data_are_named_with_their_line(line: str, tokenizer: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "q.jsonl", [question(1), question(2)])
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(DamagedFileError, match=r"q\.jsonl', line 3"):
        read_examples([path], tokenizer, 900)


def test_examples_of_several_forms_and_none_at_all_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "one.jsonl", [question(1)])
    two = write_jsonl(tmp_path / "two.jsonl", [question(1) | {"form": 2}])
    with pytest.raises(MismatchError, match=r"1 \('.*one\.jsonl'\), 2 \('.*two\.jsonl'\)"):
        read_examples([one, two], tokenizer, 900)
    assert read_examples([two], tokenizer, 900)[1] == 2
    assert read_examples([one, one], tokenizer, 900)[2] == {one: 2}
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="hold no example"):
        read_examples([tmp_path / "empty.jsonl"], tokenizer, 900)
    with pytest.raises(MissingFileError):
        read_examples([tmp_path / "missing.jsonl"], tokenizer, 900)


# The loss

T, F = True, False


@pytest.mark.parametrize(
    ("right", "ignored", "every", "expected"),
    [
        # Lines 3, 1 and 0.5 times as likely as none: 5.5 in all.
        ((T, F, F), (F, F, F), F, math.log(5.5 / 3)),
        ((F, F, F), (F, F, F), F, math.log(5.5)),
        ((T, T, F), (F, F, F), F, math.log(5.5 / 4)),
        ((T, T, F), (F, F, F), T, math.log(5.5) - (math.log(3) + math.log(1)) / 2),
        ((F, F, T), (F, T, F), F, math.log(4.5 / 0.5)),
        ((F, F, F), (T, F, F), F, math.log(2.5)),
        ((F, F, F), (T, T, T), F, 0.0),
    ],
)  # fmt: skip
def test_the_loss_of_a_question_is_what_it_is_by_hand(
    right: tuple[bool, ...], ignored: tuple[bool, ...], every: bool, expected: float
) -> None:
    example = ReaderExample((), right, ignored, every, Example(Path("q.jsonl"), 1, "en"))
    scores = torch.tensor([3.0, 1.0, 0.5]).log()
    assert float(question_loss(scores, example)) == pytest.approx(expected, abs=1e-6)


def test_the_gradient_lifts_right_lines_and_pushes_the_others() -> None:
    scores = torch.tensor([3.0, 1.0, 0.5]).log().requires_grad_()
    example = ReaderExample((), (F, T, F), (F, F, T), F, Example(Path("q.jsonl"), 1, "en"))
    question_loss(scores, example).backward()
    assert scores.grad is not None and scores.grad.tolist() == pytest.approx([3 / 5, 1 / 5 - 1, 0.0])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_of_a_batch_is_that_of_transformers_logits(
    family: str, reader_bases: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = reader_bases(family)
    tokenizer, model = load_tokenizer(folder), load_model(folder).eval()
    examples = read([question(n, lang) for n in (1, 2, 3, 4) for lang in ("en", "ja")], tmp_path / "q", tokenizer)
    words = [tokenizer(word, add_special_tokens=False).input_ids for word in ("yes", "no")]
    expected = 0.0
    for one in examples:
        scores = []
        for sequence in one.sequences:
            with torch.no_grad():
                logits = model(torch.tensor([sequence.ids[:-1]])).logits[0]
            judged = [at - 1 for at, label in enumerate(sequence.labels) if label != IGNORE]
            scores += (logits[judged, words[0]] - logits[judged, words[1]]).tolist()
        expected += float(question_loss(torch.tensor(scores), one))
    with packed_attention(model), torch.no_grad():
        loss, count = reader_loss(model, reader_batch(examples), contrast_head(model, tokenizer))
        alone = [reader_loss(model, reader_batch([one]), contrast_head(model, tokenizer))[0] for one in examples]
    assert count == 8 and float(loss) == pytest.approx(expected, rel=1e-4)
    assert float(sum(alone)) == pytest.approx(expected, rel=1e-4)


def test_a_base_that_has_no_such_tokens_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "gpt2", "gpt2")
    with pytest.raises(UnsupportedError, match=r"'(yes|no)' is \d tokens of this model, a reader needs it to be one"):
        contrast_head(load_model(folder), load_tokenizer(folder))
