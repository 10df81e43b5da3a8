"""Requests that a reader answers: lines of the documents with their places, streamed or whole, or a refusal."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from rag.answer.reader.form import rows_of, texts_of
from serve.engine.engine import Engine, open_engine
from slm.errors import DamagedFileError, EngineDiedError, InputError
from slm.joints import Filters, Reader
from tests.served import Served, error_of, running
from tests.tiny_gguf import write_adapter, write_model
from tests.tiny_pointing import ALWAYS, LINES, NEVER, PASSAGES, CountingJudge, LineIndex, tiny_reader
from tests.tiny_reader import Letters
from tests.waiting import eventually

HOTEL, ROOM = "How much may a hotel in Osaka cost?", "会議室の予約はいつまでに取り消せますか。"
# Of "Ask first.", the row, and the two sentences of the Japanese page.
ROW, CANCEL = [-9.0, 6.0, -9.0, -9.0], [-9.0, -9.0, 6.0, -9.0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pointed")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    model = write_model(folder / "tiny.gguf")
    with open_engine(model, {"ja": write_adapter(folder / "ja.gguf", seed=2)}, threads=1, parallel=4) as opened:
        yield opened


@pytest.fixture
def index() -> LineIndex:
    return LineIndex()


@pytest.fixture
def served(engine: Engine, folder: Path, index: LineIndex) -> Iterator[Served]:
    reader = tiny_reader()
    with running(engine, folder, allowed_folders=[folder], retriever=index, reader=reader) as server:
        yield server


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """A stream's events without its comments and its end."""
    parts = [part for part in response.text.split("\n\n") if part.startswith("data: {")]
    return [json.loads(part[6:]) for part in parts]


# --- answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "scores", "said", "cut"),
    [
        (HOTEL, ROW, "City: Osaka, Night: 13,000 yen [1]", "| Osaka | 13,000 yen |"),
        (ROOM, CANCEL, "予約は開始の30分前までに取り消します。 [1]", "予約は開始の30分前までに取り消します。"),
    ],
)
def test_the_answer_is_a_line_of_the_documents_with_its_place(
    served: Served, index: LineIndex, question: str, scores: list[float], said: str, cut: str
) -> None:
    index.scores = scores
    response = served.chat(question, rag=True)
    body = response.json()
    assert body["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": said}, "logprobs": None, "finish_reason": "stop"}
    ]
    first = body["citations"][0]
    assert (first["number"], first["cited"]) == (1, True)
    assert first["text"][first["start"] : first["end"]] == cut
    assert first["lines"][0] == {"start": first["start"], "end": first["end"], "said": True}
    assert first["quote"] == said.removesuffix(" [1]")
    assert not any(row["cited"] for row in body["citations"][1:])
    assert body["refused"] is False and 0 < body["doubt"] < 0.01
    assert body["model"] == response.headers["x-slm-adapter"] == "reader"


@pytest.mark.parametrize(("question", "scores", "number"), [(HOTEL, ROW, 0), (ROOM, CANCEL, 1)])
def test_what_the_reader_scores_is_what_is_answered(
    engine: Engine, folder: Path, question: str, scores: list[float], number: int
) -> None:
    with running(engine, folder, retriever=LineIndex(), reader=tiny_reader(scores)) as server:
        first = server.chat(question, rag=True).json()["citations"][0]
    texts, lines = texts_of(PASSAGES[number])
    line = lines[scores.index(6.0) - 2 * number]
    assert (first["source"], first["start"], first["end"]) == (PASSAGES[number].source, line.start, line.end)
    assert len(scores) == LINES and first["quote"] in texts


def test_the_tokens_that_were_read_are_counted(served: Served) -> None:
    rows = rows_of(Letters(), HOTEL, [texts_of(passage)[0] for passage in PASSAGES])
    tokens = sum(len(row.ids) for of_passage in rows for row in of_passage)
    usage = served.chat(HOTEL, rag=True).json()["usage"]
    assert usage["prompt_tokens"] == usage["total_tokens"] == tokens > 100 and usage["completion_tokens"] == 0


@pytest.mark.parametrize("count", [0, 1, 4, 5, 11])
def test_any_number_of_passages_is_read_a_few_at_a_time_in_their_order(
    engine: Engine, folder: Path, count: int
) -> None:
    """Between them it is looked whether somebody still waits; the answer is that of reading all at once."""
    passages = [replace(PASSAGES[0], text=f"Room {n} costs {n},000 yen.", source=f"{n}.md") for n in range(count)]
    judge = CountingJudge([float(n) - 20 for n in range(count)])
    with running(engine, folder, retriever=LineIndex(passages), reader=Reader("reader", judge, ALWAYS)) as server:
        body = server.chat(HOTEL, rag=True).json()
    assert [one for call in judge.calls for one in call] == [texts_of(passage)[0] for passage in passages]
    assert all(len(call) <= 4 for call in judge.calls) and len(judge.calls) == -(-count // 4)
    if count:
        assert body["citations"][0]["source"] == f"{count - 1}.md"
    else:
        assert body["refused"] is True and body["citations"] == [] and body["usage"]["prompt_tokens"] == 0


def test_a_stream_begins_with_the_citations_and_has_the_text_in_one_event(served: Served, index: LineIndex) -> None:
    index.scores = CANCEL
    whole = served.chat(ROOM, rag=True).json()
    events = events_of(served.chat(ROOM, rag=True, stream=True, stream_options={"include_usage": True}))
    first, text, last, usage = events
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert text["choices"][0]["delta"] == {"content": whole["choices"][0]["message"]["content"]}
    assert last["choices"][0]["finish_reason"] == "stop"
    for name in ("citations", "refused", "doubt"):
        assert first[name] == last[name] == whole[name] and name not in text
    assert usage["usage"] == whole["usage"]


@pytest.mark.parametrize(
    ("question", "said"),
    [(HOTEL, "I could not find this in the documents."), (ROOM, "資料には見つかりませんでした。")],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_says_so_and_shows_the_nearest_lines_uncited(
    engine: Engine, folder: Path, question: str, said: str, stream: bool
) -> None:
    reader = tiny_reader(refuse_at=NEVER)
    with running(engine, folder, retriever=LineIndex(scores=ROW), reader=reader) as server:
        response = server.chat(question, rag=True, stream=stream)
    body = events_of(response)[0] if stream else response.json()
    assert said in response.text
    assert body["refused"] is True and 0 < body["doubt"] < 0.01
    assert body["citations"][0]["quote"] == "City: Osaka, Night: 13,000 yen"
    assert not any(row["cited"] for row in body["citations"])
    assert not any(line["said"] for row in body["citations"] for line in row["lines"])


def test_two_lines_of_one_passage_are_both_told(served: Served, index: LineIndex) -> None:
    index.scores = [-9.0, -9.0, 6.0, 5.5]
    body = served.chat(ROOM, rag=True).json()
    (first, *_) = body["citations"]
    cuts = [first["text"][line["start"] : line["end"]] for line in first["lines"] if line["said"]]
    assert cuts == ["予約は開始の30分前までに取り消します。", "鍵は総務にあります。"]
    assert body["choices"][0]["message"]["content"] == f"{cuts[0]} [1] {cuts[1]} [1]"


# --- what is asked ----------------------------------------------------------------------------------------------


def test_the_last_question_is_what_is_read_for_with_its_filters(served: Served, index: LineIndex) -> None:
    turns = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello."}, {"role": "user", "content": HOTEL},
    ]  # fmt: skip
    rag = {"space": "HR", "lang": ["en"], "as": "user:aoi"}
    assert served.post("/v1/chat/completions", {"messages": turns, "rag": rag}).status_code == 200
    assert served.chat(ROOM, rag=True).status_code == 200
    asked = Filters(spaces=("HR",), languages=("en",), viewer=("user:aoi",))
    assert index.asked == [(HOTEL, asked), (ROOM, Filters(viewer=()))], (
        "nobody in particular may see what is restricted"
    )


def test_a_request_chooses_who_answers(served: Served) -> None:
    worded = served.chat(HOTEL, rag={"reader": "model"}, model="ja").json()
    assert "refused" not in worded and worded["slm"]["adapter"] == "ja" and worded["usage"]["completion_tokens"] == 8
    assert served.chat(HOTEL, rag={"reader": "point"}).json()["refused"] is False
    assert served.chat(HOTEL, rag={}).json()["refused"] is False
    assert "refused" not in served.chat(HOTEL).json()
    refusal = error_of(served.chat(HOTEL, rag={"reader": "poit"}))
    assert refusal["param"] == "rag.reader" and "'point' or 'model'" in refusal["message"]


def test_a_server_without_a_reader_says_how_to_get_one(engine: Engine, folder: Path, index: LineIndex) -> None:
    with running(engine, folder, retriever=index) as server:
        response = server.chat(HOTEL, rag={"reader": "point"})
        assert response.status_code == 400 and "--reader" in error_of(response)["message"]
        assert "refused" not in server.chat(HOTEL, rag=True).json()
        assert httpx.get(f"{server.url}/v1/models").json()["data"][0]["reader"] is None
    with running(engine, folder) as server:
        assert "--rag INDEX" in error_of(server.chat(HOTEL, rag={"reader": "point"}))["message"]


@pytest.mark.parametrize(
    "asked",
    [
        {"stop": "."}, {"stop_token_ids": [3]}, {"min_tokens": 3}, {"ignore_eos": True}, {"logit_bias": {"5": 1}},
        {"lora": [{"id": 1, "scale": 1}]}, {"chat_template_kwargs": {"x": 1}}, {"add_generation_prompt": False},
        {"n": 2}, {"tools": [{"type": "function", "function": {"name": "f"}}]}, {"logprobs": True},
        {"response_format": {"type": "json_object"}},
    ],
    ids=lambda asked: next(iter(asked)),
)  # fmt: skip
def test_what_a_pointed_answer_cannot_be_is_refused_by_name(
    served: Served, index: LineIndex, asked: dict[str, Any]
) -> None:
    response = served.chat(HOTEL, rag=True, **asked)
    named = {"response_format": "form"}.get(next(iter(asked)), next(iter(asked)))
    assert response.status_code == 400 and named in error_of(response)["message"]
    assert index.asked == []


def test_how_tokens_would_be_drawn_changes_nothing(served: Served) -> None:
    drawn = {"temperature": 1.5, "top_p": 0.5, "seed": 4, "max_tokens": 1, "presence_penalty": 1, "top_k": 3}
    left, right = served.chat(HOTEL, rag=True).json(), served.chat(HOTEL, rag=True, **drawn).json()
    assert left["choices"] == right["choices"] and left["citations"] == right["citations"]


# --- what goes wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (InputError("the question has 10,000 characters"), 400), (DamagedFileError("the index is damaged"), 400),
        (EngineDiedError("the inference process ended"), 503), (ZeroDivisionError("a secret path"), 503),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_an_error_has_its_status_and_is_always_told(
    served: Served, index: LineIndex, fault: Exception, status: int, stream: bool
) -> None:
    index.fault = fault
    response = served.chat(HOTEL, rag=True, stream=stream)
    assert response.status_code == status
    assert ("secret" in str(fault)) != (str(fault) in error_of(response)["message"])
    index.fault = None
    assert served.chat(HOTEL, rag=True, stream=stream).status_code == 200


def test_an_unknown_model_is_an_error_though_it_has_no_say(served: Served, index: LineIndex) -> None:
    assert served.chat(HOTEL, rag=True, model="nobody").status_code == 404
    assert index.asked == []
    assert served.chat(HOTEL, rag=True, model="ja").json()["slm"]["adapter"] == "reader"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_the_reading(engine: Engine, folder: Path, stream: bool) -> None:
    """After the passages it is at: no more are read for nobody."""
    begun, free = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert free.wait(30)

    judge = CountingJudge(before=wait)
    index = LineIndex([replace(PASSAGES[0], source=f"{n}.md") for n in range(10)])
    with running(engine, folder, retriever=index, reader=Reader("reader", judge, ALWAYS)) as server:
        body = json.dumps({"messages": [{"role": "user", "content": HOTEL}], "rag": True, "stream": stream})
        with closing(http.client.HTTPConnection(server.url[7:], timeout=30)) as connection:
            connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
            assert begun.wait(20)
            if stream:  # its head goes out after a second, and nothing but signs of life follows
                assert connection.getresponse().status == 200
        counted = 'slm_requests_total{adapter="reader",outcome="cancelled"} 1.0'
        assert eventually(lambda: counted in httpx.get(f"{server.url}/metrics").text)
        assert len(judge.calls) == 1
        free.set()
        assert server.chat(HOTEL, rag=True).status_code == 200
    assert [len(call) for call in judge.calls] == [4, 4, 4, 2], "of the first question no more was read"


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_of_the_reading_is_told(engine: Engine, folder: Path, stream: bool) -> None:
    """A question that is too long is known only where its tokens are counted."""
    with running(engine, folder, retriever=LineIndex(), reader=tiny_reader()) as server:
        for question, says in (("a" * 10_000, "10,000 characters"), ("a" * 300, "307 tokens")):
            response = server.chat(question, rag=True, stream=stream)
            assert response.status_code == 400 and says in error_of(response)["message"]


# --- the reader's name -----------------------------------------------------------------------------------------


def test_metrics_count_what_the_reader_answers(served: Served) -> None:
    tokens = served.chat(HOTEL, rag=True).json()["usage"]["prompt_tokens"]
    counted = httpx.get(f"{served.url}/metrics").text
    assert 'slm_requests_total{adapter="reader",outcome="ok"} 1.0' in counted
    assert f'slm_prompt_tokens_total{{adapter="reader"}} {float(tokens)}' in counted
    assert 'slm_time_to_first_token_seconds_count{adapter="reader"} 1.0' in counted


def test_the_reader_is_told_and_is_no_model_to_choose(served: Served, engine: Engine) -> None:
    base, *adapters = httpx.get(f"{served.url}/v1/models").json()["data"]
    assert base["reader"] == "reader" and base["retrieval"] is True
    assert [row["id"] for row in adapters] == ["ja"]
    assert served.chat(HOTEL, rag=True, model="reader").status_code == 404
    assert [adapter.name for adapter in engine.adapters()] == ["ja"]
