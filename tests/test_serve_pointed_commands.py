"""`slm chat --rag` and `slm serve --rag` with a reader: who answers, under which name, and when it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fastapi.testclient import TestClient

from serve.chat.opening import Desk, Opening, Setup
from serve.chat.sessions import Keeper
from serve.chat.talk import Chat
from serve.chat.talker import LocalTalker
from serve.chat.terminal import turn
from serve.cli import serve as cli
from serve.cli.chat import chat as chat_command
from serve.engine.engine import open_engine
from slm.errors import InputError
from slm.joints import SamplingOptions
from slm.terminal.answer import show_pointed
from tests.tiny_chat import fake_server
from tests.tiny_gguf import write_adapter, write_model
from tests.tiny_pointing import NEVER, LineIndex, ReadingJoints, tiny_reader

HOTEL, ROOM = "How much may a hotel in Osaka cost?", "会議室の予約はいつまでに取り消せますか。"
ROW = [-9.0, 6.0, -9.0, -9.0]
SAID = "City: Osaka, Night: 13,000 yen [1]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    write_model(folder / "tiny.gguf")
    write_adapter(folder / "en.gguf", seed=2)
    return folder


@pytest.fixture
def joints() -> ReadingJoints:
    return ReadingJoints(tiny_reader(), LineIndex(scores=ROW))


def chat(joints: ReadingJoints, folder: Path, *options: str, say: str) -> Result:
    args = [str(folder / "tiny.gguf"), "--threads", "1", "--max-tokens", "6", *options]
    return CliRunner().invoke(chat_command, args, obj=joints, input=say)


# --- chat -------------------------------------------------------------------------------------------------------


def test_chat_answers_with_the_readers_line_and_its_source(joints: ReadingJoints, folder: Path) -> None:
    result = chat(joints, folder, "--rag", "handbook", say=f"{HOTEL}\n")
    assert result.exception is None and result.stdout == f"{SAID}\n"
    source = "\nSources:\n  1. Trips > Hotels (trips.md)\n     “City: Osaka, Night: 13,000 yen”\n"
    assert source in result.stderr and "rooms.md" not in result.stderr
    assert joints.wanted == ["auto"] and "the reader reader answers from handbook" in result.stderr
    assert "tokens read" in result.stderr


@pytest.mark.parametrize(
    ("question", "said"),
    [(HOTEL, "I could not find this in the documents."), (ROOM, "資料には見つかりませんでした。")],
)
def test_chat_refuses_where_it_is_told_to(joints: ReadingJoints, folder: Path, question: str, said: str) -> None:
    result = chat(joints, folder, "--rag", "handbook", "--refuse-at", "0", say=f"{question}\n")
    assert result.stdout == f"{said}\n"
    assert "\nThe nearest lines, which may not answer:\n  1. Trips > Hotels (trips.md)\n" in result.stderr


def test_the_reader_command_changes_who_answers(joints: ReadingJoints, folder: Path) -> None:
    talk = f"/reader\n{HOTEL}\n/reader model\n{HOTEL}\n/reader\n/reader point\n{HOTEL}\n"
    result = chat(joints, folder, "--rag", "handbook", say=talk)
    first, worded, again = result.stdout.splitlines()
    assert first == again == SAID != worded
    assert "answered by: point (reader); also: model" in result.stderr
    assert "answered by: model; also: point (reader)" in result.stderr
    assert "Ten days." not in worded and "It was given these" in result.stderr


@pytest.mark.parametrize(
    ("options", "line", "said"),
    [
        ((), "/reader point", "no documents"),
        (("--rag", "i", "--reader", "model"), "/reader point", "--reader FOLDER"),
        (("--rag", "i"), "/reader nobody", "'nobody' answers nothing"),
    ],
)
def test_a_reader_that_cannot_be_is_an_error(
    joints: ReadingJoints, folder: Path, options: tuple[str, ...], line: str, said: str
) -> None:
    result = chat(joints, folder, *options, say=f"{line}\n")
    assert isinstance(result.exception, InputError) and said in str(result.exception)


def test_a_conversation_keeps_pointed_answers(folder: Path) -> None:
    reader = tiny_reader()
    with open_engine(folder / "tiny.gguf", {}, threads=1, parallel=1) as engine:
        desk = Desk(Setup("tiny"), LocalTalker(engine), LineIndex(scores=ROW), reader)
        talk = Chat(
            Opening(desk.setup, lambda *_: desk),
            Keeper(None, print),
            "base",
            SamplingOptions(max_tokens=4),
            "Be brief.",
        )
        for line in ("/reset", HOTEL, "/reader model", ROOM):
            turn(talk, line)
    first, second = talk.exchanges
    assert (first.question, first.answer, second.question) == (HOTEL, SAID, ROOM) and second.answer


def test_a_refusal_without_a_passage_shows_no_source() -> None:
    index = LineIndex(passages=())
    pointed = index.pointed(HOTEL, tiny_reader(refuse_at=NEVER))
    shown: list[str] = []
    show_pointed(pointed, shown.append)
    assert shown == [] and pointed.text == "I could not find this in the documents." and pointed.doubt == 1.0


@pytest.mark.parametrize(
    ("options", "said"),
    [((), SAID), (("--refuse-at", "0"), "I could not find this in the documents."), (("--reader", "model"), "Hello.")],
)
def test_chat_with_a_server_has_its_documents_read_here(
    joints: ReadingJoints, options: tuple[str, ...], said: str
) -> None:
    with fake_server() as server:
        server.answers = [["Hel", "lo."]]
        args = ["--url", server.url, "--rag", "handbook", *options]
        result = CliRunner().invoke(chat_command, args, obj=joints, input=f"{HOTEL}\n")
    assert result.exception is None and result.stdout == f"{said}\n"
    assert len(server.bodies) == ("model" in options), "a server is asked only where its model answers"
    assert [question for question, _ in joints.index.asked] == ([] if "model" in options else [HOTEL])


# --- options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [chat_command, cli.serve], ids=lambda command: command.name)
@pytest.mark.parametrize("options", [("--reader", "point"), ("--refuse-at", "0.5")])
def test_a_reader_without_documents_is_refused(
    joints: ReadingJoints, folder: Path, command: Any, options: tuple[str, ...]
) -> None:
    result = CliRunner().invoke(command, [str(folder / "tiny.gguf"), *options], obj=joints)
    assert result.exit_code == 2 and options[0] in result.stderr and "--rag INDEX" in result.stderr


@pytest.mark.parametrize("given", ["1.5", "-0.1", "nan"])
def test_a_threshold_is_a_probability(joints: ReadingJoints, folder: Path, given: str) -> None:
    result = chat(joints, folder, "--rag", "i", "--refuse-at", given, say="")
    assert result.exit_code == 2 and "--refuse-at" in result.stderr


def test_a_threshold_needs_a_reader(joints: ReadingJoints, folder: Path) -> None:
    result = chat(joints, folder, "--rag", "i", "--reader", "model", "--refuse-at", "0.5", say="")
    assert result.exit_code == 2 and "no reader that could refuse" in result.stderr


# --- serve ------------------------------------------------------------------------------------------------------


def test_serve_answers_documents_by_the_reader(
    joints: ReadingJoints, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter may have any name, the reader's as well: it is no adapter."""
    watched = folder / "watched"
    watched.mkdir()
    write_adapter(watched / "reader.gguf", seed=5)
    write_adapter(watched / "fr.gguf", seed=6)
    told: dict[str, Any] = {}

    def ask(app: Any, *_: Any) -> None:
        client = TestClient(app, base_url="http://127.0.0.1")
        question = {"messages": [{"role": "user", "content": HOTEL}], "rag": True}
        told["answer"] = client.post("/v1/chat/completions", json=question).json()
        told["names"] = [row["name"] for row in client.get("/lora-adapters").json()]
        told["models"] = [row["id"] for row in client.get("/v1/models").json()["data"]]

    monkeypatch.setattr(cli, "_run", ask)
    args = [str(folder / "tiny.gguf"), "--rag", "handbook", "--port", "0", "--threads", "1", "--refuse-at", "0.9"]
    result = CliRunner().invoke(cli.serve, [*args, "--adapters-dir", str(watched)], obj=joints)
    assert result.exception is None, result.output
    assert told["answer"]["choices"][0]["message"]["content"] == SAID
    assert sorted(told["names"]) == ["fr", "reader"] and told["models"][1:] == told["names"]
    assert "documents: handbook, answered by the reader reader" in result.stderr
