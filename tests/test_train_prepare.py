"""Training data made ready: left out, held out and weighted by language, and kept on disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.errors import InputError, ResourceError
from tests.tiny_runs import base, options
from tests.tiny_training import conversations, write_jsonl
from train.data import store as store_module
from train.data.examples import Example
from train.data.masks import IGNORE, Encoded
from train.data.prepare import prepare_conversations, prepare_texts
from train.data.show import show_masks
from train.data.split import held_out
from train.data.store import StoreWriter, TokenStore

__all__ = ["base"]  # a fixture

ROOT = Path(__file__).parent.parent


def test_conversations_and_texts_train_together_and_texts_end_with_eos(base: Path, tmp_path: Path) -> None:
    talk = write_jsonl(tmp_path / "talk.jsonl", [*conversations(2), {"text": "A document.", "lang": "en"}])
    text = tmp_path / "plain.txt"
    text.write_text("First line.\nSecond line.\n")
    prepared = prepare_conversations(options(base, talk, text, eval_data=(talk,), template="chatml"))
    shown = [(prepared.tokenizer.decode(item.ids), item.supervised, len(item.ids)) for item in prepared.train]
    assert shown[0][0].endswith("Desk 0 is here.<|im_end|>") and shown[0][1] < shown[0][2] / 2
    assert [text for text, _, _ in shown[2:]] == [
        "A document.<|endoftext|>",
        "First line.\nSecond line.\n<|endoftext|>",
    ]
    assert all(supervised == length - 1 for _, supervised, length in shown[2:])
    assert prepared.examples_by_file == {talk: 6, text: 2}


def test_turns_that_a_chat_template_has_written_already_are_said_to_be_letters(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written: list[dict[str, Any]] = [
        {"text": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"},
        {"prompt": "[INST] Hi [/INST]", "completion": "Hello"},
        {
            "messages": [
                {"role": "user", "content": "<start_of_turn>user\nHi"},
                {"role": "assistant", "content": "Hello"},
            ]
        },
    ]
    rows: list[dict[str, Any]] = [conversations(1)[0], *written, {"text": "List<T> [INFO] a|user|b <|im_end|>"}]
    plain = tmp_path / "plain.txt"
    plain.write_text("<|im_start|>user\nHi\n")
    data = write_jsonl(tmp_path / "d.jsonl", rows)
    prepare_conversations(options(base, data, plain, template="chatml"))
    said = capsys.readouterr().err
    assert "3 of 7 examples hold marks that a chat template writes, the first is [INST] in" in said
    assert "d.jsonl', line 3: there they are letters" in said
    prepare_conversations(options(base, write_jsonl(tmp_path / "e.jsonl", conversations(4)), template="chatml"))
    assert "marks that a chat template" not in capsys.readouterr().err


# What is left out, held out and weighted


def test_long_examples_are_refused_with_their_lines_or_left_out_by_language(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = conversations(9) + conversations(9, "ja")
    for n in range(1, 8):
        records[n]["messages"][0]["content"] *= 20
    records[9]["messages"][0]["content"] *= 20
    data = write_jsonl(tmp_path / "d.jsonl", records)
    with pytest.raises(InputError, match="8 of 18 examples are longer than 100 tokens") as caught:
        prepare_conversations(options(base, data, max_length=100))
    found = [n for n in range(1, 19) if f"d.jsonl', line {n}: " in caught.value.found]
    assert found == [2, 3, 4, 5, 6] and caught.value.found.endswith("...")
    longest = int(caught.value.hint.split()[3].rstrip(","))
    assert prepare_conversations(options(base, data, max_length=longest)).dropped == 0
    prepared = prepare_conversations(options(base, data, max_length=100, drop_long=True))
    assert prepared.dropped_by_language == {"en": 7, "ja": 1} and prepared.dropped == 8
    assert "8 examples of more than 100 tokens (7 en, 1 ja)" in capsys.readouterr().err
    assert len(prepared.train) + len(prepared.held_out) == 10
    with pytest.raises(InputError, match="every example is longer"):
        prepare_conversations(options(base, data, max_length=8, drop_long=True))
    records[0]["messages"][0]["content"] *= 100
    with pytest.raises(InputError, match="base reads 256 tokens at most"):
        prepare_conversations(options(base, write_jsonl(data, records), max_length=1000))
    for most, told in ((100, "longer than --max-length 100"), (1000, "longer than the 256 tokens that the base")):
        assert told in show_masks(options(base, data, max_length=most), 1)[0]


def test_the_held_out_split_is_stratified_seeded_and_keeps_equal_examples_together(base: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", conversations(20) + conversations(10, "ja") + conversations(20))

    def split(seed: int) -> tuple[set[int], set[int]]:
        prepared = prepare_conversations(options(base, data, seed=seed))
        held = prepared.held_out
        assert held.language_counts() == {"en": 4, "ja": 1} and len(prepared.train) == 45
        texts = [{prepared.tokenizer.decode(item.ids) for item in side} for side in (prepared.train, held)]
        assert not texts[0] & texts[1]
        return {e.line for e in prepared.train.examples()}, {e.line for e in held.examples()}

    first, again, other = split(3), split(3), split(4)
    assert first == again != other
    assert first[0] | first[1] == set(range(1, 51))


keys = st.lists(st.tuples(st.integers(0, 40), st.sampled_from(["en", "ja", "fr"])), min_size=1, max_size=120)


@given(keys, st.floats(0.01, 0.99))
def test_each_language_gives_its_share_and_no_content_stands_on_both_sides(
    drawn: list[tuple[int, str]], fraction: float
) -> None:
    hashes, langs = np.array([k for k, _ in drawn], dtype=np.uint64), np.array([lang for _, lang in drawn])
    contents = {lang: {k for k, code in drawn if code == lang} for lang in set(langs.tolist())}
    if all(len(found) < 2 for found in contents.values()):
        with pytest.raises(InputError, match="only one example"):
            held_out(hashes, langs, fraction)
        return
    chosen = held_out(hashes, langs, fraction)
    for lang, found in contents.items():
        held = set(hashes[chosen & (langs == lang)].tolist())
        trained = set(hashes[~chosen & (langs == lang)].tolist())
        assert not held & trained and trained
        assert len(held) == (min(len(found) - 1, max(1, round(len(found) * fraction))) if len(found) > 1 else 0)


def test_weights_belong_to_the_sequences_of_their_files(base: Path, tmp_path: Path) -> None:
    one, two = write_jsonl(tmp_path / "1.jsonl", conversations(20)), write_jsonl(tmp_path / "2.jsonl", conversations(9))
    records = [json.loads(line) for line in two.read_text().splitlines()]
    for record in records:
        record["messages"][0]["content"] += "!"
    write_jsonl(two, records)
    prepared = prepare_conversations(options(base, one, two, weights=(1.0, 2.5)))
    assert prepared.weights is not None
    for example, weight in zip(prepared.train.examples(), prepared.weights, strict=True):
        assert weight == (1.0 if example.file == one else 2.5)
    assert prepare_conversations(options(base, one, two)).weights is None
    assert prepare_conversations(options(base, one, two, weights=(1.0, 1.0))).weights is None


def test_long_texts_are_parted_and_the_parts_stay_on_one_side(base: Path, tmp_path: Path) -> None:
    records = [{"text": f"Document {n}. " + "word " * 90, "lang": "en"} for n in range(12)]
    prepared = prepare_texts(options(base, write_jsonl(tmp_path / "t.jsonl", records), max_length=64))
    train, held = ({e.line for e in side.examples()} for side in (prepared.train, prepared.held_out))
    assert train | held == set(range(1, 13)) and not train & held and len(held) == 1
    assert len(prepared.train) > len(train) and prepared.dropped == 0


# The store


encoded = st.builds(
    lambda ids, lang, file, line: Encoded(
        tuple(token for token, _ in ids),
        tuple(token if learned else IGNORE for token, learned in ids),
        Example(Path(file), line, lang),
    ),
    st.lists(st.tuples(st.integers(0, 2**31 - 1), st.booleans()), max_size=20),
    st.sampled_from(["en", "ja", "und"]),
    st.sampled_from(["a.txt", "b/c.jsonl"]),
    st.integers(1, 2**40),
)


def stored(items: list[Encoded], folder: Path = ROOT) -> TokenStore:
    writer = StoreWriter(near=folder / "out")
    for number, item in enumerate(items):
        writer.append(item, key=number)
    return writer.store()


@settings(max_examples=50)
@given(st.lists(encoded, max_size=12), st.data())
def test_what_was_stored_comes_back(items: list[Encoded], data: st.DataObject) -> None:
    store = stored(items)
    assert list(store) == items and len(store) == len(items)
    assert store.lengths.tolist() == [len(item.ids) for item in items]
    assert store.supervised.tolist() == [item.supervised for item in items]
    assert store.supervised_total == sum(item.supervised for item in items)
    assert store.languages.tolist() == [item.example.lang for item in items]
    assert store.keys.tolist() == list(range(len(items)))
    assert list(store.examples()) == [item.example for item in items]
    counts = {lang: store.languages.tolist().count(lang) for lang in store.languages.tolist()}
    assert store.language_counts() == counts
    chosen = data.draw(st.lists(st.integers(0, len(items) - 1), max_size=9) if items else st.just([]))
    assert list(store.subset(np.array(chosen, dtype=int))) == [items[n] for n in chosen]
    assert list(store[1:-1]) == items[1:-1] and list(store.subset(store.lengths > 5)) == [
        item for item in items if len(item.ids) > 5
    ]
    assert store.weights({Path("a.txt"): 2.0}).tolist() == [
        2.0 if item.example.file == Path("a.txt") else 1.0 for item in items
    ]


def test_an_index_out_of_range_is_an_index_error_and_negative_ones_count_from_the_end() -> None:
    items = [Encoded((n, n), (n, n), Example(Path("a"), n, "en")) for n in range(3)]
    store = stored(items)
    assert store[-1] == items[-1]
    with pytest.raises(IndexError):
        store[3]


def test_the_store_leaves_no_file_behind_and_lies_beside_the_output(tmp_path: Path) -> None:
    store = stored([Encoded((1, 2), (1, 2), Example(Path("a"), 1, "en"))], tmp_path / "not" / "there")
    assert list(tmp_path.iterdir()) == [] and store[0].ids == (1, 2)


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_nameless_file", lambda near: open("/dev/full", "wb"))  # noqa: SIM115, PTH123
    with pytest.raises(ResourceError, match="no disk space"):
        stored([Encoded((1,) * 9000, (1,) * 9000, Example(Path("a"), 1, "en"))] * 2)
    with pytest.raises(ResourceError, match="no disk space"):
        stored([Encoded((1,), (1,), Example(Path("a"), 1, "en"))])


def test_memory_does_not_grow_with_the_data(base: Path, tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
from train.config import TrainOptions
from train.data.prepare import prepare_conversations, prepare_texts
base, data = map(Path, sys.argv[1:3])
prepare = prepare_texts if data.suffix == ".txt" else prepare_conversations
prepared = prepare(TrainOptions(base=base, data=(data,), output=base / "out", template="chatml"))
total = sum(len(prepared.train[n].ids) for n in range(len(prepared.train)))
print(len(prepared.train) + len(prepared.held_out), total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""

    def measured(path: Path) -> tuple[int, int, int]:
        command = [sys.executable, "-c", code, str(base), str(path)]
        run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
        sequences, tokens, peak_mb = map(int, run.stdout.split())
        return sequences, tokens, peak_mb

    figures = {}
    for count in (10_000, 100_000):
        talk = tmp_path / f"{count}.jsonl"
        with talk.open("w") as file:
            for n in range(count):
                file.write(f'{{"lang": "en", "prompt": "Where is desk {n}?", "completion": "Desk {n} is here."}}\n')
        figures[count] = measured(talk)
    assert [sequences for sequences, _, _ in figures.values()] == [10_000, 100_000]
    # As Python objects 90,000 such examples with their tokens take some 200 MB.
    assert figures[100_000][2] - figures[10_000][2] < 40, figures
