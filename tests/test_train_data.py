"""Training data: read as a stream, every fault named with its line, kept on disk, split by language."""

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
from tiny_training import conversations, write_checkpoint, write_jsonl

from slm.errors import DamagedFileError, InputError, MissingFileError, ResourceError
from train.batch.loss import IGNORE
from train.config import TrainOptions
from train.data import store as store_module
from train.data.examples import Example, read_conversations, read_texts
from train.data.lines import json_objects, likely_encoding, text_lines
from train.data.masks import Encoded
from train.data.prepare import prepare_conversations, prepare_texts
from train.data.split import held_out
from train.data.store import StoreWriter, TokenStore

ROOT = Path(__file__).parent.parent
GOOD = json.dumps(conversations(1)[0])
JAPANESE = "会議室の予約は、共有カレンダーでします。カタカナもあります。\n漢字だけ\n"


def options(base: Path, *data: Path, **changes: Any) -> TrainOptions:
    return TrainOptions(base=base, data=data, output=base.parent / "out", **changes)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base") / "llama", "llama")


# Formats


def test_each_known_format_becomes_the_same_conversation(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Add.\n\n1+1"}, {"role": "assistant", "content": "2"}]
    share = [{"from": "human", "value": "Add.\n\n1+1"}, {"from": "gpt", "value": "2"}]
    lines: list[dict[str, Any]] = [
        {"messages": turns},
        {"conversations": share},
        {"conversations": turns},
        {"instruction": "Add.", "input": "1+1", "output": "2", "text": "### Instruction: Add."},
        {"prompt": turns[:1], "completion": turns[1:]},
        {"prompt": "Add.\n\n1+1", "completion": "2", "lang": "ja"},
    ]
    examples = list(read_conversations([write_jsonl(tmp_path / "mixed.jsonl", lines)]))
    assert [list(e.messages) for e in examples] == [turns] * 6
    assert [e.lang for e in examples] == ["en"] * 5 + ["ja"]
    assert [e.line for e in examples] == [1, 2, 3, 4, 5, 6]


def test_every_template_of_ours_is_read_in_both_languages() -> None:
    files = sorted((ROOT / "data" / "templates").glob("*.jsonl"))
    assert [file.stem for file in files] == ["alpaca", "messages", "prompt_completion", "sharegpt", "text"]
    for file in files:
        examples = list(read_conversations([file]))
        assert {example.lang for example in examples} == {"en", "ja"}
        assert all(bool(example.text) == (file.stem == "text") for example in examples)


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


def test_conversations_are_refused_as_running_text_with_the_command_that_takes_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="slm train sft"):
        list(read_texts([write_jsonl(tmp_path / "t.jsonl", conversations(1))]))
    renamed = write_jsonl(tmp_path / "t.txt", conversations(1))
    for read in (read_texts, read_conversations):
        with pytest.raises(InputError, match=r"holds JSON objects.*\.jsonl"):
            list(read([renamed]))
    table = tmp_path / "t.csv"
    table.write_text("question,answer\n")
    with pytest.raises(InputError, match="neither JSONL"):
        list(read_conversations([table]))


def test_a_file_that_is_one_json_list_is_read_with_the_lines_of_its_items(tmp_path: Path) -> None:
    records = conversations(3)
    for indent in (None, 2):
        path = tmp_path / f"list{indent}.json"
        path.write_text("\n" + json.dumps(records, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
        pairs = list(json_objects(path))
        assert [value for _, value in pairs] == records
        lines = path.read_text(encoding="utf-8").splitlines()
        for line, _ in pairs:
            assert lines[line - 1].lstrip().startswith(("{", "["))
        assert len({line for line, _ in pairs}) == (3 if indent else 1)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ('[{"a": 1},\n{"b": }]', 2, "column 7 is not JSON"),
        ('[{"a": 1}\n{"b": 2}]', 2, "Expecting ',' or ']'"),
        ('[{"a": 1},\n 2]', 2, "not a JSON object"),
        ('[{"a": 1},\n', 1, "is not JSON"),
        ('[{"a": 1}]\n{"b": 2}', 2, "Extra data"),
    ],
)
def test_a_broken_list_is_named_by_line_and_column(text: str, line: int, says: str, tmp_path: Path) -> None:
    path = tmp_path / "l.json"
    path.write_text(text)
    with pytest.raises(DamagedFileError, match=rf"l\.json', line {line}.*{says}"):
        list(json_objects(path))


# Faults


@pytest.mark.parametrize(
    "line",
    [
        '{"messages": [',
        "[1, 2]",
        '{"foo": 1}',
        '{"messages": []}',
        '{"messages": [{"role": "wizard", "content": "x"}]}',
        '{"messages": [{"role": "user", "content": "no answer"}]}',
        '{"instruction": "x", "output": 3}',
        '{"prompt": "x", "completion": "y", "lang": 5}',
        '{"prompt": "x", "completion": "half \\ud83d"}',
        '{"text": " "}',
        "[" * 100_000,
        "\xff",
        '{"text": "\0"}',
    ],
    ids=range(13),
)
def test_a_broken_line_is_named_by_file_and_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_bytes(f"{GOOD}\n\n{line}\n{GOOD}\n".encode("latin-1"))
    with pytest.raises(DamagedFileError, match=r"broken\.jsonl', line 3"):
        list(read_conversations([path]))


def test_broken_json_is_shown_with_its_column(tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl"
    path.write_text('{"prompt": "x" "completion": "y"}\n')
    with pytest.raises(DamagedFileError, match=r'line 1, column 16 is not JSON.*"x" ⟪here⟫"completion"'):
        list(read_conversations([path]))


@pytest.mark.parametrize(
    ("encoding", "text", "command"),
    [
        ("cp932", JAPANESE, "iconv -f CP932 -t UTF-8"),
        ("euc_jp", JAPANESE, "iconv -f EUC-JP"),
        ("iso2022_jp", JAPANESE, "iconv -f ISO-2022-JP"),
        ("utf-16", JAPANESE, "iconv -f UTF-16 "),
        ("utf-16-le", "plain text " * 9, "iconv -f UTF-16LE"),
        ("utf-16-be", "plain text " * 9, "iconv -f UTF-16BE"),
        ("utf-32", "text", "iconv -f UTF-32"),
        ("latin-1", "Le café était fermé à Noël. " * 3, "iconv -f WINDOWS-1252"),
    ],
)
def test_another_encoding_is_named_with_the_command_that_converts_it(
    encoding: str, text: str, command: str, tmp_path: Path
) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(("ascii first\n" if encoding in ("cp932", "latin-1") else "").encode() + text.encode(encoding))
    with pytest.raises(DamagedFileError, match="is not UTF-8 text; it looks like") as caught:
        list(text_lines(path))
    assert command in str(caught.value)
    if command.endswith("-t UTF-8"):
        shell = caught.value.hint.removeprefix("Convert it: ")
        subprocess.run(shell, shell=True, check=True)
        assert (tmp_path / "t-utf8.txt").read_text(encoding="utf-8") == "ascii first\n" + text


def test_no_encoding_is_named_for_noise() -> None:
    assert likely_encoding(bytes(range(128, 256)) * 3) is None


def test_what_is_no_text_is_refused_with_the_command_that_unpacks_it(tmp_path: Path) -> None:
    import gzip

    packed = tmp_path / "t.jsonl.gz"
    packed.write_bytes(gzip.compress(GOOD.encode()))
    with pytest.raises(DamagedFileError, match="gunzip -k"):
        list(text_lines(packed))
    table = tmp_path / "t.parquet"
    table.write_bytes(b"PAR1" + bytes(40))
    with pytest.raises(DamagedFileError, match="Parquet"):
        list(text_lines(table))
    with pytest.raises(InputError, match=r"is a folder.*\*\.jsonl"):
        list(read_conversations([tmp_path]))
    with pytest.raises(InputError, match="regular file"):
        list(read_texts([Path("/dev/null")]))


def test_a_file_that_was_cut_off_or_has_no_lines_is_told_from_one_in_another_encoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes("会議室".encode()[:-1])
    with pytest.raises(DamagedFileError, match="cut off"):
        list(text_lines(path))
    monkeypatch.setattr("train.data.lines._LONGEST_LINE", 1 << 20)
    path.write_bytes(b"short\n" + b"x" * (1 << 20) + b"x\n")
    with pytest.raises(DamagedFileError, match=r"line 2 is longer than 1 MB"):
        list(text_lines(path))


def test_marks_and_line_ends_of_other_systems_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n\r\n" + GOOD.encode() + b"\r\n")
    assert [number for number, _ in text_lines(path)] == [1, 3]
    assert [e.messages[1]["content"] for e in read_conversations([path])] == ["Desk 0 is here."] * 2


def test_empty_data_a_file_named_twice_and_an_absent_language_are_input_errors(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n \n")
    full = write_jsonl(tmp_path / "en.jsonl", conversations(2))
    with pytest.raises(InputError, match=r"nothing to train on in .*empty\.jsonl"):
        list(read_conversations([full, empty]))
    with pytest.raises(InputError, match=r"no example .* language 'fr'.*found: en"):
        list(read_conversations([full], lang="fr"))
    with pytest.raises(InputError, match=r"twice.*--weight"):
        list(read_conversations([full, full]))
    with pytest.raises(MissingFileError):
        list(read_texts([tmp_path / "none.txt"]))


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
