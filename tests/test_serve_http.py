"""The HTTP server against real clients on a real port, and the commands, on tiny random models built here."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import openai
import pytest
from click.testing import CliRunner

from rag.answer.cite import Citations
from serve.cli import serve as cli
from serve.cli.chat import chat
from serve.engine.engine import open_engine
from serve.server.guard import Keys, Policy
from slm.errors import InputError, ResourceError, UnknownNameError
from slm.joints import EVERYTHING, Filters, Grounded, Message, Passage
from tests.path_joints import PathJoints
from tests.served import Served, error_of, running
from tests.tiny_gguf import write_adapter, write_model
from tests.waiting import eventually

ROOT = Path(__file__).parent.parent
JOINTS = PathJoints()


class Converted(PathJoints):
    """Joints that have one file for whatever model is asked for, as for a folder that was converted."""

    file = Path()

    def gguf_of(self, model: str) -> Path:
        return self.file


class Index:
    """A retriever over one page, as the retrieval room hands one over."""

    def search(self, query: str, k: int = 5, filters: Filters = EVERYTHING) -> list[Passage]:
        return [Passage("Leave", "Paid leave", "Ten days.", "leave.md", 0.9)]

    def grounded(self, question: str, k: int = 3, filters: Filters = EVERYTHING) -> Grounded:
        passages = self.search(question)
        prompt = f"[1] {passages[0].text}\nQuestion: {question}"
        return Grounded([Message(role="user", content=prompt)], passages, Citations(passages), lambda: ["Ten days."])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("http")
    model = write_model(folder / "tiny.gguf")
    adapters = {"en": write_adapter(folder / "en.gguf", seed=1), "ja": write_adapter(folder / "ja.gguf", seed=2)}
    write_adapter(folder / "more.gguf", seed=3)
    with (
        open_engine(model, adapters, threads=1, parallel=4) as engine,
        running(engine, folder, allowed_folders=[folder], retriever=Index()) as server,
    ):
        yield server


# --- OpenAI's client --------------------------------------------------------------------------------------------


def test_the_openai_client_chats_streamed_and_whole_with_the_same_text(served: Served) -> None:
    asked: dict[str, Any] = {
        "model": "ja", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 12, "temperature": 0,
    }  # fmt: skip
    served.client.chat.completions.create(**asked)  # the two below then find the same cache
    whole = served.client.chat.completions.create(**asked)
    events = list(served.client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
    assert text == whole.choices[0].message.content and len(text) == 12
    assert events[0].choices[0].delta.role == "assistant"
    assert [e.choices[0].finish_reason for e in events if e.choices][-1] == whole.choices[0].finish_reason == "length"
    assert events[-1].choices == []
    assert events[-1].usage is not None and whole.usage is not None
    assert events[-1].usage.completion_tokens == whole.usage.completion_tokens == 12
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 12
    assert whole.model == "ja"


def test_the_openai_client_completes_plain_text_and_lists_models(served: Served) -> None:
    done = served.client.completions.create(model="base", prompt="Once upon", max_tokens=6, temperature=0)
    events = list(
        served.client.completions.create(model="base", prompt="Once upon", max_tokens=6, temperature=0, stream=True)
    )
    assert len(done.choices[0].text) == 6
    assert "".join(e.choices[0].text for e in events) == done.choices[0].text
    assert [model.id for model in served.client.models.list()] == ["tiny", "en", "ja"]


def test_the_model_has_the_name_it_is_served_by_and_its_files_name(served: Served) -> None:
    model = served.folder / "tiny.gguf"
    with open_engine(model, {}, name="owner/folder", threads=1) as engine, running(engine, served.folder) as named:
        client = named.client
        assert [row.id for row in client.models.list()] == ["owner/folder"]
        assert httpx.get(f"{named.url}/v1/models/").json() == httpx.get(f"{named.url}/v1/models").json()
        for name in ("owner/folder", "tiny", "base", "auto"):
            assert client.models.retrieve(name).id == "owner/folder"
            assert client.embeddings.create(model=name, input="a").model == "owner/folder"
            assert named.chat("Hello", model=name).json()["model"] == "owner/folder"
            answer = named.post("/v1/responses", {"model": name, "input": "a", "max_output_tokens": 2})
            assert answer.json()["model"] == "owner/folder"
        with pytest.raises(openai.NotFoundError, match="known: owner/folder"):
            client.models.retrieve("fr")
        for name in ("owner/folder", "tiny"):
            with pytest.raises(InputError, match="cannot be an adapter's name"):
                engine.load_adapter(name, served.folder / "en.gguf")
    with open_engine(model, {}, name="auto", threads=1) as engine:
        assert engine.base.name == "tiny", "auto is what asks for a choice by language"


def test_serve_and_generate_call_a_model_as_they_were_given_it(
    monkeypatch: pytest.MonkeyPatch, served: Served, tmp_path: Path
) -> None:
    (tmp_path / "cached-0123.gguf").write_bytes((served.folder / "tiny.gguf").read_bytes())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.json").write_text("{}")
    monkeypatch.setattr(Converted, "file", tmp_path / "cached-0123.gguf")
    heard: list[str] = []
    monkeypatch.setattr(cli, "_run", lambda app, listeners, policy: None)
    monkeypatch.setattr(cli, "_announce", lambda url, engine, needs_key: heard.append(engine.base.name))
    result = CliRunner().invoke(cli.serve, [str(tmp_path / "mine"), "--port", "0", "--threads", "1"], obj=Converted())
    assert result.exception is None and heard == ["mine"]
    args = [str(tmp_path / "mine"), "-m", "mine", "-p", "a", "--max-tokens", "2", "--threads", "1"]
    assert CliRunner().invoke(cli.generate, args, obj=Converted()).exception is None


def test_errors_are_the_openai_clients_own_exceptions(served: Served) -> None:
    asked: Any = [{"role": "user", "content": "Hello"}]
    with pytest.raises(openai.NotFoundError) as unknown:
        served.client.chat.completions.create(model="fr", messages=asked)
    assert unknown.value.code == "model_not_found"
    assert "known: auto, base, en, ja, tiny" in unknown.value.message
    with pytest.raises(openai.BadRequestError) as overflow:
        served.client.chat.completions.create(model="en", messages=asked, max_tokens=5000)
    assert overflow.value.code == "context_length_exceeded"
    assert "5,000" in overflow.value.message and "2,048" in overflow.value.message
    with pytest.raises(openai.BadRequestError, match="functions"):
        served.client.chat.completions.create(model="en", messages=asked, functions=[{"name": "f"}])


# --- requests ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [{}, {"model": "auto"}])
def test_auto_routes_by_language_and_says_so(served: Served, model: dict[str, str]) -> None:
    for text, adapter in {"How do I ask for leave?": "en", "休暇はどう申請しますか。": "ja"}.items():
        reply = served.chat(text, **model)
        assert reply.status_code == 200
        assert reply.headers["x-slm-adapter"] == adapter
        body = reply.json()
        assert body["slm"] == {"adapter": adapter, "route_reason": unquote(reply.headers["x-slm-route-reason"])}
        assert body["model"] == adapter
    assert served.chat("12345").headers["x-slm-adapter"] == "base"


def test_a_second_turn_stays_with_the_conversations_language(served: Served) -> None:
    turns = [
        {"role": "user", "content": "休暇はどう申請しますか。"}, {"role": "assistant", "content": "x"},
        {"role": "user", "content": [{"type": "text", "text": "OK"}]},
    ]  # fmt: skip
    reply = served.post("/v1/chat/completions", {"messages": turns, "max_tokens": 2})
    assert reply.headers["x-slm-adapter"] == "ja"
    assert "earlier" in unquote(reply.headers["x-slm-route-reason"])


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"",
        b"[]",
        b"\xff\xfe",
        b'{"messages": 3}',
        b'{"messages": []}',
        b'{"messages": [{"role": "user"}]}',
        b'{"messages": [{"role": "robot", "content": "x"}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": -2}',
    ],
)
def test_a_broken_body_is_a_400_in_openais_shape(served: Served, content: bytes) -> None:
    reply = httpx.post(
        f"{served.url}/v1/chat/completions", content=content, headers={"content-type": "application/json"}
    )
    assert reply.status_code == 400
    assert error_of(reply)["type"] == "invalid_request_error"


def test_unknown_paths_and_methods_have_the_same_error_shape(served: Served) -> None:
    assert error_of(httpx.get(f"{served.url}/nothing"))["code"] == "http_404"
    assert error_of(httpx.get(f"{served.url}/v1/chat/completions"))["code"] == "http_405"


def test_what_the_server_cannot_do_is_refused_by_name(served: Served) -> None:
    for field, value in {"n": 9, "functions": [{"name": "f"}]}.items():
        reply = served.chat("Hello", **{field: value})
        assert reply.status_code == 400 and field in error_of(reply)["message"]


def test_a_null_field_is_as_good_as_an_absent_one(served: Served) -> None:
    empty = {"model": None, "stop": None, "top_p": None, "seed": None, "stream": None, "tools": None}
    assert served.chat("Hello", **empty).status_code == 200


def test_an_answer_from_passages_carries_its_citations(served: Served) -> None:
    body = served.chat("How many days?", rag=True, model="en").json()
    assert body["citations"] == [
        {
            "number": 1,
            "cited": False,
            "title": "Leave",
            "heading": "Paid leave",
            "text": "Ten days.",
            "source": "leave.md",
            "score": 0.9,
            "also": [],
            "quote": "Ten days.",
        }
    ]
    assert served.chat("How many days?", model="en").json().get("citations") is None
    events = [json.loads(line[6:]) for line in served.chat("How many?", rag=True, stream=True).text.split("\n\n")[:-2]]
    assert "quote" not in events[0]["citations"][0] and events[-1]["citations"] == body["citations"]


def test_the_slots_tell_what_runs(served: Served) -> None:
    body = {"messages": [{"role": "user", "content": "On"}], "max_tokens": 1900, "model": "en", "stream": True}
    with httpx.stream("POST", f"{served.url}/v1/chat/completions", json=body, timeout=60) as stream:
        pieces = stream.iter_bytes()  # letting go of it would close the connection
        next(pieces)
        first, *others = httpx.get(f"{served.url}/slots").json()
    prompt = served.engine.tokens_of([Message(role="user", content="On")], adapter="en")
    assert first["is_processing"] and first["n_prompt_tokens"] == len(prompt)
    assert first["n_prompt_tokens_cache"] + first["n_prompt_tokens_processed"] == len(prompt)
    (ahead,) = first["next_token"]
    assert ahead["n_decoded"] > 0 and ahead["n_decoded"] + ahead["n_remain"] == 1900
    assert first["lora"] == [{"name": "en", "scale": 1.0}]
    assert not any(slot["is_processing"] for slot in others) and len(others) == 3


def test_a_client_that_goes_away_cancels_its_request(served: Served) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "On"}], "max_tokens": 1900, "model": "en"})
    for stream in (True, False):
        with closing(http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=30)) as connection:
            text = body.replace("}]", '}], "stream": true' if stream else "}]", 1)
            connection.request("POST", "/v1/chat/completions", text, {"content-type": "application/json"})
            if stream:
                connection.getresponse().read(50)
            else:
                assert eventually(lambda: served.engine.stats().running == 1)
        assert eventually(lambda: served.engine.stats().running == 0)


def test_the_engines_death_is_an_error_event_and_a_503_and_then_it_answers_again(served: Served) -> None:
    with served.client.chat.completions.create(
        model="en", messages=[{"role": "user", "content": "On"}], max_tokens=1900, stream=True
    ) as stream:
        next(iter(stream))
        assert served.engine.pid is not None
        os.kill(served.engine.pid, signal.SIGKILL)
        with pytest.raises(openai.APIError, match="ended unexpectedly"):
            list(stream)
    assert served.chat("Hello", model="ja").status_code == 200
    assert httpx.get(f"{served.url}/health").json() == {"status": "ok", "restarts": 1}


# --- adapters at run time, the page, the key --------------------------------------------------------------------


def test_adapters_are_loaded_listed_replaced_and_unloaded_over_http(served: Served) -> None:
    more = str(served.folder / "more.gguf")
    assert served.post("/lora-adapters", {"name": "guest", "path": more}).status_code == 200
    text = served.chat("Hello", model="guest").json()["choices"][0]["message"]["content"]
    other = str(served.folder / "en.gguf")
    assert served.post("/lora-adapters", {"name": "guest", "path": other}).status_code == 200
    assert served.chat("Hello", model="guest").json()["choices"][0]["message"]["content"] != text
    listed = httpx.get(f"{served.url}/lora-adapters").json()
    assert [(row["id"], row["name"]) for row in listed] == [(0, "en"), (1, "ja"), (2, "guest")]
    assert httpx.delete(f"{served.url}/lora-adapters/guest").status_code == 200
    assert httpx.delete(f"{served.url}/lora-adapters/guest").status_code == 404
    assert served.post("/v1/load_lora_adapter", {"lora_name": "v", "lora_path": more}).status_code == 200
    assert served.post("/v1/load_lora_adapter", {"lora_name": "v", "lora_path": more}).status_code == 400
    assert served.post("/v1/unload_lora_adapter", {"lora_name": "v"}).status_code == 200
    assert served.chat("Hello", model="v").status_code == 404


def test_adapters_come_only_from_allowed_folders_and_only_sound(served: Served, tmp_path: Path) -> None:
    outside = write_adapter(tmp_path / "outside.gguf")
    (served.folder / "link.gguf").symlink_to(outside)
    for path in (outside, served.folder / "link.gguf", served.folder / ".." / "x.gguf", Path("/etc/passwd")):
        reply = served.post("/lora-adapters", {"name": "x", "path": str(path)})
        assert reply.status_code == 400 and "may not be loaded" in error_of(reply)["message"]
    (served.folder / "junk.gguf").write_bytes(os.urandom(3000))
    assert served.post("/lora-adapters", {"name": "x", "path": str(served.folder / "junk.gguf")}).status_code == 400
    assert served.post("/lora-adapters", [{"id": 0, "scale": 0.5}]).status_code == 400
    assert httpx.get(f"{served.url}/health").json()["status"] == "ok"


def test_with_a_key_every_request_but_page_and_health_needs_it(served: Served) -> None:
    with running(served.engine, served.folder, policy=Policy(Keys(["secret-鍵"]))) as locked:
        assert httpx.get(f"{locked.url}/health").status_code == 200
        assert httpx.get(locked.url).status_code == 200
        for headers in ({}, {"authorization": "Bearer wrong"}):
            reply = httpx.get(f"{locked.url}/v1/models", headers=headers)
            assert reply.status_code == 401 and error_of(reply)["code"] == "invalid_api_key"
    with running(served.engine, served.folder, policy=Policy(Keys(["secret"]))) as locked:
        client = openai.OpenAI(base_url=f"{locked.url}/v1", api_key="secret", max_retries=0)
        asked: Any = [{"role": "user", "content": "Hello"}]
        whole = client.chat.completions.create(model="en", messages=asked, max_tokens=5)
        assert whole.usage is not None and whole.usage.completion_tokens == 5
        assert len(list(client.chat.completions.create(model="en", messages=asked, max_tokens=5, stream=True))) >= 6


# --- commands ---------------------------------------------------------------------------------------------------


def invoke(command: Any, *args: str, **options: Any) -> Any:
    return CliRunner().invoke(command, list(args), obj=JOINTS, **options)


def test_a_port_in_use_is_named_before_the_model_is_looked_at() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = invoke(cli.serve, "no-such-model.gguf", "--port", port)
    assert isinstance(result.exception, ResourceError)
    assert f"127.0.0.1:{port}" in str(result.exception)


def test_the_world_is_not_served_without_a_key() -> None:
    result = invoke(cli.serve, "no-such-model.gguf", "--host", "0.0.0.0", "--port", "0")
    assert isinstance(result.exception, InputError) and "--api-key-env" in str(result.exception)
    result = invoke(cli.serve, "no-such-model.gguf", "--api-key-env", "SLM_TEST_NO_SUCH_KEY")
    assert isinstance(result.exception, InputError)


def test_generate_routes_and_reports_figures(served: Served) -> None:
    folder = served.folder
    adapters = ["--adapter", f"en={folder / 'en.gguf'}", "--adapter", f"ja={folder / 'ja.gguf'}"]
    args = [str(folder / "tiny.gguf"), *adapters, "--max-tokens", "8", "--threads", "1"]
    result = invoke(cli.generate, *args, "-p", "休暇はどう申請しますか。", "--json")
    assert result.exception is None
    figures = json.loads(result.stdout)
    assert figures["adapter"] == "ja" and figures["completion_tokens"] == 8
    assert {"prefill_tokens_per_s", "decode_tokens_per_s", "ttft_s", "route_reason"} <= set(figures)
    piped = invoke(cli.generate, *args, input="How do I ask for leave?")
    named = invoke(cli.generate, *args, "-m", "en", "-p", "How do I ask for leave?")
    assert piped.exception is None and piped.stdout == named.stdout and len(piped.stdout) == 9
    assert isinstance(invoke(cli.generate, *args, "-m", "fr", "-p", "x").exception, UnknownNameError)
    assert isinstance(invoke(cli.generate, *args, input=" ").exception, InputError)
    assert invoke(cli.generate, *args[:1], "--adapter", "no-equals-sign", "-p", "x").exit_code == 2


def test_chat_in_a_pipe_takes_a_line_for_a_turn(served: Served) -> None:
    args = [str(served.folder / "tiny.gguf"), "--adapter", f"ja={served.folder / 'ja.gguf'}"]
    talk = "Hello\n/adapter ja\nHello\n\n/reset\n/help\n/adapter base\nHello\n/exit\nnever asked\n"
    result = invoke(chat, *args, "--max-tokens", "6", "--temperature", "0", "--threads", "1", input=talk)
    assert result.exception is None
    first, second, third = result.stdout.splitlines()
    assert first == third != second, "/reset has to begin anew and /adapter has to change who answers"
    assert "tok/s" in result.stderr and "[ja" in result.stderr and "/reset" in result.stderr
    failed = invoke(chat, *args, "--threads", "1", input="/adapter nobody\n")
    assert isinstance(failed.exception, UnknownNameError)


def test_chat_lists_the_passages_as_rag_ask_does(served: Served) -> None:
    class Indexed(PathJoints):
        def open_retriever(self, index: str) -> AbstractContextManager[Any]:
            return nullcontext(Index())

    args = [str(served.folder / "tiny.gguf"), "--rag", "handbook", "--max-tokens", "6", "--threads", "1"]
    result = CliRunner().invoke(chat, args, obj=Indexed(), input="How many days?\n", catch_exceptions=False)
    assert len(result.stdout.splitlines()) == 1
    assert (
        "\nThe answer cites no passage. It was given these:\n  1. Leave > Paid leave (leave.md)\n     “Ten days.”\n"
        in result.stderr
    )


def test_route_explains_itself() -> None:
    result = invoke(cli.route, "Good morning everyone", "おはよう", "--adapter", "ja_lora", "--json")
    rows = json.loads(result.stdout)["routes"]
    assert [row["adapter"] for row in rows] == ["base", "ja_lora"]
    assert "no adapter for 'en'" in rows[0]["reason"]


def test_serve_starts_says_where_and_stops_on_ctrl_c(served: Served) -> None:
    code = "from serve.cli.serve import serve; from tests.path_joints import PathJoints; "
    code += f"serve.main([{str(served.folder / 'tiny.gguf')!r}, '--port', '0', '--threads', '1'], obj=PathJoints())"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, cwd=ROOT, text=True) as process:
        assert process.stderr is not None
        said = ""
        while "curl" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        url = re.search(r"http://127\.0\.0\.1:\d+", said)
        assert url is not None
        assert httpx.get(f"{url.group()}/health", timeout=30).json()["status"] == "ok"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) in (0, 1, 130)
        assert "Traceback" not in process.stderr.read()


def test_a_request_may_name_its_own_adapters_with_scales(served: Served) -> None:
    rows = {row["name"]: row["id"] for row in httpx.get(f"{served.url}/lora-adapters").json()}
    alone = served.chat("Hello", model="ja")
    same = served.chat("Hello", lora=[{"id": rows["ja"], "scale": 1.0}])
    assert same.json()["choices"] == alone.json()["choices"]
    assert unquote(same.headers["x-slm-adapter"]) == "ja"
    none = served.chat("Hello", model="ja", lora=[{"id": rows["ja"], "scale": 0.0}])
    assert none.json()["choices"] == served.chat("Hello", model="base").json()["choices"]
    both = served.chat("Hello", lora=[{"id": number, "scale": 0.5} for number in rows.values()])
    assert unquote(both.headers["x-slm-adapter"]) == "+".join(rows)
    assert served.chat("Hello", lora=[{"id": 99, "scale": 1}]).status_code == 400
