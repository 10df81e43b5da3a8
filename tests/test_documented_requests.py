"""Every `curl` of the documents is sent as it stands, to a server on a tiny model with a key and an index."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import httpx
import pytest

from serve.engine.engine import open_engine
from serve.server.guard import Keys, Policy
from tests.documented import PAGES, ROOT, Command
from tests.served import Served, running
from tests.test_serve_http import Index
from tests.tiny_gguf import write_adapter, write_model

KEY = "a-key"


def requests() -> Iterator[Command]:
    """The `curl` lines of fenced blocks."""
    for page in PAGES:
        for block in re.findall(r"^```[^\n]*\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
            for line in re.sub(r"\\\n\s*", "", block).splitlines():
                if line.startswith("curl "):
                    yield Command(page.relative_to(ROOT).as_posix(), line, whole=True)


REQUESTS = list(requests())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("requests")
    adapters = {"en": write_adapter(folder / "en.gguf", seed=1)}
    with (
        open_engine(write_model(folder / "tiny.gguf"), adapters, threads=1) as engine,
        running(engine, folder, retriever=Index(), policy=Policy(keys=Keys([KEY]))) as served,
    ):
        yield served


@pytest.mark.parametrize("command", REQUESTS, ids=str)
def test_a_documented_request_is_answered_as_it_stands(command: Command, server: Served) -> None:
    words = shlex.split(command.text.replace("Bearer ...", "Bearer $KEY").replace("$KEY", KEY))[1:]
    url = next(word for word in words if word.startswith("http"))
    words.remove(url)
    headers, method, body = {}, "GET", None
    for flag, value in zip(words[::2], words[1::2], strict=True):
        if flag == "-H":
            name, _, text = value.partition(": ")
            headers[name] = text
        elif flag == "-d":
            method, body = "POST", value
        elif flag == "-X":
            method = value
        else:
            pytest.fail(f"{flag} is not known here")
    if "127.0.0.1" in url:  # such a server, which this machine alone reaches, wants no key
        headers.setdefault("Authorization", f"Bearer {KEY}")
    path = re.sub(r"^https?://[^/]+", "", url)
    content = body.encode() if body else None
    answer = httpx.request(method, server.url + path, headers=headers, content=content, timeout=60)
    assert answer.status_code == 200 and answer.content, answer.text


def test_there_are_requests_with_and_without_a_key() -> None:
    assert {"$KEY" in command.text for command in REQUESTS} == {True, False} and len(REQUESTS) >= 4
