"""The retrieval commands, and the retriever that the other rooms get, over a small handbook."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rag.answer.retriever import open_retriever
from rag.cli.rag import rag
from rag.evaluate.answers import says
from slm.errors import InputError, MismatchError, MissingFileError, UnknownNameError
from slm.joints import Finish, Message, SamplingOptions
from tests.path_joints import PathJoints
from tests.tiny_rag import handbook, own_home

__all__ = ["handbook", "own_home"]  # fixtures


class ScriptedEngine:
    """Speaks the engine's protocol with a fixed answer, and keeps what it was asked."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self.pieces, self.asked = pieces, list[tuple[list[Message], str | None, SamplingOptions]]()

    def chat(
        self, messages: Sequence[Message], *, adapter: str | None = None, sampling: SamplingOptions | None = None
    ) -> Iterator[str | Finish]:
        self.asked.append((list(messages), adapter, sampling or SamplingOptions()))
        yield from self.pieces
        yield Finish("stop", adapter, "scripted", 100, 10, 0.5, 0.25)


def run(*args: str, engine: ScriptedEngine | None = None) -> Result:
    class Scripted(PathJoints):
        @contextmanager
        def open_engine(
            self, model: Path, adapters: Mapping[str, Path], *, threads: int = 0, context: int = 4096
        ) -> Iterator[Any]:
            assert engine is not None
            yield engine

    return CliRunner().invoke(rag, list(args), obj=Scripted())


@pytest.fixture
def indexed(handbook: Path) -> Path:
    result = run("add", "handbook", str(handbook), "--json")
    assert result.exit_code == 0, result.output
    added = json.loads(result.stdout)
    assert (added["added"], added["skipped"]) == (6, [])
    return handbook


def test_ask_streams_an_answer_and_lists_the_cited_sources(indexed: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "en.gguf"
    adapter.write_bytes(b"GGUF")
    engine = ScriptedEngine(["Twenty", " days [", "2]", " [9]", "\x1b[31m."])
    result = run(
        "ask", "handbook", "How many days of leave?", "--model", "m.gguf", "--adapter", f"en={adapter}", engine=engine
    )
    assert result.exit_code == 0, result.output
    # The passage that says twenty is the first one: the engine's [2] was mistaken, its [9] made up.
    assert result.stdout.startswith("Twenty days [1].\n\nSources:\n  1. Paid leave")
    assert (
        "en/leave.md)\n     “Employees get twenty days off each year.”" in result.stdout and "2." not in result.stdout
    )
    messages, chosen, _ = engine.asked[0]
    assert chosen == "auto" and messages[0]["content"].startswith("Answer the question using only")
    assert "Question: How many days of leave?" in messages[0]["content"]


def test_ask_in_json_gives_answer_citations_and_every_source(indexed: Path) -> None:
    engine = ScriptedEngine(["20日です。[1]"])
    result = run("ask", "handbook", "休暇は何日ですか", "--model", "m.gguf", "--json", engine=engine)
    answer = json.loads(result.stdout)
    (cited,) = answer["citations"]  # the passage that holds it, whichever of the page's two stands first
    assert answer["answer"] == f"20日です。[{cited}]" and len(answer["sources"]) == 3
    said = answer["sources"][cited - 1]
    assert said["source"].endswith("ja/leave.md") and "20日" in said["text"]
    assert all(source["quote"] and source["quote"] in source["text"] for source in answer["sources"])
    assert answer["completion_tokens"] == 10 and engine.asked[0][1] is None


def test_ask_says_so_when_no_passage_is_cited(indexed: Path) -> None:
    result = run("ask", "handbook", "How many days of leave?", "--model", "m", engine=ScriptedEngine(["Some."]))
    assert "The answer cites no passage. It was given these:" in result.stdout and "  3. " in result.stdout


def test_search_status_remove_and_evaluate_report_what_is_there(indexed: Path, tmp_path: Path) -> None:
    found = json.loads(run("search", "handbook", "繰り越し", "-k", "2", "--json").stdout)["results"]
    assert len(found) == 2 and found[0]["title"] == "有給休暇" and found[0]["heading"] == "繰り越し"
    assert "Paid leave > Carrying over" in run("search", "handbook", "carried over").stdout
    status = json.loads(run("status", "handbook", "--json").stdout)
    assert len(status["documents"]) == 6 and status["chunks"] == 8
    assert "6 documents in 8 chunks" in run("status", "handbook").stdout
    questions = tmp_path / "q.jsonl"
    rows = [
        {
            "question": "How many free days?",
            "lang": "en",
            "relevant": ["en/leave.md", "ja/leave.md"],
            "answerable": True,
        },
        {"question": "受付では何をしますか", "lang": "ja", "relevant": ["ja/visitors.md"], "answerable": True},
        {"question": "Who is the king?", "lang": "en", "relevant": [], "answerable": False},
    ]
    questions.write_text("\n".join(json.dumps(row) for row in rows))
    result = json.loads(run("evaluate", "handbook", "--questions", str(questions), "--json").stdout)
    assert set(result["by_language"]) == {"en", "ja"} and result["overall"]["n"] == 2
    assert result["by_language"]["ja"]["recall_at_1"] == 1.0
    removed = run("remove", "handbook", "ja/leave.md")
    assert removed.exit_code == 0 and "ja/leave.md" in removed.stdout
    removed = json.loads(run("remove", "handbook", "ja/visitors.md", "--json").stdout)
    assert removed == {"removed": [str(indexed / "ja" / "visitors.md")]}
    assert json.loads(run("status", "handbook", "--json").stdout)["chunks"] == 5


def test_a_first_questions_file_is_lines_on_stdout_or_one_json_object(indexed: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in run("questions", "handbook", "--most", "3").stdout.splitlines()]
    assert len(lines) == 3
    assert json.loads(run("questions", "handbook", "--most", "3", "--json").stdout) == {
        "path": None,
        "questions": lines,
    }
    out = tmp_path / "q.jsonl"
    written = json.loads(run("questions", "handbook", "--most", "3", "--out", str(out), "--json").stdout)
    assert written == {"path": str(out), "questions": lines}
    assert [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] == lines


def test_evaluate_with_a_model_counts_pages_cited_facts_said_and_refusals(indexed: Path, tmp_path: Path) -> None:
    class Answers(ScriptedEngine):
        def chat(self, messages: Sequence[Message], **options: Any) -> Iterator[str | Finish]:
            content = messages[0]["content"]
            number = next(n for n in (1, 2, 3) if f"[{n}] Paid leave\n" in content) if "off each year" in content else 1
            self.pieces = {
                "How many free days?": [f"Employees get twenty days off each year [{number}]."],
                "Where do guests sign in?": ["Nobody knows."],
                "Who is the king?": ["I could not find this in the documents [1]."],
            }[content.rpartition("Question: ")[2]]
            return super().chat(messages, **options)

    questions = tmp_path / "q.jsonl"
    rows = [
        {"question": "How many free days?", "lang": "en", "relevant": ["en/leave.md"], "answer": ["20", "twenty"]},
        {"question": "Where do guests sign in?", "lang": "en", "relevant": ["en/visitors.md"], "answer": ["reception"]},
        {"question": "Who is the king?", "lang": "en", "relevant": [], "answerable": False},
    ]
    questions.write_text("\n".join(json.dumps(row) for row in rows))
    arguments = ["evaluate", "handbook", "--questions", str(questions), "--model", "m.gguf"]
    figures = json.loads(run(*arguments, "--json", engine=Answers([])).stdout)["answering"]
    expected = {
        "n": 2, "shown": 2, "cited": 1, "keyed": 2, "right": 1, "wrong": 1, "unsaid": 0,
        "unanswerable": 1, "refused": 1,
    }  # fmt: skip
    assert figures["by_language"]["en"] == figures["overall"] == expected
    assert [row["right"] for row in figures["answers"]] == [True, False, None]
    shown = run(*arguments, engine=Answers([])).stdout
    assert "shown     cited     right" in shown and "1 of 1 unanswerable questions were refused" in shown


def test_a_fact_is_said_only_as_a_word_or_number_of_its_own() -> None:
    assert says("It costs 13,000 yen [1].", ["13,000"]) and says("13時までです。", ["13時"])
    assert not says("It costs 113,000 yen.", ["13,000"]) and not says("See [3].", ["3"])
    assert not says("Thirteen", ["Thirty", "teen"]) and not says("x", [])


def test_bad_input_of_the_commands_is_a_clear_error(indexed: Path, tmp_path: Path) -> None:
    assert isinstance(run("search", "nope", "x").exception, UnknownNameError)
    assert isinstance(run("search", "handbook", " ").exception, InputError)
    assert isinstance(run("add", "handbook", str(tmp_path / "none")).exception, MissingFileError)
    assert isinstance(run("add", "handbook", str(indexed), "--embedder", "all-minilm-l6-v2").exception, MismatchError)
    assert isinstance(
        run("ask", "handbook", "q", "--model", "m", "--adapter", "en=none.gguf").exception, MissingFileError
    )
    assert run("ask", "handbook", "q", "--model", "m", "--adapter", "en").exit_code == 2


def test_the_retriever_of_the_joint_searches_and_makes_the_prompt(indexed: Path) -> None:
    with open_retriever("handbook") as retriever:
        grounded = retriever.grounded("How many days of leave?")
    first, second, _ = grounded.passages
    assert first.title == "Paid leave" and first.score >= second.score
    assert grounded.messages[0]["content"].endswith("Question: How many days of leave?")
    assert grounded.citations.feed("See [2].") == "See [2]." and grounded.citations.cited == [2]
