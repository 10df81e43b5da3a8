"""Text files that are handed to commands: texts to measure on, questions, keys, in whatever encoding they came."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from convert.quality.sample_text import read_texts
from rag.questions import read_questions
from serve.cli.guard import GuardOptions, policy_of
from slm.artifacts import read_manifest
from slm.errors import DamagedFileError, InputError, MissingFileError
from slm.terminal.text_file import read_text, text_lines
from train.adapter.opened import check_adapter
from train.base import read_config
from train.measure.strides import pieces
from train.scratch.model import _read_settings
from train.tokenizer.learn import read_parallel

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp932", "euc_jp", "iso2022_jp"]
TEXT = "会議室の予約は、開始の十分前まで取り消せます。\n詳しくは総務部に聞いてください。\n"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_text_to_measure_on_is_the_same_in_every_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "ja.txt"
    path.write_bytes(TEXT.replace("\n", "\r\n").encode(encoding))
    assert read_text(path) == "".join(text_lines(path)) == TEXT
    assert read_texts({"ja": path}) == {"ja": TEXT}
    assert "".join(pieces(path)) == TEXT.strip()
    assert "".join(pieces(path, 8)) == TEXT.strip()
    assert read_parallel({"ja": [path]}) == {"ja": TEXT.splitlines()}


@pytest.mark.parametrize("read", [read_text, lambda path: "".join(text_lines(path))])
def test_a_bad_byte_is_replaced_and_said_with_the_files_name(
    tmp_path: Path, read: object, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "one_bad.txt"
    path.write_bytes(TEXT.encode() * 20 + b"\xff\n")
    assert callable(read) and read(path) == TEXT * 20 + "\ufffd\n"
    assert "one_bad.txt" in (said := capsys.readouterr().err) and "U+FFFD" in said


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_questions_may_be_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    row = {"question": "在宅勤務は週に何日までですか。", "lang": "ja", "relevant": ["ja/remote.md"]}
    path = tmp_path / "questions.jsonl"
    path.write_bytes((json.dumps(row, ensure_ascii=False) + "\r\n\r\n").encode(encoding))
    assert [question.question for question in read_questions(path)] == [row["question"]]


def test_a_line_separator_inside_a_question_does_not_end_its_line(tmp_path: Path) -> None:
    row = {"question": "How many\u2028days\x85of leave?", "lang": "en", "relevant": ["leave.md"]}
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_questions(path)[0].question == row["question"]


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(range(32)) * 20)
    for read in (read_text, lambda p: list(text_lines(p)), read_questions, lambda p: read_texts({"en": p})):
        with pytest.raises(DamagedFileError, match=r"model\.gguf.*binary"):
            read(path)
        with pytest.raises(MissingFileError):
            read(tmp_path / "gone.txt")
        with pytest.raises(InputError, match="is a folder"):
            read(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_key_file_of_another_editor_has_the_same_keys(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "keys.txt"
    path.write_bytes("# 社内\r\nsecret-key\r\n".encode(encoding))
    path.chmod(0o600)
    policy = policy_of("127.0.0.1", GuardOptions(api_key_file=path))
    assert policy.keys.single() == "secret-key"


_DEEP = "[" * 100_000


def test_json_of_endless_depth_is_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_model.safetensors").touch()
    for name in ("config.json", "manifest.json", "questions.jsonl", "adapter/adapter_config.json"):
        (tmp_path / name).write_text(_DEEP)
    for read, path in (
        (read_manifest, tmp_path), (read_config, tmp_path), (read_questions, tmp_path / "questions.jsonl"),
        (lambda folder: check_adapter(folder, tmp_path), tmp_path / "adapter"),
        (_read_settings, tmp_path / "config.json"),
    ):  # fmt: skip
        with pytest.raises(DamagedFileError):
            read(path)
