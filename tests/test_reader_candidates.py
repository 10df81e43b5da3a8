"""Which passages are read for a question: the best of each language by itself, as many as there is time for."""

from __future__ import annotations

from pathlib import Path

import pytest

from rag.answer.candidates import DEPTH, Depth, candidates
from rag.answer.reader.form import cost
from rag.answer.retriever import IndexRetriever
from rag.document import Document, Meta, Section
from slm.errors import InputError, UnknownNameError
from slm.joints import EVERYTHING, Filters
from tests.tiny_rag import passage
from tests.tiny_reader import document, retriever_of

EN = [document(f"en/{n}.md", f"Desk {n} of the office stands on floor {n}.") for n in range(20)]
JA = [document(f"ja/{n}.md", f"事務所の机{n}番は{n}階にあります。", lang="ja") for n in range(20)]
ALL = DEPTH.same + DEPTH.other
ASKED = {"en": "On which floor does desk 3 of the office stand?", "ja": "事務所の机3番は何階にありますか。"}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> IndexRetriever:
    return retriever_of(tmp_path_factory.mktemp("both") / "i", [*EN, *JA])


def sources(retriever: IndexRetriever, question: str, depth: Depth = DEPTH, filters: Filters = EVERYTHING) -> list[str]:
    with retriever.opened.now() as index:
        return [one.source for one in candidates(index, retriever.embedder, question, depth, filters)]


@pytest.mark.parametrize("lang", ASKED)
def test_each_language_is_ranked_by_itself_the_questions_own_first(both: IndexRetriever, lang: str) -> None:
    other = {"en": "ja", "ja": "en"}[lang]
    found = sources(both, ASKED[lang])
    assert [source[:2] for source in found] == [lang] * DEPTH.same + [other] * DEPTH.other
    assert found[0] == f"{lang}/3.md" and len(set(found)) == ALL
    alone = sources(both, ASKED[lang], filters=Filters(languages=(other,)))
    assert [source for source in found if source[:2] == other] == alone[: DEPTH.other]
    assert [source[:2] for source in sources(both, ASKED[lang], Depth(2, 1))] == [lang, lang, other]


@pytest.mark.parametrize("lang", ASKED)
def test_the_question_is_embedded_once_whatever_the_number_of_languages(
    both: IndexRetriever, lang: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    embedded = both.embedder.queries
    monkeypatch.setattr(both.embedder, "queries", lambda texts: (asked.append(list(texts)), embedded(texts))[1])
    assert {source[:2] for source in sources(both, ASKED[lang])} == {"en", "ja"}
    assert asked == [[ASKED[lang]]]


@pytest.mark.parametrize("lang", ASKED)
def test_an_index_of_one_language_is_read_as_deep_whatever_language_asks(lang: str, tmp_path: Path) -> None:
    alone = retriever_of(tmp_path / "i", JA)
    assert len(sources(alone, ASKED[lang])) == ALL


def test_a_question_in_a_third_language_takes_the_best_of_all(both: IndexRetriever) -> None:
    assert len(sources(both, "Где стоит стол номер три?")) == ALL


@pytest.mark.parametrize("lang", ASKED)
def test_no_more_is_read_than_there_is_time_for_but_always_one(both: IndexRetriever, lang: str) -> None:
    with both.opened.now() as index:
        found = candidates(index, both.embedder, ASKED[lang])
    costs = [cost(one) for one in found]
    assert sources(both, ASKED[lang], Depth(tokens=sum(costs[:3]))) == [one.source for one in found[:3]]
    assert sources(both, ASKED[lang], Depth(tokens=sum(costs[:3]) - 1)) == [one.source for one in found[:2]]
    assert sources(both, ASKED[lang], Depth(tokens=1)) == [found[0].source]


def test_a_page_is_read_as_far_as_it_is_near(tmp_path: Path) -> None:
    """A list of results has two of a page; the fact may stand in the third."""
    long = Document(
        "Desks", "desks.md", "en", tuple(Section((str(n),), f"Desk 3 of the office, {n}.") for n in range(4))
    )
    near = retriever_of(tmp_path / "i", [long, *(document(f"{n}.md", f"A floor has {n} lamps.") for n in range(6))])
    assert sources(near, ASKED["en"])[:4] == ["desks.md"] * 4


def test_the_cost_is_about_the_number_of_tokens() -> None:
    """Of the place and of each line, with one more for the end of each."""
    assert cost(passage("abcd" * 10, "abcd", "")) == 2 + 11
    assert cost(passage("あいう" * 10, "あいう", "")) == 2 + 22
    assert cost(passage("abcd" * 5 + "\n\n" + "あいう" * 5, "abcd", "")) == 3 + 1 + 5 + 10


def kept(name: str, lang: str, **meta: object) -> Document:
    text = "Desk 3 stands on floor 3." if lang == "en" else "机3番は3階にあります。"
    return Document(name, f"{name}.md", lang, (Section((), f"{text} {name}"),), Meta(**meta))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> IndexRetriever:
    """A space that only English pages are in, a page in no known language, and a restricted Japanese one."""
    documents = [
        kept("open", "en", space="DOCS"), kept("more", "en", space="DOCS"), kept("code", "und", space="DOCS"),
        kept("board", "ja", space="OPS", restrictions=(("group:board",),)),
    ]  # fmt: skip
    return retriever_of(tmp_path_factory.mktemp("kinds") / "i", documents)


@pytest.mark.parametrize("lang", ASKED)
def test_filters_that_leave_one_language_are_no_error(kinds: IndexRetriever, lang: str) -> None:
    for filters in (Filters(spaces=("DOCS",)), Filters(viewer=()), Filters(spaces=("docs",), viewer=("user:aoi",))):
        assert set(sources(kinds, ASKED[lang], filters=filters)) == {"open.md", "more.md", "code.md"}
    assert sources(kinds, ASKED[lang], filters=Filters(spaces=("OPS",))) == ["board.md"]
    assert set(sources(kinds, ASKED[lang], filters=Filters(viewer=("board",)))) == {
        "open.md", "more.md", "code.md", "board.md"
    }  # fmt: skip


@pytest.mark.parametrize("lang", ASKED)
def test_pages_of_no_known_language_are_among_the_others(kinds: IndexRetriever, lang: str) -> None:
    assert set(sources(kinds, ASKED[lang])) == {"open.md", "more.md", "code.md", "board.md"}
    assert sources(kinds, ASKED[lang], filters=Filters(languages=("und",))) == ["code.md"]


@pytest.mark.parametrize("languages", [("ja",), ("JA",), ("en", "JA")])
def test_languages_that_are_asked_for_are_the_only_ones(both: IndexRetriever, languages: tuple[str, ...]) -> None:
    found = sources(both, ASKED["ja"], filters=Filters(languages=languages))
    assert [source[:2] for source in found] == (
        ["ja"] * ALL if len(languages) == 1 else ["ja"] * DEPTH.same + ["en"] * DEPTH.other
    )


def test_what_no_page_has_is_named(kinds: IndexRetriever) -> None:
    with pytest.raises(UnknownNameError, match=r"'fr'.*en"):
        sources(kinds, ASKED["en"], filters=Filters(languages=("fr",)))
    with pytest.raises(UnknownNameError, match=r"'HR'.*DOCS"):
        sources(kinds, ASKED["en"], filters=Filters(spaces=("HR",)))
    with pytest.raises(InputError, match="nothing that these filters let through"):
        sources(kinds, ASKED["en"], filters=Filters(spaces=("DOCS",), languages=("ja",), viewer=("board",)))
