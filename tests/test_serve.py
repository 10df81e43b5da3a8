"""The engine: its survival and its ends, prompts, text, and the way to an adapter, on tiny random models."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from serve.adapters.registry import language_of_name
from serve.child.spelling.text import TextStream
from serve.engine.engine import Engine, open_engine
from serve.engine.router import route
from slm.errors import ContextOverflowError, EngineDiedError, EngineError, UnknownNameError
from slm.joints import Finish, Message, SamplingOptions
from slm.weights.gguf_reader import read_gguf
from tests.tiny_engine import Files, Oracle, ask, engine, files, oracle, user
from tests.tiny_gguf import BOS, TOKENS, write_adapter, write_model
from tests.waiting import eventually

__all__ = ["engine", "files", "oracle"]  # fixtures

ROOT = Path(__file__).parent.parent


# --- survival and ends ------------------------------------------------------------------------------------------


def test_killing_the_child_fails_the_request_in_flight_and_service_continues(files: Files) -> None:
    with open_engine(files.model, {"en": files.a, "ja": files.b}, threads=1) as live:
        before = ask(live, "Hello", "en", 8)[0]
        for _ in range(2):
            pid = live.pid
            assert pid is not None
            stream = live.chat(user("Talk"), adapter="ja", sampling=SamplingOptions(max_tokens=1900))
            next(stream)
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(EngineDiedError, match="signal 9"):
                list(stream)
            assert ask(live, "Hello", "en", 8)[0] == before
            assert live.pid != pid
        assert live.restarts == 2
        assert [a.name for a in live.adapters()] == ["en", "ja"]


def test_after_a_restart_an_adapter_is_what_was_checked_whatever_became_of_its_file(
    files: Files, tmp_path: Path, oracle: Oracle
) -> None:
    gone, changed = tmp_path / "gone.gguf", tmp_path / "changed.gguf"
    gone.write_bytes(files.b.read_bytes())
    changed.write_bytes(files.a.read_bytes())
    with open_engine(files.model, {"changed": changed, "gone": gone}, threads=1) as live:
        gone.unlink()
        changed.write_bytes(b"no adapter any more")
        assert live.pid is not None
        os.kill(live.pid, signal.SIGKILL)
        assert eventually(lambda: live.restarts == 1 and live.state == "ready")
        for name, path in (("changed", files.a), ("gone", files.b)):
            prompt = live.tokens_of(user("Hello"), adapter=name)
            assert oracle.same(path, prompt, ask(live, "Hello", name, 8)[0], oracle.greedy(path, prompt, 8))
        copies = [adapter.file for adapter in live.adapters()]
        live.unload_adapter("gone")
        assert [copy.exists() for copy in copies] == [True, False]
    assert not copies[0].parent.exists(), "nothing stays behind"


def test_the_child_ends_when_its_parent_is_killed(files: Files) -> None:
    code = (
        "import sys; from pathlib import Path; from serve.engine.engine import Engine\n"
        "from serve.engine.options import EngineOptions\n"
        f"engine = Engine(Path({str(files.model)!r}), {{}}, options=EngineOptions(threads=1))\n"
        "print(engine.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
        assert eventually(lambda: not _alive(child))


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_closing_the_stream_cancels_the_request_and_frees_its_slot(files: Files) -> None:
    with open_engine(files.model, {}, threads=1, parallel=1) as live:
        stream = live.chat(user("On and on"), sampling=SamplingOptions(max_tokens=1900))
        next(stream)
        assert live.stats().running == 1
        waiting = live.chat(user("Queued"), sampling=SamplingOptions(max_tokens=1900))
        thread = threading.Thread(target=lambda: next(waiting))
        thread.start()
        stream.close()
        thread.join(30)
        waiting.close()
        assert eventually(lambda: live.stats().running == 0)
        assert ask(live, "Next", None, 4)[1].completion_tokens == 4


def test_a_closed_engine_says_so(files: Files) -> None:
    with open_engine(files.model, {}, threads=1) as live:
        pass
    with pytest.raises(EngineError, match="closed"):
        ask(live, "Hello", None)


# --- prompts and text -------------------------------------------------------------------------------------------


def test_context_overflow_is_an_error_with_both_numbers(files: Files) -> None:
    with open_engine(files.model, {}, threads=1, context=256) as live:
        prompt = len(live.tokens_of(user("x" * 100)))
        with pytest.raises(ContextOverflowError, match=rf"{prompt} tokens and the answer may take 200.* holds 256"):
            ask(live, "x" * 100, None, 200)
        with pytest.raises(ContextOverflowError, match="holds 256"):
            list(live.chat(user("x" * 300), fit=True))
        *_, finish = live.chat(user("x" * 100), sampling=SamplingOptions(max_tokens=5000), fit=True)
        assert isinstance(finish, Finish)
        assert (finish.reason, finish.completion_tokens) == ("length", 256 - prompt)


def test_the_context_is_never_longer_than_the_model_was_trained_for(tmp_path: Path) -> None:
    model = write_model(tmp_path / "short.gguf", context=128)
    with open_engine(model, {}, threads=1, context=4096) as live:
        assert live.context == 128
        *_, finish = live.chat(user("Hi"), sampling=SamplingOptions(max_tokens=4000), fit=True)
        assert isinstance(finish, Finish)
        assert finish.prompt_tokens + finish.completion_tokens == 128


def test_a_character_of_three_tokens_arrives_whole(tmp_path: Path) -> None:
    model = write_model(tmp_path / "spell.gguf", spell="日".encode())
    with open_engine(model, {}, threads=1) as live:
        *pieces, _ = live.chat(user("Hi"), sampling=SamplingOptions(max_tokens=9))
        assert pieces == ["日", "日", "日"]
        *cut, _ = live.chat(user("Hi"), sampling=SamplingOptions(max_tokens=8))
        assert cut == ["日", "日", "\ufffd"], "what the limit cuts is shown as cut"


def test_text_streams_whole_characters_however_the_bytes_are_split() -> None:
    text = "犬 dog 🐕 é"
    raw = text.encode()
    for size in range(1, 8):
        stream = TextStream()
        shown = [stream.feed(raw[at : at + size]) for at in range(0, len(raw), size)]
        assert "".join(shown) + stream.flush() == text
        assert not any("\ufffd" in piece for piece in shown)


def test_a_stop_string_never_leaks_even_half() -> None:
    raw = b"one, two, STOP three"
    for size in range(1, 8):
        stream = TextStream(["STOP", "STARE"])
        shown = ""
        for at in range(0, len(raw), size):
            shown += stream.feed(raw[at : at + size])
            assert not set("STOP") & set(shown)
            if stream.stopped:
                break
        assert stream.stopped
        assert shown + stream.flush() == "one, two, "
    harmless = TextStream(["STOP"])
    assert harmless.feed(b"no ST") + harmless.feed(b"ART") + harmless.feed(b" ST") + harmless.flush() == "no START ST"


def test_a_stop_string_ends_the_answer(engine: Engine) -> None:
    ask(engine, "Stop somewhere", "en")
    whole, _ = ask(engine, "Stop somewhere", "en")  # the second has the same cache before it as the third
    stop = whole[10:13]
    text, finish = ask(engine, "Stop somewhere", "en", stop=(stop,))
    assert text == whole[: whole.index(stop)]
    assert finish.reason == "stop"


def test_the_prompt_begins_with_exactly_one_bos(tmp_path: Path) -> None:
    with_bos = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    without = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    for name, template in {"with": with_bos, "without": without}.items():
        model = write_model(tmp_path / f"{name}.gguf", template=template)
        with open_engine(model, {}, threads=1) as live:
            assert [TOKENS[t] for t in live.tokens_of(user("hi"))] == ["<s>", "h", "i"]


def test_an_adapters_own_template_is_used_before_the_bases(files: Files, tmp_path: Path) -> None:
    own = write_adapter(tmp_path / "own.gguf", template="Q: {{ messages[-1]['content'] }} A:")
    with open_engine(files.model, {"own": own, "plain": files.a}, threads=1) as live:
        assert "".join(TOKENS[t] for t in live.tokens_of(user("hi"), adapter="own")) == "<s>Q:▁hi▁A:"
        chatml = [TOKENS[t] for t in live.tokens_of(user("hi"), adapter="plain")]
        assert chatml[:2] == ["<s>", "<|im_start|>"] and chatml.count("<s>") == 1 and BOS == 1


def test_sampling_repeats_with_a_seed_and_differs_between_seeds(engine: Engine) -> None:
    draws = [ask(engine, "Dice", "en", temperature=2.0, top_k=0, min_p=0.0, seed=seed)[0] for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert ask(engine, "Dice", "en", repeat_penalty=1.8)[0] != ask(engine, "Dice", "en")[0]


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "question", "start"),
    [
        ("smollm2-135m-instruct", "What is the capital of France?", ["<|im_start|>", "system"]),
        ("gemma-3-270m", "日本の首都はどこですか。", ["<bos>", "<start_of_turn>"]),
    ],
)
def test_a_real_model_reads_one_bos_and_answers_in_whole_characters(
    pulled_model: Callable[[str], Path], name: str, question: str, start: list[str]
) -> None:
    vocabulary = read_gguf(pulled_model(name)).metadata["tokenizer.ggml.tokens"]
    with open_engine(pulled_model(name), {}, context=512, threads=1) as live:
        tokens = [vocabulary[token] for token in live.tokens_of(user(question))]
        assert tokens[:2] == start and tokens.count("<bos>") == start.count("<bos>")
        *pieces, finish = live.chat(user(question), sampling=SamplingOptions(max_tokens=24))
        assert isinstance(finish, Finish) and finish.prompt_tokens == len(tokens)
        assert len("".join(str(piece) for piece in pieces)) > 8
        assert not any("\ufffd" in str(piece) for piece in pieces)


# --- routing ----------------------------------------------------------------------------------------------------

SPEAKERS = {"office": None, "en": "en", "ja": "ja"}


@pytest.mark.parametrize(
    ("text", "adapter"),
    [
        ("How many days of paid leave do I have?", "en"),
        ("有給休暇は何日ありますか。", "ja"),
        ("東京", "ja"),
        ("はい", "ja"),
        ("Yes", "en"),
        ("PythonでCSVを読む方法を教えてください", "ja"),
        ("What does 改善 mean in a factory?", "en"),
        ("https://example.com/日本 Please summarise this page", "en"),
        ("1234 !?", None),
        ("안녕하세요, 반갑습니다", None),
    ],
)
def test_text_goes_to_the_adapter_of_its_language(text: str, adapter: str | None) -> None:
    assert route("auto", user(text), SPEAKERS).adapter == adapter


def test_a_conversation_keeps_its_language_until_the_user_changes_it() -> None:
    turns = [*user("有給休暇は何日ありますか。"), Message(role="assistant", content="Ten days, as the handbook says.")]
    assert route("auto", [*turns, *user("OK")], SPEAKERS).adapter == "ja"
    assert route("auto", [*turns, *user("???")], SPEAKERS).adapter == "ja"
    assert route("auto", [*turns, *user("Could you say that in English, please?")], SPEAKERS).adapter == "en"


def test_undecided_text_and_a_language_without_adapter_go_to_the_default() -> None:
    assert route("auto", user("123"), SPEAKERS, default="office").adapter == "office"
    way = route("auto", user("What time is it in the office now?"), {"ja": "ja"})
    assert way.adapter is None
    assert "no adapter for 'en'" in way.reason
    mixed = [*user("有給休暇は何日ありますか。"), *user("What time is it in the office now?")]
    assert route("auto", mixed, {"ja": "ja"}).adapter is None, "clear English is not answered in Japanese"


def test_a_named_adapter_and_the_base_need_no_language() -> None:
    assert route("office", user("はい"), SPEAKERS).adapter == "office"
    assert route("base", user("はい"), SPEAKERS).adapter is None
    with pytest.raises(UnknownNameError, match="known: auto, base, en, ja, office"):
        route("de", user("はい"), SPEAKERS)


def test_an_adapters_name_tells_its_language() -> None:
    names = {"en": "en", "ja_lora": "ja", "Japanese": "ja", "fr-sft": "fr", "support": None, "it-support": None}
    assert {name: language_of_name(name) for name in names} == names
