"""`slm evaluate --chat`: base, adapter and others are asked the same and counted side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import slm_cli
from slm.errors import ContextOverflowError, EngineDiedError, SlmError
from slm.joints import Finish, Message, SamplingOptions
from tests.path_joints import PathJoints
from tests.tiny_gguf import write_adapter, write_model
from train.cli.evaluate import evaluate
from train.measure.answers.items import read_items

ROWS = [
    {"id": "en-1", "lang": "en", "kind": "sum", "prompt": "2+2?", "rules": [{"rule": "number", "value": 4}]},
    {"id": "en-2", "lang": "en", "kind": "sum", "prompt": "3+3?", "rules": [{"rule": "number", "value": 6}]},
    {"id": "ja-1", "lang": "ja", "kind": "say", "system": "短く。", "prompt": "名前は？",
     "rules": [{"rule": "contains", "any": ["スズキ"]}]},
]  # fmt: skip
SAID = {
    ("m.gguf", None): ["4", "7", "I do not know"],
    ("m.gguf", "adapter"): ["2+2=4", "6", "スズキです"],
    ("q.gguf", None): ["4", "6", ""],
}


class Parrot:
    """An engine that says what SAID has for its file; an error in it is raised."""

    def __init__(self, file: Path, said: Mapping[Any, list[Any]], asked: list[Any]) -> None:
        self.file, self.said, self.asked = file, said, asked

    def chat(
        self, messages: Sequence[Message], *, adapter: str | None = None, sampling: SamplingOptions | None = None
    ) -> Iterator[str | Finish]:
        assert sampling is not None and sampling.temperature == 0
        self.asked.append((self.file.name, adapter, [m["content"] for m in messages], sampling.max_tokens))
        number = next(n for n, row in enumerate(ROWS) if row["prompt"] == messages[-1]["content"])
        said = self.said[self.file.name, adapter][number]
        if isinstance(said, Exception):
            raise said
        yield from said
        yield Finish("stop", adapter, "", 1, 1, 0.1, 0.1)


class ParrotJoints(PathJoints):
    def __init__(self, said: Mapping[Any, list[Any]] = SAID) -> None:
        self.said, self.asked = said, list[Any]()

    def open_engine(
        self, model: Path, adapters: Mapping[str, Path], *, threads: int = 0, context: int = 4096
    ) -> AbstractContextManager[Any]:
        self.opened = dict(adapters)
        return nullcontext(Parrot(model, self.said, self.asked))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, size in (("m.gguf", 2_000_000), ("a.gguf", 10), ("q.gguf", 1_000_000)):
        (tmp_path / name).write_bytes(b"x" * size)
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "items.jsonl").write_text(lines, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*words: str, joints: ParrotJoints | None = None) -> Result:
    return CliRunner().invoke(evaluate, list(words), obj=joints or ParrotJoints(), env={"COLUMNS": "120"})


ALL = ["m.gguf", "--adapter", "a.gguf", "--beside", "quantized=q.gguf", "--chat", "items.jsonl"]


def test_base_adapter_and_others_stand_side_by_side(folder: Path) -> None:
    result = call(*ALL, "--misses", "1")
    assert result.exit_code == 0, result.output
    table = [line.split() for line in result.stdout.splitlines()[:6]]
    assert table == [
        ["language", "kind", "base", "adapter", "quantized"],
        ["en", "sum", "1/2", "2/2", "2/2"],
        ["en", "all", "1/2", "(9-91", "%)", "2/2", "(34-100", "%)", "2/2", "(34-100", "%)"],
        ["ja", "say", "0/1", "1/1", "0/1"],
        ["ja", "all", "0/1", "(0-79", "%)", "1/1", "(21-100", "%)", "0/1", "(0-79", "%)"],
        ["all", "all", "1/3", "(6-79", "%)", "3/3", "(44-100", "%)", "2/3", "(21-94", "%)"],
    ]
    assert "adapter: m.gguf with a.gguf, 2 MB, 0 s" in result.stdout
    assert "base, en-2: breaks number\n  '3+3?'\n  '7'" in result.stdout
    assert "quantized, ja-1: breaks empty" in result.stdout and "adapter, " not in result.stdout


def test_the_figures_as_json_hold_every_answer(folder: Path) -> None:
    joints = ParrotJoints()
    result = call(*ALL, "--max-tokens", "9", "--json", joints=joints)
    chat = json.loads(result.stdout)["chat"]
    assert (chat["file"], chat["items"], chat["max_tokens"]) == ("items.jsonl", 3, 9)
    assert [(m["name"], m["file"], m["adapter"], m["overall"]["right"]) for m in chat["models"]] == [
        ("base", "m.gguf", None, 1), ("adapter", "m.gguf", "a.gguf", 3), ("quantized", "q.gguf", None, 2)
    ]  # fmt: skip
    assert chat["models"][0]["answers"][1] == {
        "id": "en-2", "lang": "en", "kind": "sum", "answer": "7", "right": False, "broken": ["number"]
    }  # fmt: skip
    assert joints.asked[2] == ("m.gguf", None, ["短く。", "名前は？"], 9)
    assert len(joints.asked) == 9


def test_only_the_first_items_are_asked_when_told_so(folder: Path) -> None:
    result = call("m.gguf", "--chat", "items.jsonl", "--items", "1", "--json")
    answers = json.loads(result.stdout)["chat"]["models"][0]["answers"]
    assert [answer["id"] for answer in answers] == ["en-1", "ja-1"]


def test_an_item_that_cannot_be_asked_is_wrong_and_the_others_are_asked(folder: Path) -> None:
    said = {("m.gguf", None): [ContextOverflowError("too long"), "6", "スズキ"]}
    result = call("m.gguf", "--chat", "items.jsonl", "--json", joints=ParrotJoints(said))
    model = json.loads(result.stdout)["chat"]["models"][0]
    assert model["overall"]["right"] == 2
    assert model["answers"][0]["broken"] == ["not asked"] and model["answers"][0]["error"] == "too long"


def test_a_model_that_answers_nothing_at_all_is_an_error(folder: Path) -> None:
    joints = ParrotJoints({("m.gguf", None): [EngineDiedError("it died")] * 3})
    result = call("m.gguf", "--chat", "items.jsonl", joints=joints)
    assert isinstance(result.exception, SlmError) and "it died" in str(result.exception)


@pytest.mark.parametrize(
    ("words", "said"),
    [((), "one of the two"), (("--text", "en=items.jsonl", "--chat", "items.jsonl"), "one of the two"),
     (("--chat", "items.jsonl", "--stride", "4"), "--stride means nothing with --chat"),
     (("--text", "en=items.jsonl", "--max-tokens", "4"), "--max-tokens means nothing with --text"),
     (("--text", "en=items.jsonl", "--beside", "a=b"), "--beside means nothing with --text"),
     (("--chat", "items.jsonl", "--beside", "q.gguf"), "is not NAME=MODEL")],
)  # fmt: skip
def test_options_that_mean_nothing_together_are_refused(folder: Path, words: tuple[str, ...], said: str) -> None:
    result = call("m.gguf", *words)
    assert result.exit_code == 2 and said in result.output


def test_a_model_beside_has_a_name_of_its_own(folder: Path) -> None:
    result = call("m.gguf", "--chat", "items.jsonl", "--beside", "base=q.gguf")
    assert isinstance(result.exception, SlmError) and "has a name that MODEL" in str(result.exception)


def test_a_real_engine_is_asked_through_the_roof(tmp_path: Path) -> None:
    """Random weights know nothing; what counts is that model and adapter both answer, and that they differ."""
    model = write_model(tmp_path / "model.gguf", fingerprint="f00d" * 16)
    adapter = write_adapter(tmp_path / "a.gguf", seed=1)
    words = [str(model), "--adapter", str(adapter), "--chat", "data/eval.jsonl", "--items", "1", "--max-tokens", "8"]
    result = CliRunner().invoke(slm_cli.cli, ["evaluate", *words, "--json"], obj=slm_cli.Roof(), catch_exceptions=False)
    models = json.loads(result.stdout)["chat"]["models"]
    assert [(m["name"], m["overall"]["items"]) for m in models] == [("base", 12), ("adapter", 12)]
    said = [[answer["answer"] for answer in m["answers"]] for m in models]
    assert said[0] != said[1] and all(any(part) for part in said)


def test_the_items_of_the_program_are_read_by_the_command() -> None:
    assert len(read_items(Path("data/eval.jsonl"))) == 120
