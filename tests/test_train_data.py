"""Training data: read as a stream in every known format, every fault named with its line."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from slm.errors import DamagedFileError, InputError, MissingFileError
from tests.tiny_training import conversations, write_jsonl
from train.data.examples import read_conversations, read_texts
from train.data.lines import json_objects, likely_encoding, text_lines

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
