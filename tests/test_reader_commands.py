"""`slm rag ask` and `slm rag evaluate` with a reader at the seam, in both languages; who reads, and when it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rag.cli.rag import rag
from slm.errors import InputError, MissingFileError
from slm.joints import Finish, Message, Reader, SamplingOptions
from tests.path_joints import PathJoints
from tests.tiny_rag import handbook, own_home
from tests.tiny_reader import Pointing, reading

__all__ = ["handbook", "own_home"]  # fixtures


class ReaderJoints(PathJoints):
    """Has a reader, unless its weights are not here."""

    def __init__(self, *texts: str, here: bool = True) -> None:
        self.judge, self.here, self.wanted = Pointing(*texts), here, list[str]()

    def reader_of(self, wanted: str) -> Reader | None:
        self.wanted.append(wanted)
        if wanted == "model" or (wanted == "auto" and not self.here):
            return None
        if not self.here:
            raise MissingFileError("the reader's weights are not here")
        return reading(self.judge)


class WordyEngine:
    """Speaks the engine's protocol, says the same to everything, and keeps for whom it was asked."""

    def __init__(self) -> None:
        self.asked: list[str | None] = []

    def chat(
        self, messages: Sequence[Message], *, adapter: str | None = None, sampling: SamplingOptions
    ) -> Iterator[str | Finish]:
        self.asked.append(adapter)
        yield "Twenty [1]."
        yield Finish("stop", None, "", 1, 1, 0.1, 0.1)


class ModelJoints(ReaderJoints):
    """The reader's weights are not here; a model can be opened."""

    def __init__(self) -> None:
        super().__init__(here=False)
        self.engine, self.opened = WordyEngine(), list[tuple[Path, dict[str, Path]]]()

    @contextmanager
    def open_engine(
        self, model: Path, adapters: Mapping[str, Path], *, threads: int = 0, context: int = 4096
    ) -> Iterator[Any]:
        self.opened.append((model, dict(adapters)))
        yield self.engine


@pytest.fixture
def indexed(handbook: Path) -> Path:
    assert run(PathJoints(), "add", "handbook", str(handbook)).exit_code == 0
    return handbook


def run(joints: PathJoints, *args: str) -> Result:
    return CliRunner().invoke(rag, list(args), obj=joints)


def ask(joints: ReaderJoints, question: str, *args: str) -> Result:
    return run(joints, "ask", "handbook", question, *args)


ASKED = {"en": "How many days off do employees get?", "ja": "社員の休暇は何日ですか。"}
FACT = {"en": "Employees get twenty days off each year.", "ja": "社員は毎年20日の休暇を取れます。"}
PAGE = {"en": "Paid leave", "ja": "有給休暇"}


@pytest.mark.parametrize("lang", ASKED)
def test_ask_says_the_line_and_its_source(lang: str, indexed: Path) -> None:
    joints = ReaderJoints(FACT[lang])
    result = ask(joints, ASKED[lang])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{FACT[lang]} [1]\n\nSources:\n  1. {PAGE[lang]}")
    assert f"{lang}/leave.md)\n     “{FACT[lang]}”\n" in result.stdout and "  2. " not in result.stdout
    assert joints.wanted == ["auto"] and {asked for asked, _ in joints.judge.asked} == {ASKED[lang]}


@pytest.mark.parametrize("lang", ASKED)
def test_ask_in_json_gives_the_place_of_the_line(lang: str, indexed: Path) -> None:
    answer = json.loads(ask(ReaderJoints(FACT[lang]), ASKED[lang], "--json").stdout)
    (line,) = answer["lines"]
    source = answer["sources"][line["passage"] - 1]
    assert source["text"][line["start"] : line["end"]] == line["text"] == FACT[lang]
    assert answer["answer"] == f"{FACT[lang]} [1]" and answer["citations"] == [1] and answer["refused"] is False
    assert answer["doubt"] < 0.01 and answer["reader"] == "reader" and len(answer["nearest"]) == 3
    assert source["cited"] and source["quote"] == FACT[lang] and source["source"].endswith(f"{lang}/leave.md")


@pytest.mark.parametrize(
    ("lang", "refusal"), [("en", "I could not find this in the documents."), ("ja", "資料には見つかりませんでした。")]
)
def test_ask_says_when_no_line_answers_and_shows_the_nearest_as_such(lang: str, refusal: str, indexed: Path) -> None:
    shown = ask(ReaderJoints(), ASKED[lang])
    assert shown.exit_code == 0
    assert shown.stdout.startswith(f"{refusal}\n\nThe nearest lines, which may not answer:\n  1. ")
    assert "Sources" not in shown.stdout
    answer = json.loads(ask(ReaderJoints(), ASKED[lang], "--json").stdout)
    assert answer["answer"] == refusal and answer["refused"] is True and answer["doubt"] > 0.9
    assert answer["citations"] == answer["lines"] == [] and not any(source["cited"] for source in answer["sources"])


def test_the_threshold_can_be_given(indexed: Path) -> None:
    sure, unsure = (FACT["en"],), ()
    for texts, at, refused in ((sure, "0", True), (sure, "0.5", False), (unsure, "0.5", True), (unsure, "1", False)):
        answer = json.loads(ask(ReaderJoints(*texts), ASKED["en"], "--refuse-at", at, "--json").stdout)
        assert answer["refused"] is refused, (texts, at)


@pytest.mark.parametrize("value", ["1.5", "-0.1", "nan", "often"])
def test_a_threshold_that_is_no_probability_is_refused(value: str, indexed: Path) -> None:
    result = ask(ReaderJoints(), ASKED["en"], f"--refuse-at={value}")
    assert result.exit_code == 2 and "--refuse-at" in result.output


def test_a_threshold_without_a_reader_is_refused(indexed: Path) -> None:
    result = ask(ReaderJoints(), ASKED["en"], "--reader", "model", "--refuse-at", "0.5")
    assert result.exit_code == 2 and "no reader that could refuse" in result.output


@pytest.mark.parametrize("options", [(), ("--reader", "auto"), ("--reader", "model")])
def test_where_nobody_answers_a_model_is_asked_for(options: tuple[str, ...], indexed: Path, tmp_path: Path) -> None:
    result = ask(ReaderJoints(here=False), ASKED["en"], *options)
    assert result.exit_code == 2 and "no reader answers" in result.output and "--model" in result.output
    if options:
        questions = write_questions(tmp_path / "q.jsonl")
        arguments = ["evaluate", "handbook", "--questions", str(questions), *options]
        result = run(ReaderJoints(here=False), *arguments)
        assert result.exit_code == 2 and "name one with --model" in result.output


def test_a_reader_that_has_to_be_there_and_is_not_is_an_error_though_a_model_is_named(indexed: Path) -> None:
    error = ask(ReaderJoints(here=False), ASKED["en"], "--reader", "point", "--model", "m.gguf").exception
    assert isinstance(error, MissingFileError)


def test_the_model_answers_where_the_readers_weights_are_not_here(indexed: Path) -> None:
    joints = ModelJoints()
    answer = json.loads(ask(joints, ASKED["en"], "--model", "m.gguf", "--json").stdout)
    assert answer["answer"] == "Twenty [1]." and "refused" not in answer
    assert joints.opened == [(Path("m.gguf"), {})] and joints.judge.asked == []


def test_a_question_of_ten_thousand_characters_is_a_clear_error(indexed: Path) -> None:
    for question in ("why " * 2500 + "?", "なぜ" * 5000):
        error = ask(ReaderJoints(), question).exception
        assert isinstance(error, InputError) and "at most 2,000 are read" in str(error)


def write_questions(path: Path) -> Path:
    rows: list[dict[str, Any]] = [
        {"question": ASKED["en"], "lang": "en", "relevant": ["en/leave.md"], "answer": ["twenty"], "kind": "sentence"},
        {"question": ASKED["ja"], "lang": "ja", "relevant": ["ja/leave.md"], "answer": ["20日"], "kind": "sentence"},
        {"question": "Where do guests sign in?", "lang": "en", "relevant": ["en/visitors.md"], "answer": ["reception"]},
        {"question": "Who is the king?", "lang": "en", "relevant": [], "answerable": False, "kind": "absent"},
    ]  # fmt: skip
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


def test_evaluate_measures_what_the_reader_says(indexed: Path, tmp_path: Path) -> None:
    questions = write_questions(tmp_path / "q.jsonl")
    arguments = ["evaluate", "handbook", "--questions", str(questions), "--reader", "point"]
    # These lines answer every question there is: right for two of them, wrong for one, invented for the last. Of the
    # passages three are told, with the nearest lines.
    eager = json.loads(run(ReaderJoints(*FACT.values()), *arguments, "--json").stdout)["answering"]
    assert eager["reader"] == "reader"
    assert eager["overall"] == {
        "n": 3, "shown": 3, "cited": 2, "keyed": 3, "right": 2, "wrong": 1, "unsaid": 0, "unanswerable": 1,
        "refused": 0,
    }  # fmt: skip
    assert eager["by_language"]["ja"]["right"] == 1 and set(eager["by_kind"]) == {"sentence", "absent"}
    mute = run(ReaderJoints(), *arguments)
    assert "     right     wrong    unsaid" in mute.stdout
    assert "1 of 1 unanswerable questions were refused" in mute.stdout
    mute_figures = json.loads(run(ReaderJoints(), *arguments, "--json").stdout)["answering"]["overall"]
    assert (mute_figures["right"], mute_figures["wrong"], mute_figures["unsaid"]) == (0, 0, 3)
    told = json.loads(run(ReaderJoints(), *arguments, "--refuse-at", "1", "--json").stdout)["answering"]["overall"]
    assert told["unsaid"] == told["refused"] == 0


@pytest.mark.parametrize("lang", ASKED)
def test_search_puts_first_what_a_reader_takes_for_an_answer(lang: str, indexed: Path) -> None:
    joints = ReaderJoints(FACT[lang])
    arguments = ["search", "handbook", "the office", "-k", "3", "--json"]
    plain = json.loads(run(joints, *arguments).stdout)["results"]
    assert FACT[lang] not in plain[0]["text"] and joints.wanted == []
    found = json.loads(run(joints, *arguments, "--rerank", "point").stdout)["results"]
    assert FACT[lang] in found[0]["text"] and len(found) == 3 and joints.wanted == ["point"]
    scores = [one["score"] for one in found]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("wanted", ["auto", "model"])
def test_what_is_no_reader_ranks_nothing(wanted: str, indexed: Path) -> None:
    result = run(ReaderJoints(), "search", "handbook", "leave", "--rerank", wanted)
    assert result.exit_code == 2 and f"'{wanted}' is no reader" in result.output


def test_evaluate_measures_what_a_reader_puts_first_beside_the_legs(indexed: Path, tmp_path: Path) -> None:
    questions = write_questions(tmp_path / "q.jsonl")
    arguments = ["evaluate", "handbook", "--questions", str(questions), "--rerank", "point"]
    result = json.loads(run(ReaderJoints(*FACT.values()), *arguments, "--json").stdout)
    assert list(result["legs"]) == ["fused", "dense", "lexical", "read"] and "answering" not in result
    read = result["legs"]["read"]["overall"]
    assert read["n"] == 3 and read["recall_at_1"] == pytest.approx(2 / 3)
    assert "\nread " in run(ReaderJoints(*FACT.values()), *arguments).stdout


def test_evaluate_measures_answers_only_where_somebody_is_asked_to_give_them(indexed: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", "handbook", "--questions", str(write_questions(tmp_path / "q.jsonl")), "--json"]
    nobody = ReaderJoints(FACT["en"])
    assert "answering" not in json.loads(run(nobody, *arguments).stdout) and nobody.wanted == []
    auto = ReaderJoints(FACT["en"])
    assert json.loads(run(auto, *arguments, "--reader", "auto").stdout)["answering"]["reader"] == "reader"
    beside = ReaderJoints(FACT["en"])
    assert json.loads(run(beside, *arguments, "--model", "m.gguf").stdout)["answering"]["reader"] == "reader"
    worded = ModelJoints()
    adapter = tmp_path / "ja.gguf"
    adapter.write_bytes(b"GGUF")
    told = json.loads(run(worded, *arguments, "--model", "m.gguf", "--adapter", f"ja={adapter}").stdout)["answering"]
    assert told["reader"] is None and told["overall"]["n"] == 3
    assert worded.opened == [(Path("m.gguf"), {"ja": adapter})] and worded.engine.asked == ["auto"] * 4


def test_options_of_the_model_are_said_to_do_nothing_where_a_reader_answers(indexed: Path) -> None:
    joints = ReaderJoints(*FACT.values())
    told = ask(joints, ASKED["en"], "-k", "5", "--max-tokens", "9", "--threads", "1").stderr
    assert "-k is for --reader model" in told and "--max-tokens is for --reader model" in told
    assert "--threads is for --reader model" in told
    assert "--reader model" not in ask(joints, ASKED["en"]).stderr
