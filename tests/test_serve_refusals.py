"""What the guard lets in and what it refuses, decided on plain data: keys, hosts, bodies, the queue, folders."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json

from serve.adapters.allowed import allowed_file
from serve.server.guard import (
    Keys,
    Limits,
    Policy,
    Queue,
    answers_asked,
    keys_of_text,
    refuse_body,
    refuse_head,
    refuse_values,
)
from slm.errors import InputError, UnsupportedError
from tests.served import LOCAL, chat

JSON = {b"content-type": b"application/json"}


def status_of(method: str, headers: dict[bytes, bytes], policy: Policy = LOCAL, path: str = "/v1/models") -> int:
    refusal = refuse_head(method, path, headers, policy)
    return refusal.status if refusal else 200


# --- keys -------------------------------------------------------------------------------------------------------


@given(st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1), min_size=1, max_size=5), st.data())
def test_every_key_lets_in_and_nothing_else_does(keys: list[str], data: st.DataObject) -> None:
    some = Keys(keys)
    right = data.draw(st.sampled_from(keys))
    assert some.admit(b"Bearer " + right.encode()) and some.admit(b"bearer   " + right.encode() + b" ")
    wrong = data.draw(st.one_of(st.text(), st.sampled_from([right[:-1], right + "x", right.swapcase()])))
    if wrong.strip() not in keys:
        assert not some.admit(b"Bearer " + wrong.encode("utf-8", "replace"))
    assert not some.admit(right.encode()) and not some.admit(b"Basic " + right.encode()) and not some.admit(b"")


def test_keys_do_not_show_themselves_and_none_lets_everybody_in() -> None:
    assert "hunter2" not in repr(Policy(Keys(["hunter2"])))
    assert Keys().admit(b"") and not Keys()


def test_an_engine_that_takes_one_key_gets_it_or_none() -> None:
    assert Keys().single() is None and Keys(["k"]).single() == "k"
    with pytest.raises(UnsupportedError):
        Keys(["k", "l"]).single()


def test_a_key_file_has_a_key_a_line() -> None:
    assert keys_of_text("# ours\nalpha\n\n  beta \n#gamma\r\n", "f") == ("alpha", "beta")
    for text in ("", "# nothing\n\n", "alpha\ntwo words\n"):
        with pytest.raises(InputError):
            keys_of_text(text, "f")


# --- hosts and origins ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:8080", "[::1]", "localhost.:80"])
def test_a_loopback_server_answers_to_its_own_names(host: str) -> None:
    assert status_of("GET", {b"host": host.encode()}) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "0.0.0.0:8080",
        "[::1].evil.example:1@x", "evil.example#localhost", "127.0.0.2", "[::]", "2130706433", "localhost@evil.example",
    ],
)  # fmt: skip
def test_a_name_that_was_made_to_point_here_is_refused(host: str) -> None:
    assert status_of("GET", {b"host": host.encode()}) == 421
    assert status_of("GET", {b"host": host.encode()}, Policy(hosts=None)) == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:9", "http://127.0.0.1", "x"])
def test_a_foreign_page_changes_nothing(origin: str) -> None:
    head = {b"host": b"127.0.0.1:8080", b"origin": origin.encode(), **JSON}
    for method in ("POST", "DELETE", "PUT", "PATCH", "BREW"):
        assert status_of(method, head) == 403
    assert status_of("GET", head) == 200
    assert status_of("POST", head, Policy(origins=(origin.lower(),))) == 200


def test_the_servers_own_page_may_ask_also_behind_tls() -> None:
    for origin in (b"http://127.0.0.1:8080", b"https://127.0.0.1:8080"):
        assert status_of("POST", {b"host": b"127.0.0.1:8080", b"origin": origin, **JSON}) == 200


@pytest.mark.parametrize(
    "kind",
    ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonp"],
)
def test_what_a_form_can_send_is_not_taken_for_json(kind: str) -> None:
    assert status_of("POST", {b"content-type": kind.encode()}) == 415
    assert status_of("POST", {b"content-type": b"Application/JSON; charset=utf-8"}) == 200


@pytest.mark.parametrize("coding", ["gzip", "Deflate", "br", "zstd", "gzip, identity", "aws-chunked"])
def test_a_body_that_is_packed_is_refused_by_the_name_of_its_header(coding: str) -> None:
    refusal = refuse_head("POST", "/v1/completions", {**JSON, b"content-encoding": coding.encode()}, LOCAL)
    assert refusal is not None and refusal.status == 415 and f"'Content-Encoding: {coding.lower()}'" in refusal.message
    for plain in (b"identity", b" Identity ", b""):
        assert status_of("POST", {**JSON, b"content-encoding": plain}) == 200
    assert status_of("GET", {b"content-encoding": coding.encode()}) == 200


def test_the_declared_length_is_judged_before_anything_is_read() -> None:
    for length, status in {b"10000000": 200, b"10000001": 413, b"9" * 4000: 413, b"-1": 200, b"": 200}.items():
        assert status_of("POST", {**JSON, b"content-length": length}) == status


# --- bodies -----------------------------------------------------------------------------------------------------


def refused(body: Any, **limits: Any) -> str | None:
    refusal = refuse_body(body, Limits(**limits), 100)
    return f"{refusal.status} {refusal.param or refusal.code}" if refusal else None


def test_a_conversation_counts_as_one_prompt_and_a_list_of_texts_as_many() -> None:
    assert refused(chat("x" * 3000)) is None
    assert refused(chat("x" * 3201)) == "400 messages"
    assert refused({"messages": [{"role": "user", "content": "x" * 90}] * 40}) == "400 messages"
    assert refused(chat([{"type": "text", "text": "x" * 3201}])) == "400 messages"
    assert refused(chat("x", tools=[{"function": {"name": "f", "parameters": {"y" * 4000: {}}}}])) is not None
    assert refused({"prompt": "x" * 3201}) == "400 prompt" and refused({"input": ["x", "x" * 3201]}) == "400 input"
    assert refused({"input": ["x" * 3000] * 100}) is None
    assert refused({"prompt": [1] * 3201}) == "400 prompt" and refused({"tokens": [[1] * 3201]}) == "400 tokens"
    assert refused({"prompt": "x" * 500}, prompt_characters=499) is not None


def test_n_has_a_limit_and_numbers_are_finite() -> None:
    assert (
        refused(chat("x", n=8)) is None
        and refused(chat("x", n=9)) == "400 n"
        and refused(chat("x", n=10**30)) == "400 n"
    )
    assert refused(from_json(b'{"x": 1e999}')) == "400 invalid_request"


NAMES = st.sampled_from(["n", "stop", "prompt", "messages", "x"])
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(NAMES, inner),
    max_leaves=30,
)  # fmt: skip


@given(JSON_VALUES)
def test_any_json_is_judged_without_an_error_and_asks_for_at_least_one_answer(value: Any) -> None:
    refusal = refuse_body(value, Limits(), 4096)
    assert refusal is None or json.loads(refusal.content())["error"]["message"]
    assert answers_asked(value) >= 1


def test_a_body_of_very_many_values_is_refused_before_it_is_parsed() -> None:
    for body in (b"[" * 600_000, b'{"a":' * 600_000, b"[" + b"0," * 600_000 + b"0]"):
        refusal = refuse_values(body)
        assert refusal is not None and refusal.status == 413
    assert refuse_values(json.dumps({"input": ["A sentence, as they are."] * 100_000}).encode()) is None


def test_answers_are_n_for_each_prompt() -> None:
    assert answers_asked({"n": 3, "prompt": ["a", "b"]}) == answers_asked({"n": 3.0, "prompt": ["a", "b"]}) == 6
    assert refused(chat("x", n=9.0)) == "400 n" and refused(chat("x", n=8.0)) is None
    assert answers_asked({"prompt": [1, 2, 3]}) == answers_asked({"prompt": "a"}) == answers_asked([]) == 1


# --- the queue --------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 12)), max_size=60), st.integers(1, 10))
def test_the_queue_never_holds_more_than_its_limit_and_empties(steps: list[tuple[bool, int]], limit: int) -> None:
    now = [0.0]
    queue = Queue(limit, clock=lambda: now[0])
    inside: list[int] = []
    for entering, answers in steps:
        now[0] += 0.5
        if entering:
            full = queue.inside + min(answers, limit) > limit
            refusal = queue.enter(answers)
            assert (refusal is not None) == full
            if refusal:
                assert refusal.status == 429 and 1 <= int(dict(refusal.headers)["retry-after"]) <= 120
            else:
                inside.append(answers)
        elif inside:
            queue.leave(inside.pop())
        assert queue.inside == sum(min(n, limit) for n in inside) <= limit
    for answers in inside:
        queue.leave(answers)
    assert queue.inside == 0


def test_the_wait_is_as_long_as_the_recent_rate_says() -> None:
    now = [100.0]
    queue = Queue(1000, clock=lambda: now[0])
    assert queue.retry_after_s() == 10  # nothing is known yet
    queue.enter(1000)
    for _ in range(20):  # one every two seconds
        now[0] += 2
        queue.leave()
    assert queue.retry_after_s() == 2
    queue.enter(20)
    for _ in range(4):
        assert queue.enter() is not None
    assert queue.retry_after_s() == 10  # four are before it
    now[0] += 1000
    assert queue.retry_after_s() == 10


# --- allowed folders --------------------------------------------------------------------------------------------


def test_no_path_leads_out_of_the_allowed_folders(tmp_path: Path) -> None:
    inside, outside = tmp_path / "adapters", tmp_path / "adapters-other"
    inside.mkdir()
    outside.mkdir()
    (inside / "a.gguf").write_bytes(b"x")
    (outside / "b.gguf").write_bytes(b"x")
    (inside / "file-link").symlink_to(outside / "b.gguf")
    (inside / "folder-link").symlink_to(outside)
    (inside / "circle").symlink_to(inside / "circle")
    os.mkfifo(inside / "pipe")
    hostile = [
        "", ".", "..", "/", "/etc/passwd", str(outside / "b.gguf"), f"{inside}/../adapters-other/b.gguf", "~/x",
        f"{inside}/file-link", f"{inside}/folder-link/b.gguf", f"{inside}/pipe", f"{inside}/a.gguf\0.txt", "\0",
        f"{inside}/" + "x/" * 5000, "x" * 70_000, str(inside).upper() + "/a.gguf", f"file://{inside}/a.gguf",
        f"{inside}/./../../{tmp_path.name}/adapters-other/b.gguf", "/proc/self/environ", "/dev/zero", str(outside),
    ]  # fmt: skip
    for path in hostile:
        try:
            allowed = allowed_file(path, [inside.resolve()])
        except InputError as error:
            assert len(str(error)) < 600
        else:  # whatever is let through lies inside
            assert allowed.is_relative_to(inside.resolve()) and "x/x/x" in path
    assert allowed_file(f"{inside}/sub/../a.gguf", [inside.resolve()]) == (inside / "a.gguf").resolve()
    with pytest.raises(InputError):
        allowed_file(str(inside / "a.gguf"), [])
