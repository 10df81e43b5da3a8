"""`slm chat --url`: any server with OpenAI's API answers, and what such a server cannot do is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from serve.chat.remote import RemoteTalker
from serve.chat.sessions import Archive
from serve.cli.chat import chat
from slm.errors import EngineError, InputError, UnknownNameError
from slm.joints import Finish, SamplingOptions
from tests.path_joints import PathJoints
from tests.tiny_chat import FakeServer, fake_server


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with fake_server() as script:
        yield script


def invoke(*options: str, say: str = "", **environment: str) -> Result:
    return CliRunner().invoke(chat, ["--no-save", *options], obj=PathJoints(), input=say, env=environment)


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
def test_a_conversation_goes_to_the_server_as_the_api_has_it(server: FakeServer, end: str) -> None:
    server.answers = [["Hel", "lo."], ["やあ"]]
    done = invoke("--url", server.url + end, "--system", "Be brief.", say="Hi\nAgain\n")
    assert done.exception is None and done.stdout == "Hello.\nやあ\n"
    first, second = server.bodies
    assert first == {
        "model": "fake", "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 256,
        "temperature": 0.7, "top_p": 0.95,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    }  # fmt: skip
    assert [turn["content"] for turn in second["messages"]] == ["Be brief.", "Hi", "Hello.", "Again"]
    assert "[fake" in done.stderr and "2 tokens · first after" in done.stderr


def test_what_only_some_servers_know_is_sent_only_when_it_was_chosen(server: FakeServer) -> None:
    server.answers = [["Hi"]]
    invoke("--url", server.url, "--top-k", "5", "--seed", "3", say="Hi\n")
    assert server.bodies[0]["top_k"] == 5 and server.bodies[0]["seed"] == 3 and "min_p" not in server.bodies[0]


def test_figures_are_the_servers_counts_and_our_clock(server: FakeServer) -> None:
    server.answers, server.pause_s = [["a", "b", "c"]], 0.05
    talker = RemoteTalker(server.url)
    *pieces, finish = talker.chat([{"role": "user", "content": "Hi"}], None, SamplingOptions())
    talker.close()
    assert pieces == ["a", "b", "c"] and isinstance(finish, Finish)
    assert (finish.reason, finish.prompt_tokens, finish.completion_tokens) == ("stop", 7, 3)
    assert finish.decode_s > 0.1 and finish.adapter == "fake"


def test_a_models_name_is_one_that_the_server_has(server: FakeServer) -> None:
    server.rows = [{"id": "one", "context": 500}, {"id": "two"}]
    talker = RemoteTalker(server.url, model="two")
    assert (talker.name, talker.context) == ("two", 0) and RemoteTalker(server.url).context == 500
    assert talker.route("auto", []).adapter == "two" and talker.route("one", []).adapter == "one"
    with pytest.raises(UnknownNameError, match="known: one, two"):
        RemoteTalker(server.url, model="three")
    server.rows = [{"id": "base", "retrieval": False}, {"id": "ja", "language": "ja"}]
    ours = RemoteTalker(server.url)
    assert ours.route("auto", []).adapter == "auto" and ours.adapters() == [("ja", "ja")]


def test_a_key_is_taken_from_the_environment_and_asked_for_when_it_is_missing(server: FakeServer) -> None:
    server.key = "secret"
    refused = invoke("--url", server.url, say="Hi\n")
    assert isinstance(refused.exception, EngineError)
    assert "401: a key is needed" in str(refused.exception) and "--api-key-env VAR" in str(refused.exception)
    server.answers = [["Hi"]]
    assert invoke("--url", server.url, "--api-key-env", "K", say="Hi\n", K="secret").stdout == "Hi\n"
    assert isinstance(invoke("--url", server.url, "--api-key-env", "NONE").exception, InputError)


def test_no_server_is_one_error_with_what_to_do(server: FakeServer) -> None:
    gone = invoke("--url", "http://127.0.0.1:9", say="Hi\n")
    assert isinstance(gone.exception, EngineError) and "slm serve MODEL" in str(gone.exception)
    assert isinstance(invoke("--url", "localhost", say="Hi\n").exception, InputError)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--url", "http://x", "--adapter", "a=b"), "--adapter"),
        (("--url", "http://x", "--threads", "2"), "--threads"),
        (("--url", "http://x", "--context", "512"), "--context"),
        (("--api-key-env", "K"), "--url"),
        (("--continue",), "--no-save"),
        (("--session", "a"), "--session"),
        (("--find", "a"), "--find"),
        (("--json",), "--find"),
    ],
)
def test_options_that_mean_nothing_together_are_refused(options: tuple[str, ...], named: str) -> None:
    done = invoke(*options)
    assert done.exit_code == 2 and named in done.stderr


def test_a_server_that_breaks_off_leaves_what_it_said(server: FakeServer) -> None:
    server.answers = [["Hel"]]
    talker = RemoteTalker(server.url)
    stream = talker.chat([{"role": "user", "content": "Hi"}], None, SamplingOptions())
    assert next(stream) == "Hel"
    stream.close()
    talker.close()
    assert len(server.bodies) == 1


def test_a_server_that_is_gone_in_an_answer_has_not_ended_it(server: FakeServer) -> None:
    server.answers, server.dies = [["Hel", "lo"]], True
    done = invoke("--url", server.url, say="Hi\n")
    assert done.stdout == "Hello\n" and isinstance(done.exception, EngineError)
    assert "the server broke off" in str(done.exception) and "cannot be reached" not in str(done.exception)


def test_what_a_server_has_is_listed_and_nothing_is_loaded_into_it_from_here(server: FakeServer) -> None:
    server.rows = [{"id": "base", "retrieval": False}, {"id": "ja", "language": "ja"}]
    done = invoke("--url", server.url, say="/model\n/adapter new=new.gguf\n")
    assert "now: base; also: ja\n" in done.stderr
    assert isinstance(done.exception, InputError) and "a server has its own adapters" in str(done.exception)


def test_a_session_with_a_server_is_the_same_however_its_address_is_written(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLM_HOME", str(tmp_path))
    server.answers = [["One."], ["Two."]]
    for end, say in (("/v1/", "Hi\n"), ("", "Again\n")):
        done = CliRunner().invoke(chat, ["--session", "s", "--url", server.url + end], obj=PathJoints(), input=say)
        assert done.exception is None and "it was held with" not in done.stderr
    assert [turn["content"] for turn in server.bodies[1]["messages"]] == ["Hi", "One.", "Again"]


def test_a_session_with_a_server_goes_on_there(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLM_HOME", str(tmp_path))
    server.answers = [["One."], ["Two."], ["Three."]]
    said = [("Hi", ["--session", "s", "--url", server.url]), ("Again", ["--continue"]), ("More", ["--session", "s"])]
    for question, words in said:
        done = CliRunner().invoke(chat, words, obj=PathJoints(), input=f"{question}\n")
        assert done.exception is None and ("it goes on there" in done.stderr) == ("--url" not in words)
    turns = ["Hi", "One.", "Again", "Two.", "More"]
    assert [turn["content"] for turn in server.bodies[2]["messages"]] == turns
    refused = CliRunner().invoke(chat, ["--continue", "--threads", "2"], obj=PathJoints(), input="Hi\n")
    assert refused.exit_code == 2 and "--threads is for a model that runs here" in " ".join(refused.stderr.split())


def test_sessions_that_are_looked_for_are_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLM_HOME", str(tmp_path))
    archive = Archive(tmp_path / "sessions.sqlite")
    archive.asked(archive.begin("tiny", "", "trip"), "How far is Osaka?")
    archive.close()
    found = CliRunner().invoke(chat, ["--find", "osaka"], obj=PathJoints())
    assert found.stdout.startswith("trip  ") and found.stdout.endswith("How far is Osaka?\n") and found.stderr == ""
    table = CliRunner().invoke(chat, ["--find", "osaka", "--json"], obj=PathJoints())
    (row,) = json.loads(table.stdout)["sessions"]
    assert (row["number"], row["name"], row["found"]) == (1, "trip", "How far is Osaka?")
    none = CliRunner().invoke(chat, ["--find", "Kyoto"], obj=PathJoints())
    assert (none.exit_code, none.stdout, none.stderr) == (0, "", "no session has 'Kyoto'\n")
