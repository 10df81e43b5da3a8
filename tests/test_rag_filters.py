"""Searching only some of the documents: by space, label, language, date, and by who asks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rag.answer.retriever import IndexRetriever
from rag.cli.rag import rag
from rag.document import Document, Meta, Section
from rag.index import retrieve as retrieve_module
from rag.index.embed import open_embedder
from rag.index.names import index_path
from rag.index.store import open_generation
from rag.index.update import add_documents
from rag.stores.files import FollowedFiles
from serve.server.api.request.bodies import ChatRequest
from serve.server.routes.seen import SeenBy
from slm.errors import InputError, UnknownNameError
from slm.joints import Filters
from tests.path_joints import PathJoints
from tests.tiny_rag import PairEmbedder, own_home

__all__ = ["own_home"]  # a fixture

STAFF, BOARD = ("group:staff", "user:aoi"), ("group:board",)


def made(name: str, lang: str = "en", **meta: Any) -> Document:
    text = "The release plan of the year." if lang == "en" else "今年のリリース計画です。"
    return Document(name, f"{name}.md", lang, (Section((), f"{text} {name}"),), Meta(**meta))


PAGES = [
    made("open", space="DOCS", labels=("plan",), modified="2026-03-31T23:30:00+00:00"),
    made("japanese", "ja", space="DOCS", labels=("plan", "draft"), modified="2026-04-01T00:00:00+09:00"),
    made("staff", space="OPS", modified="2026-04-01T12:00:00+00:00", restrictions=(STAFF,)),
    made("nested", space="OPS", labels=("secret-plan",), created="2026-05-01", restrictions=(STAFF, BOARD)),
    made("unknown", space="HIDDEN", restrictions=(("unknown",),)),
    made("plain"),
]


@pytest.fixture
def retriever(tmp_path: Path) -> IndexRetriever:
    add_documents(tmp_path / "i", PAGES, PairEmbedder())
    return IndexRetriever(FollowedFiles(open_generation(tmp_path / "i")), PairEmbedder())


def names(retriever: Any, filters: Filters, query: str = "release plan リリース計画") -> set[str]:
    return {passage.title for passage in retriever.search(query, 10, filters)}


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (Filters(), {"open", "japanese", "staff", "nested", "unknown", "plain"}),
        (Filters(spaces=("docs",)), {"open", "japanese"}),
        (Filters(spaces=("DOCS", "OPS"), languages=("en",)), {"open", "staff", "nested"}),
        (Filters(labels=("draft", "secret-plan")), {"japanese", "nested"}),
        (Filters(languages=("ja",)), {"japanese"}),
        (Filters(since="2026-04-01"), {"staff", "nested"}),
        (Filters(until="2026-03-31"), {"open", "japanese"}),
        (Filters(since="2026-03-31T23:00Z", until="2026-04-01"), {"open", "staff"}),
        (Filters(since="2026-04-02"), {"nested"}),
        (Filters(viewer=()), {"open", "japanese", "plain"}),
        (Filters(viewer=("user:aoi",)), {"open", "japanese", "plain", "staff"}),
        (Filters(viewer=("aoi",)), {"open", "japanese", "plain", "staff"}),
        (Filters(viewer=("group:aoi", "user:board")), {"open", "japanese", "plain"}),
        (Filters(viewer=("group:board",)), {"open", "japanese", "plain"}),
        (Filters(viewer=("user:aoi", "board")), {"open", "japanese", "plain", "staff", "nested"}),
        (Filters(viewer=("unknown", "user:unknown")), {"open", "japanese", "plain"}),
        (Filters(spaces=("OPS",), viewer=("staff",)), {"staff"}),
    ],
)
def test_only_what_the_filters_let_through_is_found(
    retriever: IndexRetriever, filters: Filters, expected: set[str]
) -> None:
    assert names(retriever, filters) == expected
    grounded = retriever.grounded("Where is the release plan?", 6, filters)
    assert {passage.title for passage in grounded.passages} == expected


def test_filters_come_before_ranking(retriever: IndexRetriever, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieve_module, "_DEPTH", 1)
    assert [p.title for p in retriever.search("今年のリリース計画 japanese", 1, Filters(spaces=("OPS",)))] != []
    for leg in ("dense", "lexical", "fused"):
        with retriever.opened.now() as index:
            hits = retrieve_module.search(
                index, retriever.embedder, "release plan open", 1, leg, filters=Filters(labels=("draft",))
            )
            assert {index.chunks[hit.row].title for hit in hits} <= {"japanese"}
        assert hits or leg == "lexical"


def test_a_name_that_is_not_there_lists_those_that_whoever_asks_may_see(retriever: IndexRetriever) -> None:
    with pytest.raises(UnknownNameError, match="unknown space 'DOC'; known: DOCS, HIDDEN, OPS"):
        names(retriever, Filters(spaces=("DOC",)))
    with pytest.raises(UnknownNameError) as error:
        names(retriever, Filters(spaces=("OPS",), viewer=()))
    assert "known: DOCS" in str(error.value) and "HIDDEN" not in str(error.value)
    with pytest.raises(UnknownNameError, match="unknown label 'x'; known: draft, plan"):
        names(retriever, Filters(labels=("x",), viewer=("staff",)))
    with pytest.raises(UnknownNameError, match="unknown language 'de'; known: en, ja"):
        names(retriever, Filters(languages=("de",)))
    with pytest.raises(InputError, match=r"since: 'April' is no date.*2026-04-01"):
        names(retriever, Filters(since="April"))
    with pytest.raises(InputError, match="nothing that these filters let through"):
        names(retriever, Filters(since="2030-01-01"))


def run(*args: str) -> Result:
    return CliRunner().invoke(rag, list(args), obj=PathJoints())


def test_search_takes_the_filters_as_options(own_home: Path) -> None:
    add_documents(index_path("wiki"), PAGES, open_embedder())

    def found(*options: str) -> set[str]:
        result = run("search", "wiki", "release plan", "-k", "10", "--json", *options)
        assert result.exit_code == 0, result.exception
        return {row["title"] for row in json.loads(result.stdout)["results"]}

    assert len(found()) == 6, "alone with his index, nobody has to say who he is"
    assert found("--space", "DOCS", "--label", "draft") == {"japanese"}
    assert found("--lang", "ja", "--lang", "en", "--since", "2026-04-01", "--until", "2026-04-30") == {"staff"}
    assert found("--as", "group:nobody") == {"open", "japanese", "plain"}
    assert found("--as", "user:aoi", "--as", "group:board", "--space", "ops") == {"staff", "nested"}
    assert isinstance(run("search", "wiki", "plan", "--space", "X").exception, UnknownNameError)


# The server


def asked(rag: Any) -> ChatRequest:
    return ChatRequest.model_validate({"messages": [{"role": "user", "content": "Hello"}], "rag": rag})


def test_a_request_says_which_documents_count() -> None:
    assert asked(True).filters == asked({}).filters == asked(False).filters == Filters()
    assert asked({}).rag is not False and asked(False).rag is False
    given = {"space": "DOCS", "label": ["a", "b"], "lang": "ja", "since": "2026-01-01", "as": ["user:aoi", "staff"]}
    assert asked(given).filters == Filters(
        ("DOCS",), ("a", "b"), ("ja",), "2026-01-01", "", ("user:aoi", "staff")
    )  # fmt: skip
    assert asked({"as": []}).filters.viewer == ()


def test_a_server_shows_restricted_pages_only_to_those_they_are_for(retriever: IndexRetriever) -> None:
    nobody, aoi = SeenBy(retriever), SeenBy(retriever, ("user:aoi",))
    assert names(nobody, Filters()) == {"open", "japanese", "plain"}
    assert names(aoi, Filters()) == {"open", "japanese", "plain", "staff"}
    assert names(aoi, Filters(viewer=())) == {"open", "japanese", "plain"}
    assert names(nobody, Filters(viewer=("aoi", "board"), spaces=("OPS",))) == {"staff", "nested"}
    assert {p.title for p in nobody.grounded("Where is the release plan?", 6).passages} <= {"open", "japanese", "plain"}
