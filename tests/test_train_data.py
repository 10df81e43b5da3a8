"""Training data: read as a stream in every known format, every fault named with its line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from slm.errors import DamagedFileError, InputError, MissingFileError, UnsupportedError
from tests.tiny_training import conversations, write_jsonl
from train.data.examples import read_conversations, read_texts
from train.data.lines import json_objects, text_lines

ROOT = Path(__file__).parent.parent
GOOD = json.dumps(conversations(1)[0])
JAPANESE = "会議室の予約は、共有カレンダーでします。カタカナもあります。\n漢字だけ\n"


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


def test_conversations_are_refused_as_running_text_with_the_command_that_takes_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="slm train sft"):
        list(read_texts([write_jsonl(tmp_path / "t.jsonl", conversations(1))]))
    renamed = write_jsonl(tmp_path / "t.txt", conversations(1))
    for read in (read_texts, read_conversations):
        with pytest.raises(InputError, match=r"holds JSON objects.*\.jsonl"):
            list(read([renamed]))


@pytest.mark.parametrize(("name", "by"), [("t.csv", ","), ("t.TSV", "\t")])
def test_a_table_is_named_with_a_command_that_makes_jsonl_of_it(name: str, by: str, tmp_path: Path) -> None:
    table = tmp_path / name
    table.write_text(f'question{by}answer\nWhere?{by}"Here, ""there""."\n')
    with pytest.raises(InputError, match=r"is a table") as caught:
        list(read_conversations([table]))
    command = caught.value.hint.removeprefix("Write it as JSONL: ")
    subprocess.run(command, shell=True, check=True, env=os.environ | {"PYTHONUTF8": "1"})
    (example,) = read_conversations([tmp_path / "t.jsonl"])
    assert [m["content"] for m in example.messages] == ["Where?", 'Here, "there".']


@pytest.mark.parametrize("kind", ["folder", "dict", "parquet", "arrow", "hub"])
def test_what_the_datasets_library_wrote_is_named_with_a_command_that_works(kind: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(conversations(3))
    path = tmp_path / "saved"
    if kind == "folder":
        table.save_to_disk(path)
    elif kind == "dict":
        datasets.DatasetDict({"train": table}).save_to_disk(path)
    elif kind == "hub":
        (path / "data").mkdir(parents=True)
        table.to_parquet(path / "data" / "train-00000-of-00001.parquet")
    elif kind == "parquet":
        path = tmp_path / "named.jsonl"
        table.to_parquet(path)
    else:
        table.save_to_disk(path)
        path = next(path.glob("*.arrow")).rename(tmp_path / "named.json")
    for read in (read_conversations, read_texts):
        with pytest.raises(InputError, match=r"datasets library|Parquet|Arrow") as caught:
            list(read([path]))
    command = caught.value.hint.removeprefix("Write it as JSONL: ").removesuffix(" (after: pip install datasets)")
    # The command says `python`, as in an environment that is activated.
    path_first = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"HF_HOME": str(tmp_path), "PATH": path_first}
    subprocess.run(command, shell=True, check=True, capture_output=True, env=environment)
    made = tmp_path / f"{path.stem}-examples.jsonl"
    assert [e.messages[0]["content"] for e in read_conversations([made])] == [f"Where is desk {n}?" for n in range(3)]


def test_objects_over_several_lines_are_read_with_the_lines_they_begin_on(tmp_path: Path) -> None:
    records = conversations(3)
    path = tmp_path / "pretty.jsonl"
    path.write_text("\n\n".join(json.dumps(record, indent=2) for record in records), encoding="utf-8")
    pairs = list(json_objects(path))
    assert [value for _, value in pairs] == records
    lines = path.read_text().splitlines()
    assert [lines[line - 1] for line, _ in pairs] == ["{"] * 3
    path.write_text(json.dumps(records[0], indent=2) + "\n{\n 'a': 1}\n")
    with pytest.raises(DamagedFileError, match=r"line 15, column \d+ is not JSON"):
        list(json_objects(path))


def test_one_object_around_the_examples_is_named_with_the_field_that_holds_them(tmp_path: Path) -> None:
    for indent in (None, 2):
        path = tmp_path / "one.json"
        path.write_text(json.dumps({"version": "1.0", "data": conversations(2)}, indent=indent))
        with pytest.raises(DamagedFileError, match=r'seem to be in "data": jq -c \'\.data\[\]\''):
            list(read_conversations([path]))


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


LATIN = "Le café était fermé à Noël, dit-elle. Où est passé l'été ? "


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp932", "euc_jp",
                                      "iso2022_jp"])  # fmt: skip
@pytest.mark.parametrize("first", ["", "plain\n" * 9])
def test_a_file_in_another_encoding_is_read(encoding: str, first: str, tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes((first + JAPANESE).encode(encoding))
    assert [text for _, text in text_lines(path)] == (first + JAPANESE).splitlines()
    record = tmp_path / "t.jsonl"
    line = json.dumps({"prompt": "会議室はどこですか。", "completion": "二階にあります。"}, ensure_ascii=False)
    record.write_bytes((line + "\r\n" + line + "\r\n").encode(encoding))
    assert [e.messages[1]["content"] for e in read_conversations([record])] == ["二階にあります。"] * 2


def test_western_text_without_a_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes((LATIN * 3).encode("latin-1"))
    assert next(text_lines(path)) == (1, (LATIN * 3).strip())


def test_a_bad_byte_among_much_text_is_noted_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes((JAPANESE * 40).encode() + b"here: \xff\n")
    for _ in range(2):
        assert list(text_lines(path))[-1] == (81, "here: \ufffd")
    assert capsys.readouterr().err.count("t.txt', line 81 holds bytes that are not UTF-8") == 1


def test_what_is_no_text_is_refused_with_the_command_that_unpacks_it(tmp_path: Path) -> None:
    import gzip

    packed = tmp_path / "t.jsonl.gz"
    packed.write_bytes(gzip.compress(GOOD.encode()))
    with pytest.raises(DamagedFileError, match="gunzip -k"):
        list(text_lines(packed))
    table = tmp_path / "t.parquet"
    table.write_bytes(b"PAR1" + bytes(40))
    with pytest.raises(UnsupportedError, match="Parquet"):
        list(text_lines(table))
    for name in ("pointer.txt", "pointer.jsonl"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
        with pytest.raises(DamagedFileError, match="git lfs pull"):
            list(text_lines(tmp_path / name))
    (tmp_path / "mixed").mkdir()
    with pytest.raises(InputError, match=r"is a folder.*\*\.jsonl"):
        list(read_conversations([tmp_path / "mixed"]))
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
    mark = b"\xef\xbb\xbf"  # in the middle, too, where two files were joined
    path.write_bytes(mark + GOOD.encode() + b"\r\n\r\n" + mark + GOOD.encode() + b"\r\n")
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
