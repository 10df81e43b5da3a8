"""The training benchmark: everyone gets the same tokens, everyone trains, and whoever is missing or slow is said."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from slm.errors import EngineError, InputError
from tests.tiny_training import conversations, write_checkpoint, write_jsonl
from train.base import load_tokenizer
from train.bench import run as bench
from train.bench.clock import read_steps
from train.bench.contenders import OURS, OURS_TOP, TRAINER, TRL
from train.bench.data import read_ids, repeated, write_data
from train.bench.run import TrainBenchOptions, bench_training
from train.cli.bench import _show
from train.data.examples import Example
from train.data.masks import ExampleEncoder, choose_template


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base") / "llama", "llama", num_key_value_heads=4)


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "talks.jsonl", conversations(30) + conversations(30, "ja"))


@given(st.integers(1, 30), st.integers(1, 200), st.integers(0, 2**31))
def test_repeated_examples_come_equally_often_and_in_the_seeds_order(distinct: int, count: int, seed: int) -> None:
    examples = [Example(Path("x"), n, "en") for n in range(distinct)]
    many = repeated(examples, count, seed)
    times = Counter(example.line for example in many)
    assert len(many) == count
    assert max(times.values()) - min(times[n] for n in range(min(distinct, count))) <= 1
    assert many == repeated(examples, count, seed)


def test_the_ids_are_those_of_the_encoder_and_nothing_held_out_is_trained_on(
    base: Path, talks: Path, tmp_path: Path
) -> None:
    data = write_data(base, talks, tmp_path, count=100, used=40, longest=512, seed=3)
    train, held, pad_id = read_ids(data.ids_file)
    tokenizer = load_tokenizer(base)
    encoder = ExampleEncoder(tokenizer, choose_template(tokenizer, None)[0])
    lines = [json.loads(line) for line in data.train_file.read_text(encoding="utf-8").splitlines()]
    for item, line in zip(train, lines, strict=True):
        (own,) = encoder.conversation(Example(Path("x"), 1, line["lang"], messages=tuple(line["messages"])))
        assert (item.ids, item.labels, item.example.lang) == (own.ids, own.labels, line["lang"])
    assert not {item.ids for item in train} & {item.ids for item in held}
    assert (len(train), len(held), pad_id) == (data.examples, data.held_out_examples, tokenizer.pad_token_id)
    assert data.as_json()["supervised_tokens"] == sum(item.supervised for item in train)


def test_everyone_learns_the_same_from_the_same_examples(base: Path, talks: Path) -> None:
    options = TrainBenchOptions(talks, steps=4, batch_size=4, learning_rate=1e-3, time_limit_s=300)
    result = bench_training(base, ("trainer", "trl"), options)
    rows = {one["name"]: one for one in result["contenders"]}
    assert list(rows) == [OURS, TRAINER, TRL]
    for one in rows.values():
        assert one["completed"] and one["steps"] == 4
        assert one["supervised_tokens_per_s"] < one["tokens_per_s"]
        assert one["peak_rss_mb"] > 100
    # The two peers draw their batches alike; ours draws them otherwise from the same sixteen examples.
    assert rows[TRL]["held_out_loss"] == pytest.approx(rows[TRAINER]["held_out_loss"], rel=1e-4)
    assert rows[OURS]["held_out_loss"] == pytest.approx(rows[TRAINER]["held_out_loss"], rel=0.02)
    assert rows[TRAINER]["times_faster"] == 1
    assert result["missing"] == []


def test_who_does_not_finish_in_time_has_what_it_did_as_its_result(base: Path, talks: Path) -> None:
    (row,) = bench_training(base, (), TrainBenchOptions(talks, steps=1000, time_limit_s=0.2))["contenders"]
    assert (row["name"], row["completed"], row["steps"]) == (OURS, False, 0)
    assert row["supervised_tokens_per_s"] is None and row["held_out_loss"] is None


def test_a_contender_that_fails_is_an_error_with_its_last_words(
    monkeypatch: pytest.MonkeyPatch, base: Path, talks: Path
) -> None:
    monkeypatch.setattr(bench, "OURS", "nobody")
    with pytest.raises(EngineError, match="'nobody' failed") as caught:
        bench_training(base, (), TrainBenchOptions(talks, steps=1))
    assert "KeyError" in caught.value.found


def test_a_peer_that_fails_is_a_row_with_its_last_words_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch, base: Path, talks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = bench._train

    def train(name: str, plan: Any, limit_s: float) -> bool:
        return real("nobody" if name == TRL else name, plan, limit_s)

    monkeypatch.setattr(bench, "_train", train)
    result = bench_training(base, ("trl",), TrainBenchOptions(talks, steps=1, batch_size=4))
    ours, trl = result["contenders"]
    assert ours["completed"] and ours["error"] == ""
    assert (trl["name"], trl["completed"], trl["steps"], trl["times_faster"]) == (TRL, False, 0, None)
    _show(result)
    assert "KeyError: 'nobody'" in trl["error"] and f"{TRL}: failed with: KeyError" in capsys.readouterr().out


def test_a_missing_peer_is_said(monkeypatch: pytest.MonkeyPatch, base: Path, talks: Path) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "trl" else real(name))
    monkeypatch.setattr(bench, "_measure", lambda name, *_: [_row(name)])
    result = bench_training(base, ("trainer", "trl", "trl-defaults"), TrainBenchOptions(talks, steps=1))
    assert [one["name"] for one in result["contenders"]] == [OURS, TRAINER]
    assert len(result["missing"]) == 2 and all("no trl" in line and "peers" in line for line in result["missing"])


def _row(name: str, speed: float = 10.0) -> dict[str, Any]:
    return {
        "name": name, "steps": 2, "seconds": 1.0, "supervised_tokens_per_s": speed, "tokens_per_s": 3 * speed,
        "peak_rss_mb": 5.0, "held_out_loss": 1.0, "completed": True, "error": "",
    }  # fmt: skip


def test_rounds_turn_the_order_and_give_medians_beside_the_usual_way(
    monkeypatch: pytest.MonkeyPatch, base: Path, talks: Path
) -> None:
    asked: list[str] = []
    speeds = {OURS: iter([20.0, 60.0, 30.0]), TRAINER: iter([10.0, 10.0, 20.0])}

    def measure(name: str, *_: Any) -> list[dict[str, Any]]:
        asked.append(name)
        return [_row(name, next(speeds[name]))]

    monkeypatch.setattr(bench, "_measure", measure)
    ours, usual = bench_training(base, ("trainer",), TrainBenchOptions(talks, steps=1, rounds=3))["contenders"]
    assert asked == [OURS, TRAINER, TRAINER, OURS, OURS, TRAINER]
    assert (ours["supervised_tokens_per_s"], usual["supervised_tokens_per_s"]) == (30.0, 10.0)
    assert (ours["times_faster"], usual["times_faster"]) == (3.0, 1.0)


def test_the_epochs_of_the_top_layers_are_rows_of_their_own(
    monkeypatch: pytest.MonkeyPatch, base: Path, talks: Path
) -> None:
    def train(name: str, plan: Any, limit_s: float) -> bool:
        steps = [(0, 0.0), (1, 4.0), (2, 8.0), (3, 9.0), (4, 10.0)] if name == OURS_TOP else [(0, 0.0), (2, 8.0)]
        lines = [json.dumps({"step": n, "seconds": s, "peak_rss_mb": 1.0}) for n, s in steps]
        plan.clock_file.write_text("\n".join(lines) + '\n{"step": 5, "sec', encoding="utf-8")
        plan.result_file.write_text('{"held_out_loss": 2.0}', encoding="utf-8")
        return True

    monkeypatch.setattr(bench, "_train", train)
    rows = bench_training(base, (), TrainBenchOptions(talks, steps=2, top_layers=1))["contenders"]
    assert [row["name"] for row in rows] == [OURS, "slm, top 1, epoch 1", "slm, top 1, epoch 2"]
    assert [row["seconds"] for row in rows] == [8.0, 8.0, 2.0]
    assert rows[2]["supervised_tokens_per_s"] == pytest.approx(4 * rows[1]["supervised_tokens_per_s"], rel=1e-3)


def test_a_clock_file_that_does_not_exist_yet_has_no_steps(tmp_path: Path) -> None:
    assert read_steps(tmp_path / "none.jsonl") == []


def test_a_template_that_makes_several_sequences_of_one_conversation_is_refused(base: Path, tmp_path: Path) -> None:
    import shutil

    forgetful = tmp_path / "forgetful"
    shutil.copytree(base, forgetful)
    (forgetful / "chat_template.jinja").write_text(
        "{% if add_generation_prompt %}{{ messages[-1]['content'] + '<|im_start|>' }}"
        "{% else %}{{ messages[-2]['content'] + '<|im_start|>' + messages[-1]['content'] + '<|im_end|>' }}{% endif %}"
    )
    turns = [{"role": role, "content": f"{role} {n}"} for n in range(2) for role in ("user", "assistant")]
    talks = [{"lang": "en", "messages": [{"role": "user", "content": f"{n}"}, *turns[1:]]} for n in range(4)]
    with pytest.raises(InputError, match="one sequence each"):
        write_data(
            forgetful, write_jsonl(tmp_path / "long.jsonl", talks), tmp_path, count=8, used=None, longest=512, seed=0
        )


def test_the_command_prints_one_json_object_and_a_table(
    monkeypatch: pytest.MonkeyPatch, base: Path, talks: Path
) -> None:
    from tests.path_joints import PathJoints
    from train.cli.bench import bench_train

    monkeypatch.setattr(bench, "_measure", lambda name, *_: [_row(name)])
    joints = PathJoints()
    arguments = ["--model", str(base), "--data", str(talks), "--steps", "1", "--peer", "trainer"]
    said = CliRunner().invoke(bench_train, [*arguments, "--json"], obj=joints)
    assert said.exit_code == 0, said.output
    (one,) = json.loads(said.stdout)["trainings"]
    assert [row["name"] for row in one["contenders"]] == [OURS, TRAINER]
    shown = CliRunner().invoke(bench_train, arguments, obj=joints)
    assert "supervised" in shown.stdout and "Trainer" in shown.stdout
    refused = CliRunner().invoke(bench_train, [*arguments, "--steps", "0"], obj=joints)
    assert refused.exit_code == 2 and "--seconds" in refused.output
