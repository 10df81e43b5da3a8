"""A running server and its index: answers follow an edit and a sync, and requests say which pages count."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rag.answer.retriever import open_retriever
from rag.cli.rag import rag
from rag.document import Document, Meta, Section
from rag.index.embed import open_embedder
from rag.index.names import index_path
from rag.index.update import add_documents
from serve.engine.engine import Engine, open_engine
from tests.path_joints import PathJoints
from tests.served import Served, running
from tests.tiny_gguf import write_model
from tests.tiny_rag import own_home

__all__ = ["own_home"]  # a fixture


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with open_engine(write_model(tmp_path_factory.mktemp("engine") / "tiny.gguf"), {}, threads=1) as opened:
        yield opened


def run(*args: str) -> None:
    result = CliRunner().invoke(rag, list(args), obj=PathJoints())
    assert result.exit_code == 0, result.exception or result.output


def cited(server: Served, question: str, **rag: Any) -> list[dict[str, Any]]:
    reply = server.chat(question, rag=rag or True)
    assert reply.status_code == 200, reply.text
    citations: list[dict[str, Any]] = reply.json()["citations"]
    return citations


def test_a_served_answer_follows_an_edit_a_new_page_and_a_deletion_after_a_sync(engine: Engine, tmp_path: Path) -> None:
    folder = tmp_path / "pages"
    folder.mkdir()
    (folder / "canteen.md").write_text("# Canteen\n\nThe canteen closes at 13:40.\n")
    (folder / "食堂.md").write_text("# 社員食堂\n\n社員食堂は13時40分に閉まります。\n", encoding="utf-8")
    run("add", "i", str(folder))
    question = "When does the canteen close?"
    with open_retriever("i") as retriever, running(engine, tmp_path, retriever=retriever) as server:
        first = cited(server, question)[0]
        assert "13:40" in first["text"] and first["source"] == (folder / "canteen.md").as_posix()
        (folder / "canteen.md").write_text("# Canteen\n\nThe canteen closes at 14:10.\n")
        assert "13:40" in cited(server, question)[0]["text"], "the index does not know of the edit yet"
        run("sync", "i")
        assert "14:10" in cited(server, question)[0]["text"]
        (folder / "cafe.md").write_text("# Café\n\nThe café on the roof opens at 8:15.\n", encoding="utf-8")
        (folder / "canteen.md").unlink()
        run("sync", "i")
        sources = {Path(row["source"]).name for row in cited(server, question)}
        assert sources == {"cafe.md", "食堂.md"}
        assert "13時40分" in cited(server, "社員食堂は何時に閉まりますか。")[0]["text"]


def test_what_the_model_is_told_about_every_answer_goes_with_the_passages(engine: Engine, tmp_path: Path) -> None:
    page = Document("Canteen", "canteen.md", "en", (Section((), "The canteen closes at 13:40."),))
    add_documents(index_path("told"), [page], open_embedder())
    question = {"role": "user", "content": "When does the canteen close?"}
    with open_retriever("told") as retriever, running(engine, tmp_path, retriever=retriever) as server:

        def prompt_tokens(*turns: dict[str, str]) -> int:
            reply = server.chat("", messages=[*turns, question], rag=True, max_tokens=2)
            tokens: int = reply.json()["usage"]["prompt_tokens"]
            return tokens

        alone = prompt_tokens()
        assert prompt_tokens({"role": "system", "content": "Answer in one word."}) > alone
        assert prompt_tokens({"role": "developer", "content": "Answer in one word."}) > alone
        assert prompt_tokens({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}) == alone


def test_a_request_says_which_pages_count_and_a_wrong_key_or_name_is_told(engine: Engine, tmp_path: Path) -> None:
    def made(name: str, **meta: Any) -> Document:
        return Document(name, f"{name}.md", "en", (Section((), f"The release plan: {name}."),), Meta(**meta))

    pages = [made("open", space="DOCS"), made("staff", space="OPS", restrictions=(("group:staff",),))]
    add_documents(index_path("wiki"), pages, open_embedder())
    question = "What is the release plan?"
    with open_retriever("wiki") as retriever, running(engine, tmp_path, retriever=retriever) as server:
        assert [row["title"] for row in cited(server, question)] == ["open"]
        assert {row["title"] for row in cited(server, question, **{"as": "group:staff"})} == {"open", "staff"}
        assert [row["title"] for row in cited(server, question, space="ops", **{"as": ["staff"]})] == ["staff"]
        assert server.chat(question, rag=False).json().get("citations") is None
        for wrong, said in (
            ({"spcae": "DOCS"}, "rag.spcae: this field is unknown. Did you mean 'space'?"),
            ({"space": 3}, "rag.space"),
            ({"as": ["user:aoi"], "lang": "de"}, "unknown language 'de'; known: en"),
            ({"space": "OPS"}, "unknown space 'OPS'; known: DOCS"),
            ({"since": "soon"}, "since: 'soon' is no date"),
        ):
            reply = server.chat(question, rag=wrong)
            assert reply.status_code == 400 and said in str(reply.json()), reply.text
    with (
        open_retriever("wiki") as retriever,
        running(engine, tmp_path, retriever=retriever, viewer=["group:staff"]) as server,
    ):
        assert {row["title"] for row in cited(server, question)} == {"open", "staff"}
        assert [row["title"] for row in cited(server, question, **{"as": []})] == ["open"]
