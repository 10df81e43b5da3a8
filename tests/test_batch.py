"""`slm generate --batch`: lines in OpenAI's batch format, their answers in order, and what a kill leaves of them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve.batch.entries import entries_of
from serve.batch.inside import InsideServer
from serve.batch.journal import opened_journal, partial_of
from serve.batch.run import BatchFigures, answer_all, figures_of
from serve.engine.engine import Engine
from serve.engine.templates import Renderer
from slm.errors import DamagedFileError, EngineError, InputError, MismatchError, ResourceError
from slm.terminal.console import duration
from tests.running_server import tiny_engine
from tests.served import engine, folder, running

__all__ = ["engine", "folder"]  # fixtures

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MADE_WITH = {"model": {"name": "m", "sha256": "0"}, "adapters": {}, "context": 64}


def line(custom_id: Any, body: Any = None, url: str = COMPLETIONS, **more: Any) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body or {"prompt": "x"}, **more})


def batch(path: Path, *lines: str | bytes) -> Path:
    path.write_bytes(b"\n".join(one if isinstance(one, bytes) else one.encode() for one in lines) + b"\n")
    return path


def faults(path: Path) -> list[tuple[int, str | None, str, str]]:
    return [(e.number, e.custom_id, e.fault.code, e.fault.message) for e in entries_of(path) if e.fault]


def rows_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(row) for row in output.read_text(encoding="utf-8").splitlines()]


# --- lines -----------------------------------------------------------------------------------------------------------


def test_a_line_that_is_wrong_says_its_number_and_why_and_the_others_are_as_they_are(tmp_path: Path) -> None:
    path = batch(
        tmp_path / "b.jsonl", line("a"), "", "no json", b'{"custom_id": "\xff"}', line("a"), line(""), line(7), "[1]",
        line("b", method="GET"), line("c", url="/v1/models"), line("d", body=[1]), line("e", prio=1),
        '{"custom_id": "n", "body": NaN}', "  " + line("z") + "\r",
    )  # fmt: skip
    assert [(number, custom_id, code) for number, custom_id, code, _ in faults(path)] == [
        (3, None, "invalid_json_line"), (4, None, "invalid_json_line"), (5, "a", "duplicate_custom_id"),
        (6, None, "missing_custom_id"), (7, None, "missing_custom_id"), (8, None, "invalid_request"),
        (9, "b", "invalid_method"), (10, "c", "invalid_url"), (11, "d", "invalid_body"), (12, "e", "unknown_field"),
        (13, None, "invalid_json_line"),
    ]  # fmt: skip
    said = {number: message for number, _, _, message in faults(path)}
    assert said[5] == "line 5: custom_id: 'a' is that of line 1 already"
    assert said[9] == "line 9: method: has to be POST (found: 'GET')"
    assert said[12] == "line 12: prio: no such field; a line has custom_id, method, url, body"
    assert [e.custom_id for e in entries_of(path) if not e.fault] == ["a", "z"]


def test_a_body_is_read_again_from_where_its_line_stands(tmp_path: Path) -> None:
    bodies = [{"prompt": "日本"}, {"prompt": "x", "n": 2}]
    path = batch(tmp_path / "b.jsonl", "\ufeff" + line("a", bodies[0]), "", line("b", bodies[1]))
    with path.open("rb") as file:
        assert [entry.body_in(file) for entry in reversed(entries_of(path))] == bodies[::-1]


def test_a_file_that_changes_meanwhile_is_told(tmp_path: Path) -> None:
    path = batch(tmp_path / "b.jsonl", line("a"), line("b"))
    entries = entries_of(path)
    batch(path, line("c"), line("b"))
    with path.open("rb") as file, pytest.raises(DamagedFileError, match=r"line 1 of .* was changed"):
        entries[0].body_in(file)


@pytest.mark.parametrize(("content", "said"), [(b"", "holds no request"), (b"\n \n", "holds no"), (b"\xff\xfe{", "16")])
def test_a_file_without_lines_is_an_error(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_bytes(content)
    with pytest.raises(DamagedFileError, match=said):
        entries_of(tmp_path / "b.jsonl")


# --- who answers, played ---------------------------------------------------------------------------------------------


class Played:
    """Answers a prompt by itself in capitals, the later ones first; `does` may say otherwise, and counts."""

    def __init__(self, does: Callable[[str, int], int | Exception | None] = lambda prompt, n: None) -> None:
        self.does, self.asked, self.now, self.most = does, list[str](), 0, 0

    async def ask(self, url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        prompt = body["prompt"]
        self.asked.append(prompt)
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.02 if len(self.asked) % 2 else 0.001)
        self.now -= 1
        found = self.does(prompt, self.asked.count(prompt))
        if isinstance(found, Exception):
            raise found
        usage = {"prompt_tokens": 2, "completion_tokens": 3}
        return found or 200, {"said": prompt.upper(), "usage": usage} if not found else {"error": {}}


def prompts(path: Path, count: int) -> Path:
    return batch(path, *(line(f"id {n}", {"prompt": f"p{n}"}) for n in range(count)))


def answered(path: Path, who: Any, window: int = 4, **how: bool) -> tuple[BatchFigures, list[dict[str, Any]]]:
    """Answer a batch file beside which its output is; the figures and the rows."""
    entries, output = entries_of(path), path.with_name("out.jsonl")
    with opened_journal(output, **{"resume": False, "fresh": False, **how}) as journal:
        journal.begin(MADE_WITH)
        figures = figures_of(entries, journal)
        asyncio.run(answer_all(entries, path, who, journal, window, figures))
        journal.write(output, entries)
    assert not partial_of(output).exists()
    return figures, rows_of(output)


def test_answers_stand_in_the_order_of_the_lines_whenever_they_came(tmp_path: Path) -> None:
    path = prompts(tmp_path / "b.jsonl", 9)
    with path.open("a") as file:
        file.write("no json\n")
    figures, rows = answered(path, who := Played())
    assert who.most == 4
    assert [row["custom_id"] for row in rows] == [*(f"id {n}" for n in range(9)), None]
    assert [row["response"]["body"]["said"] for row in rows[:9]] == [f"P{n}" for n in range(9)]
    assert all(set(row) == {"id", "custom_id", "response", "error"} for row in rows)
    assert len({row["id"] for row in rows}) == 10 and rows[0]["error"] is None
    assert set(rows[0]["response"]) == {"status_code", "request_id", "body"}
    assert rows[9]["response"] is None and set(rows[9]["error"]) == {"code", "message"}
    told = figures.as_json()
    assert (told["lines"], told["answered"], told["failed"], told["kept"]) == (10, 9, 1, 0)
    assert (told["prompt_tokens"], told["completion_tokens"]) == (18, 27) and told["completion_tokens_per_s"] > 0


def test_a_stream_is_refused_by_name_and_asked_of_nobody(tmp_path: Path) -> None:
    path = batch(tmp_path / "b.jsonl", line("a", {"prompt": "x", "stream": True}), line("b", {"prompt": "y"}))
    _, rows = answered(path, who := Played())
    assert who.asked == ["y"]
    response = rows[0]["response"]
    assert (response["status_code"], response["body"]["error"]["param"]) == (400, "stream")


def test_what_was_lost_with_the_engine_is_asked_again_one_at_a_time(tmp_path: Path) -> None:
    alone: list[int] = []

    def dies(prompt: str, times: int) -> int | None:
        if times > 1:
            alone.append(who.now)
        return 503 if prompt == "p1" or times == 1 else None

    who = Played(dies)
    figures, rows = answered(prompts(tmp_path / "b.jsonl", 4), who)
    assert [row["response"]["status_code"] for row in rows] == [200, 503, 200, 200]
    assert who.asked.count("p1") == 4 and set(alone) == {0} and figures.failed == 1


def test_who_is_full_is_asked_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.batch.run._FULL_S", 0.01)
    who = Played(lambda prompt, times: 429 if times < 3 else None)
    assert answered(prompts(tmp_path / "b.jsonl", 3), who)[0].answered == 3


def broken_off(path: Path) -> Path:
    """A batch of six whose engine went away at the fourth; its output."""
    who = Played(lambda prompt, n: EngineError("the engine is down") if prompt == "p3" else None)
    with pytest.raises(EngineError, match="is down"):
        answered(prompts(path, 6), who, window=1)
    output = path.with_name("out.jsonl")
    assert not output.exists() and partial_of(output).exists()
    return output


def test_a_broken_off_batch_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl"
    broken_off(path)
    figures, rows = answered(path, who := Played(), resume=True)
    assert sorted(who.asked) == ["p3", "p4", "p5"] and (figures.kept, figures.answered) == (3, 3)
    assert [row["response"]["body"]["said"] for row in rows] == [f"P{n}" for n in range(6)]


def test_lines_that_were_moved_or_put_right_keep_the_answers_of_the_others(tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl"
    broken_off(path)
    batch(path, *(line(f"id {n}", {"prompt": f"p{n}"}) for n in (9, 2, 0)), line("id 1", {"prompt": "other"}))
    _, rows = answered(path, who := Played(), resume=True)
    assert sorted(who.asked) == ["other", "p9"]
    assert [row["response"]["body"]["said"] for row in rows] == ["P9", "P2", "P0", "OTHER"]


def test_a_broken_off_batch_is_neither_gone_on_with_nor_lost_without_a_word(tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl"
    output = broken_off(path)
    with pytest.raises(InputError, match=r"3 answers in .*partial.*--resume.*--fresh"):
        answered(path, Played())
    assert partial_of(output).exists()
    assert answered(path, who := Played(), fresh=True)[0].answered == 6 and len(who.asked) == 6


def test_answers_of_another_model_are_not_taken_for_this_ones(tmp_path: Path) -> None:
    output = broken_off(tmp_path / "b.jsonl")
    with (
        pytest.raises(MismatchError, match=r"are of another adapters.*--fresh"),
        opened_journal(output, resume=True, fresh=False) as journal,
    ):
        journal.begin({**MADE_WITH, "adapters": {"ja": "1"}})


@pytest.mark.parametrize("torn", [b'0123456789abcdef01234567 {"id": ', b"0123", b"junk\n"])
def test_what_a_kill_left_half_written_is_dropped(torn: bytes, tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl"
    output = broken_off(path)
    with partial_of(output).open("ab") as file:
        file.write(torn)
    assert answered(path, Played(), resume=True)[0].kept == 3


def test_an_answer_that_the_machine_was_at_fault_for_is_asked_again(tmp_path: Path) -> None:
    path = prompts(tmp_path / "b.jsonl", 3)
    failing = {"p0": 500, "p1": 400}

    def does(prompt: str, times: int) -> int | Exception | None:
        return EngineError("down") if prompt == "p2" else failing[prompt]

    with pytest.raises(EngineError):
        answered(path, Played(does), window=1)
    figures, rows = answered(path, who := Played(), resume=True)
    assert (figures.kept, figures.answered, figures.failed) == (0, 2, 1)
    assert sorted(who.asked) == ["p0", "p2"] and [r["response"]["status_code"] for r in rows] == [200, 400, 200]


def test_a_file_of_somebody_else_in_the_place_of_the_answers_is_left_alone(tmp_path: Path) -> None:
    for content in (b"mine", b"mine\n", b"slm-batch mine\n"):
        partial_of(tmp_path / "out.jsonl").write_bytes(content)
        with pytest.raises(InputError, match="holds something else"):
            answered(prompts(tmp_path / "b.jsonl", 1), Played(), fresh=True)
        assert partial_of(tmp_path / "out.jsonl").read_bytes() == content


def test_two_runs_do_not_write_one_output(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with (
        opened_journal(output, resume=False, fresh=False),
        pytest.raises(ResourceError, match="another process is writing"),
        opened_journal(output, resume=True, fresh=False),
    ):
        pass


def test_nothing_is_left_where_nothing_was_answered(tmp_path: Path) -> None:
    with pytest.raises(EngineError):
        answered(prompts(tmp_path / "b.jsonl", 1), Played(lambda prompt, n: EngineError("down")))
    assert [path.name for path in tmp_path.iterdir()] == ["b.jsonl"]


def test_a_full_disk_keeps_what_was_answered(tmp_path: Path) -> None:
    path, output = prompts(tmp_path / "b.jsonl", 1), tmp_path / "out.jsonl"
    with opened_journal(output, resume=False, fresh=False) as journal:
        journal.begin(MADE_WITH)
        kept = journal._file
        with (
            Path("/dev/full").open("r+b", buffering=0) as full,
            pytest.raises(ResourceError, match=r"No space left.*--resume"),
        ):
            journal._file = full
            journal.put(entries_of(path)[0].key, {"id": 1})
        journal._file = kept


def test_a_time_is_told_in_the_unit_it_is_thought_of() -> None:
    assert [duration(s) for s in (4, 89, 600, 11_100)] == ["4 s", "89 s", "10 min", "3 h 05 min"]


# --- the server's application, without a socket ----------------------------------------------------------------------

REQUESTS: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 6, "temperature": 0, "seed": 1}),
    (CHAT, {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 6, "temperature": 0, "model": "en"}),
    (COMPLETIONS, {"prompt": ["a", "b"], "n": 2, "max_tokens": 3, "temperature": 0}),
    ("/v1/embeddings", {"input": ["a", "bc"]}),
    (CHAT, {"messages": [], "max_tokens": 6}),
    (CHAT, {"messages": [{"role": "user", "content": "x"}], "max_tokns": 6}),
    (CHAT, {"messages": [{"role": "user", "content": "x"}], "model": "nobody"}),
    (COMPLETIONS, {"prompt": "x", "n": 9}),
    (COMPLETIONS, {"prompt": "x" * 100_000}),
    (COMPLETIONS, {"prompt": "x", "temperature": -1}),
]


def lasting(body: dict[str, Any]) -> dict[str, Any]:
    """An answer without what is new each time."""
    kept = {name: value for name, value in body.items() if name not in ("id", "created", "timings")}
    kept.get("usage", {}).pop("prompt_tokens_details", None)  # how much of it was read for the request before
    return kept


def test_a_body_is_honoured_or_refused_as_the_server_does_it(engine: Engine, folder: Path) -> None:
    async def inside() -> list[tuple[int, dict[str, Any]]]:
        server = InsideServer(engine)
        return [await server.ask(url, body) for url, body in REQUESTS]

    with running(engine, folder) as server:
        over_http = [server.post(url, body) for url, body in REQUESTS]
    statuses = []
    for (status, body), reply in zip(asyncio.run(inside()), over_http, strict=True):
        assert (status, lasting(body)) == (reply.status_code, lasting(reply.json()))
        statuses.append(status)
    assert statuses == [200, 200, 200, 200, 400, 400, 404, 400, 400, 400]


def test_adapters_mix_in_one_batch(engine: Engine, tmp_path: Path) -> None:
    ask = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "temperature": 0}
    names = ["en", "base", "en", "auto", "base"]
    path = batch(tmp_path / "b.jsonl", *(line(f"{n}", {**ask, "model": m}, CHAT) for n, m in enumerate(names)))

    async def one_by_one() -> list[str]:
        server = InsideServer(engine)
        found = [await server.ask(CHAT, {**ask, "model": m}) for m in names]
        return [body["choices"][0]["message"]["content"] for _, body in found]

    expected = asyncio.run(one_by_one())
    figures, rows = answered(path, InsideServer(engine), window=8)
    bodies = [row["response"]["body"] for row in rows]
    assert [body["slm"]["adapter"] for body in bodies] == ["en", None, "en", "en", None]
    assert [body["choices"][0]["message"]["content"] for body in bodies] == expected
    assert figures.completion_tokens == sum(body["usage"]["completion_tokens"] for body in bodies) > 0


def test_an_engine_that_ends_is_started_again_and_its_requests_are_answered(tmp_path: Path) -> None:

    with tiny_engine(tmp_path) as one:
        path = batch(
            tmp_path / "b.jsonl",
            *(line(f"{n}", {"prompt": "x", "max_tokens": 400, "ignore_eos": True, "seed": n}) for n in range(4)),
        )
        killed: list[int] = []

        class Killing(InsideServer):
            async def ask(self, url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
                if len(killed) == 0 and body["seed"] == 3:
                    assert one.pid is not None
                    killed.append(one.pid)
                    asyncio.get_running_loop().call_later(0.2, os.kill, one.pid, signal.SIGKILL)
                return await super().ask(url, body)

        figures, rows = answered(path, Killing(one))
    assert killed and one.restarts == 1
    assert [row["response"]["status_code"] for row in rows] == [200] * 4 and figures.failed == 0


def test_an_engine_that_is_gone_for_good_ends_the_batch(tmp_path: Path) -> None:
    with tiny_engine(tmp_path) as one:
        one.close()
        with pytest.raises(EngineError, match="the engine is closed"):
            answered(prompts(tmp_path / "b.jsonl", 2), InsideServer(one))


def test_a_renderer_that_does_not_start_says_so_and_blames_no_template(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.engine.templates._START_LIMIT_S", 0.001)
    renderer = Renderer()
    with pytest.raises(EngineError, match="did not start"):
        renderer.render({"template": "x", "messages": [], "tools": [], "bos_token": "", "eos_token": ""})
    renderer.close()
