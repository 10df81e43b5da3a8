"""A reader's examples as rows of token ids, damaged data, and its loss by hand and against transformers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from slm.errors import DamagedFileError, InputError, MismatchError, MissingFileError
from tests.tiny_reader_training import POSITIONS, WORDS, encoder, question
from tests.tiny_training import write_jsonl
from train.base import load_encoder
from train.data.examples import Example
from train.run.reader.examples import ReaderExample, ReaderRow, read_examples
from train.run.reader.loss import OFFSET, SCALE, question_loss, reader_batch, reader_loss, row_scores

__all__ = ["encoder"]  # a fixture


def read(rows: Sequence[dict[str, Any]], path: Path) -> list[ReaderExample]:
    return read_examples([write_jsonl(path, list(rows))], WORDS, POSITIONS)[0]


# Examples


def test_rows_lines_and_marks_are_those_of_the_file(tmp_path: Path) -> None:
    rows = [question(5), question(6, "ja")]
    examples = read(rows, tmp_path / "q.jsonl")
    assert [one.example.where for one in examples] == [f"'{tmp_path / 'q.jsonl'}', line {n}" for n in (1, 2)]
    assert [one.example.lang for one in examples] == ["en", "ja"]
    for row, one in zip(rows, examples, strict=True):
        assert [(r.ids, r.question, r.lines) for r in one.rows] == [
            (r["ids"], r["question"], r["lines"]) for r in row["rows"]
        ]
        flat = [[at, n] for at, r in enumerate(row["rows"]) for n in range(len(r["lines"]))]
        assert [place for place, right in zip(flat, one.right, strict=True) if right] == row["right"] != []
        assert one.tokens == sum(len(r["ids"]) for r in row["rows"]) and one.supervised == 1


def test_ignored_and_every_are_kept(tmp_path: Path) -> None:
    row = question(5) | {"every": True, "ignored": [[1, 1]]}
    (one,) = read([row], tmp_path / "q.jsonl")
    assert one.every is True and one.right == (True, False, False, False) and one.ignored == (False,) * 3 + (True,)


def changed(change: Callable[[dict[str, Any]], object]) -> str:
    """A line of data in whose first row something was changed."""
    made = json.loads(json.dumps(question(5)))
    change(made["rows"][0])
    return json.dumps(made)


_LONG = len(question(5)["rows"][0]["ids"])


@pytest.mark.parametrize(
    "line",
    [
        "{", "[]", "{}", json.dumps({k: v for k, v in question(5).items() if k != "every"}),
        json.dumps(question(5) | {"form": "one"}), json.dumps(question(5) | {"rows": []}),
        json.dumps(question(5) | {"rows": 3}), json.dumps(question(5) | {"rows": [[1, 2, 3]]}),
        json.dumps(question(5) | {"right": [[0, 2]]}), json.dumps(question(5) | {"right": [[2, 0]]}),
        json.dumps(question(5) | {"ignored": [[0, -1]]}), json.dumps(question(5) | {"right": [0, 1]}),
        json.dumps(question(5) | {"right": None}), json.dumps(question(5) | {"ignored": question(5)["right"]}),
        changed(lambda row: row.update(ids=[])), changed(lambda row: row.update(ids=["word"])),
        changed(lambda row: row.update(ids=[-1, *row["ids"][1:]])), changed(lambda row: row.pop("question")),
        changed(lambda row: row.update(question=0)), changed(lambda row: row.update(question=_LONG + 1)),
        changed(lambda row: row.update(lines=[[5, 5]])), changed(lambda row: row.update(lines=[[-1, 5]])),
        changed(lambda row: row["lines"].append([_LONG - 1, _LONG + 1])), changed(lambda row: row.update(lines=[3])),
        changed(lambda row: row.update(lines=[[6, 4], [4, 6]])),
        json.dumps(question(8) | {"rows": [row | {"lines": []} for row in question(8)["rows"]]}),
    ],
)  # fmt: skip
def test_damaged_data_are_named_with_their_line(line: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "q.jsonl", [question(1), question(2)])
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(DamagedFileError, match=r"q\.jsonl', line 3"):
        read_examples([path], WORDS, POSITIONS)


def test_tokens_and_rows_that_the_base_does_not_have_are_another_bases(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "q.jsonl", [question(1), question(5)])
    most = max(token for row in (*question(1)["rows"], *question(5)["rows"]) for token in row["ids"])
    longest = max(len(row["ids"]) for row in (*question(1)["rows"], *question(5)["rows"]))
    assert len(read_examples([path], most + 1, longest)[0]) == 2
    for words, positions in ((most, longest), (most + 1, longest - 1)):
        with pytest.raises(MismatchError, match=r"q\.jsonl', line [12] was made for another base"):
            read_examples([path], words, positions)


def test_examples_of_several_forms_and_none_at_all_are_refused(tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "one.jsonl", [question(1)])
    two = write_jsonl(tmp_path / "two.jsonl", [question(1) | {"form": 3}])
    with pytest.raises(MismatchError, match=r"2 \('.*one\.jsonl'\), 3 \('.*two\.jsonl'\)"):
        read_examples([one, two], WORDS, POSITIONS)
    assert read_examples([two], WORDS, POSITIONS)[1] == 3
    assert read_examples([one, one], WORDS, POSITIONS)[2] == {one: 2}
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="hold no example"):
        read_examples([tmp_path / "empty.jsonl"], WORDS, POSITIONS)
    with pytest.raises(MissingFileError):
        read_examples([tmp_path / "missing.jsonl"], WORDS, POSITIONS)


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


@pytest.fixture(scope="module")
def model(encoder: Path) -> Any:
    return load_encoder(encoder).eval()


def by_hand(model: Any, row: ReaderRow) -> list[float]:
    """The scores of a row that is read alone, token by token added up."""
    with torch.no_grad():
        states = model(input_ids=torch.tensor([row.ids])).last_hidden_state[0]
    asked = states[: row.question].mean(0)
    means = [states[start:end].mean(0) for start, end in row.lines]
    return [20 * float(torch.cosine_similarity(mean, asked, dim=0)) - 18 for mean in means]


def test_a_line_is_scored_by_the_cosine_of_its_mean_state_and_the_questions(model: Any, tmp_path: Path) -> None:
    """Whatever rows stand beside it, and however much shorter it is."""
    assert (SCALE, OFFSET) == (20.0, -18.0)
    examples = read([question(n, lang) for n in (1, 2, 3, 4) for lang in ("en", "ja")], tmp_path / "q")
    rows = [row for one in examples for row in one.rows]
    rows.append(ReaderRow(rows[0].ids * 4, rows[0].question, ((10, 40), (40, 41), (0, 44))))
    rows.append(ReaderRow(rows[0].ids, rows[0].question, ()))
    with torch.no_grad():
        found = row_scores(model, rows)
    assert len(found) == len(rows) and found[-1].tolist() == []
    for row, scores in zip(rows, found, strict=True):
        assert scores.tolist() == pytest.approx(by_hand(model, row), abs=1e-4)


def test_the_loss_of_a_batch_is_that_of_its_questions(model: Any, tmp_path: Path) -> None:
    examples = read([question(n, lang) for n in (1, 2, 3, 4) for lang in ("en", "ja")], tmp_path / "q")
    expected = sum(
        float(question_loss(torch.tensor([score for row in one.rows for score in by_hand(model, row)]), one))
        for one in examples
    )
    with torch.no_grad():
        loss, count = reader_loss(model, reader_batch(examples), row_scores)
        alone = [float(reader_loss(model, reader_batch([one]), row_scores)[0]) for one in examples]
    assert count == 8 and float(loss) == pytest.approx(expected, rel=1e-4)
    assert sum(alone) == pytest.approx(expected, rel=1e-4)
    assert reader_batch(examples)["tokens"] == sum(one.tokens for one in examples)
