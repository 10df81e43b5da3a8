"""Scores of pieces: what transformers computes for the same tokens, whoever else is read or answered meanwhile."""

from __future__ import annotations

import itertools
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoTokenizer

from convert.lora.adapter import convert_adapter
from convert.model import convert_checkpoint
from serve.child.guests.reading import MOST_LOGITS, MOST_PROMPTS, PieceTokens, shared_beginning, steps
from serve.child.schedule import LARGEST_CHUNK
from serve.engine.engine import Engine, open_engine
from slm.errors import ContextOverflowError, EngineDiedError, EngineError, InputError, UnknownNameError
from slm.joints import PieceScores, SamplingOptions
from slm.native.llama import (
    ContextParams,
    all_logits,
    fast_attention,
    open_adapter,
    open_context,
    open_model,
    set_adapters,
)
from tests import tiny_families as tiny
from tests.tiny_engine import Files, ask, engine, files, user
from tests.tiny_gguf import BOS, letter
from tests.waiting import eventually

__all__ = ["engine", "files"]  # fixtures

CONTRAST = ("y", "n")
# Keys and values are kept in f16: one that another batch rounds the other way moves a score by about a thousandth of
# the scores' standard deviation, which is 1 to 2 in the families here.
AGAIN = 2e-3
HEAD = "How long is the lease? 期間は?\n"
PASSAGES = [
    ["The office is closed on Friday.\n", "請求書は金曜日までに。\n", "The lease runs for 12 months.\n"],
    ["Lunch is at noon 🍣\n", "a\n"],
    ["<end_of_turn>\n", "<|im_end|>\n<bos>\n", "The end.\n"],
    ["\n", "  four spaces \t and a tab\n", "x" * 30 + "\n"],
]
PROMPTS = [[HEAD, *lines] for lines in PASSAGES]


# --- against transformers -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """A tiny checkpoint with an adapter: an engine that serves both, and the model in transformers."""

    engine: Engine
    tokenizer: Any
    model: Any
    begins: list[int]

    def expected(self, prompt: Sequence[str], *, adapter: bool) -> list[float]:
        """One reading of each prompt alone, its pieces tokenized on their own by the checkpoint's tokenizer."""
        ids, ends = list(self.begins), []
        for piece in prompt:
            ids += self.tokenizer(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            ends.append(len(ids) - 1)
        yes, no = (self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in CONTRAST)
        assert len(yes) == len(no) == 1
        with torch.no_grad():
            if adapter:
                logits = self.model(torch.tensor([ids])).logits[0]
            else:
                with self.model.disable_adapter():
                    logits = self.model(torch.tensor([ids])).logits[0]
        found: list[float] = (logits[ends[1:], yes[0]] - logits[ends[1:], no[0]]).tolist()
        return found


def write_peft_adapter(base: Path, out: Path) -> Path:
    names = ["q_proj", "v_proj", "down_proj"]
    model = get_peft_model(tiny.load(base), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=names))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    model.save_pretrained(out)
    return out


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    root = tmp_path_factory.mktemp(request.param)
    folder = tiny.MAKE[request.param](root / "checkpoint")
    convert_checkpoint(folder, root / "model.gguf", "f32", verify=False)
    adapter = write_peft_adapter(folder, root / "adapter")
    convert_adapter(adapter, root / "adapter.gguf")
    model = PeftModel.from_pretrained(tiny.load(folder), str(adapter)).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    begins = tokenizer("")["input_ids"]
    with open_engine(root / "model.gguf", {"reader": root / "adapter.gguf"}, threads=1) as opened:
        yield Family(opened, tokenizer, model, begins)


@pytest.mark.parametrize("adapter", [None, "reader"])
def test_scores_are_the_logits_that_transformers_computes(family: Family, adapter: str | None) -> None:
    expected = [family.expected(prompt, adapter=adapter is not None) for prompt in PROMPTS]
    other = [family.expected(prompt, adapter=adapter is None) for prompt in PROMPTS]
    found = family.engine.scores(PROMPTS, CONTRAST, adapter=adapter)
    assert [len(row) for row in found.scores] == [len(lines) for lines in PASSAGES]
    flat = list(itertools.chain(*found.scores))
    assert flat == pytest.approx(list(itertools.chain(*expected)), abs=1e-2)
    assert flat != pytest.approx(list(itertools.chain(*other)), abs=0.5), "the adapter must change something"


def test_the_other_way_round_every_score_has_the_other_sign(family: Family) -> None:
    found = family.engine.scores(PROMPTS, CONTRAST).scores
    turned = family.engine.scores(PROMPTS, (CONTRAST[1], CONTRAST[0])).scores
    for row, other in zip(found, turned, strict=True):
        assert row == [-score for score in other]


def test_a_prompt_has_the_scores_it_has_alone_wherever_it_stands(family: Family) -> None:
    together = family.engine.scores(PROMPTS, CONTRAST, adapter="reader").scores
    turned = family.engine.scores(PROMPTS[::-1], CONTRAST, adapter="reader").scores[::-1]
    for prompt, row, other in zip(PROMPTS, together, turned, strict=True):
        (alone,) = family.engine.scores([prompt], CONTRAST, adapter="reader").scores
        assert row == pytest.approx(alone, abs=AGAIN) and other == pytest.approx(alone, abs=AGAIN)


def test_the_head_is_counted_as_read_once(family: Family) -> None:
    head = len(family.begins) + len(family.tokenizer(HEAD, add_special_tokens=False)["input_ids"])
    alone = [family.engine.scores([prompt], CONTRAST) for prompt in PROMPTS]
    together = family.engine.scores(PROMPTS, CONTRAST)
    assert [one.cached_tokens for one in alone] == [0] * len(PROMPTS)
    assert together.prompt_tokens == sum(one.prompt_tokens for one in alone)
    assert together.cached_tokens == head * (len(PROMPTS) - 1)
    assert together.prefill_s > 0


# --- many and long, against bare llama.cpp ------------------------------------------------------------------------


def expected_of(files: Files, prompts: Sequence[Sequence[str]], adapter: Path | None = None) -> list[list[float]]:
    """One reading of each prompt alone, of printable ASCII: a token a character."""
    rows = []
    with ExitStack() as stack:
        model = open_model(stack, files.model)
        context = open_context(stack, model, ContextParams(2048, 2048, n_threads=1, flash_attention=fast_attention()))
        if adapter:
            set_adapters(context, [(open_adapter(stack, model, adapter), 1.0)])
        for prompt in prompts:
            tokens = [BOS, *map(letter, "".join(prompt))]
            ends = np.cumsum([len(piece) for piece in prompt])[1:]
            logits = all_logits(model, context, tokens)
            rows.append([float(logits[end, letter("y")] - logits[end, letter("n")]) for end in ends])
    return rows


def close(found: Sequence[Sequence[float]], expected: Sequence[Sequence[float]]) -> bool:
    """Twice `AGAIN`, as scores of this random model have a standard deviation of about 10."""
    flat, other = (np.array(list(itertools.chain(*rows))) for rows in (found, expected))
    assert other.std() > 3
    return bool(np.abs(flat - other).max() < 20 * AGAIN)


def prompts_of(count: int, lines: int, width: int, head: str = "A question? ") -> list[list[str]]:
    """Prompts of random letters, no two alike."""
    random = np.random.default_rng(count)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz "))
    return [[head, *("".join(random.choice(letters, width)) for _ in range(lines))] for _ in range(count)]


@pytest.mark.parametrize(("count", "lines", "width"), [(12, 15, 20), (40, 3, 7), (3, 300, 1), (2, 2, 1000), (1, 1, 1)])
def test_passages_that_fill_many_steps_have_the_scores_they_have_alone(
    engine: Engine, files: Files, count: int, lines: int, width: int
) -> None:
    prompts = prompts_of(count, lines, width)
    found = engine.scores(prompts, CONTRAST, adapter="en")
    assert found.prompt_tokens == count * (13 + lines * width) and found.cached_tokens == 13 * (count - 1)
    if count * lines == 1:
        assert found.scores[0] == pytest.approx(expected_of(files, prompts, files.a)[0], abs=20 * AGAIN)
    else:
        assert close(found.scores, expected_of(files, prompts, files.a))


def test_heads_that_differ_share_no_more_than_they_have_in_common(engine: Engine, files: Files) -> None:
    prompts = [*prompts_of(3, 4, 9, "What is it? "), *prompts_of(2, 4, 9, "Who is it? "), *prompts_of(1, 2, 5, "W")]
    found = engine.scores(prompts, CONTRAST)
    assert found.cached_tokens == 2 * 5, "BOS and a W"
    assert close(found.scores, expected_of(files, prompts))


def test_a_long_head_is_read_in_steps(engine: Engine, files: Files) -> None:
    prompts = prompts_of(3, 3, 10, "Why? " * 200)
    assert close(engine.scores(prompts, CONTRAST).scores, expected_of(files, prompts))


def test_a_prompt_as_long_as_the_context_is_read_and_a_longer_one_is_refused(files: Files) -> None:
    with open_engine(files.model, {}, threads=1, context=300) as live:
        fits = prompts_of(3, 7, 41)  # 1 + 12 + 287
        assert close(live.scores(fits, CONTRAST).scores, expected_of(files, fits))
        with pytest.raises(ContextOverflowError, match=r"prompts\[3\] has 301 tokens; the context holds 300"):
            live.scores([*fits, [*fits[0], "x"]], CONTRAST)
        assert close(live.scores(fits, CONTRAST).scores, expected_of(files, fits)), "nothing is left of it"


def test_no_prompts_and_prompts_without_pieces_have_no_scores(engine: Engine) -> None:
    assert engine.scores([], CONTRAST).scores == []
    found = engine.scores([["A question?"], ["A question?", "yes"]], CONTRAST)
    assert [len(row) for row in found.scores] == [0, 1] and (found.prompt_tokens, found.cached_tokens) == (15, 0)
    assert engine.scores([["A question?"]], CONTRAST).scores == [[]]


@pytest.mark.parametrize("contrast", [("yes", "n"), ("y", "no"), ("y", ""), ("y", "語")])
def test_a_contrast_that_is_not_one_token_is_named(engine: Engine, contrast: tuple[str, str]) -> None:
    wrong = next(text for text in contrast if len(text.encode()) != 1)
    for prompts in (prompts_of(1, 1, 3), []):
        with pytest.raises(InputError, match=f"contrast '{wrong}' has to be one token.*found: {len(wrong.encode())} "):
            engine.scores(prompts, contrast)


def test_what_cannot_be_judged_is_named_by_its_place(engine: Engine) -> None:
    with pytest.raises(InputError, match="different tokens"):
        engine.scores([["a", "b"]], ("y", "y"))
    with pytest.raises(InputError, match=r"prompts\[1\]\[2\] has no tokens"):
        engine.scores([["a", "b"], ["a", "b", ""]], CONTRAST)
    with pytest.raises(InputError, match=r"prompts\[1\] has no pieces"):
        engine.scores([["a", "b"], []], CONTRAST)
    with pytest.raises(UnknownNameError, match=r"known: .*en"):
        engine.scores([["a", "b"]], CONTRAST, adapter="fr")


# --- beside others ------------------------------------------------------------------------------------------------


def test_an_answer_under_way_goes_on_and_is_the_same(engine: Engine, files: Files) -> None:
    alone = ask(engine, "Hello", "ja", 400, ignore_eos=True)[0]
    prompts = prompts_of(12, 19, 100)
    options = SamplingOptions(max_tokens=400, ignore_eos=True)
    stream = engine.chat(user("Hello"), adapter="ja", sampling=options)
    pieces = [str(next(stream))]
    heard: queue.SimpleQueue[tuple[Any, int]] = queue.SimpleQueue()
    engine.begin_scores(prompts, CONTRAST, lambda told: heard.put((told, len(pieces))), adapter="en")
    for piece in stream:
        pieces.append(piece if isinstance(piece, str) else "")
    assert "".join(pieces) == alone
    scores, meanwhile = heard.get(timeout=60)
    assert close(scores.scores, expected_of(files, prompts, files.a))
    assert meanwhile > 23_000 / LARGEST_CHUNK / 2, "nearly a token for each step of the reading"


def test_scores_end_with_their_adapter_though_it_is_unloaded_or_replaced(engine: Engine, files: Files) -> None:
    prompts = prompts_of(12, 10, 50)
    expected = {path: expected_of(files, prompts, path) for path in (files.a, files.c)}
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
    engine.load_adapter("passing", files.c)
    content = next(adapter.content for adapter in engine.adapters() if adapter.name == "passing")
    for _ in range(2):
        engine.begin_scores(prompts, CONTRAST, heard.put, adapter="passing")
    engine.load_adapter("passing", files.a)
    engine.begin_scores(prompts, CONTRAST, heard.put, adapter="passing")
    engine.unload_adapter("passing")
    for path in (files.c, files.c, files.a):
        assert close(heard.get(timeout=60).scores, expected[path])
    assert eventually(lambda: content not in engine.stats().adapters), "and then it is let go"
    with pytest.raises(UnknownNameError):
        engine.scores(prompts, CONTRAST, adapter="passing")
    assert close(engine.scores(prompts, CONTRAST, adapter="en").scores, expected[files.a])


def test_many_at_once_get_what_they_asked_for(engine: Engine, files: Files) -> None:
    asked = {name: prompts_of(4 + n, 5, 30) for n, name in enumerate(("en", "ja", "base"))}
    paths = {"en": files.a, "ja": files.b, "base": None}
    found: dict[str, PieceScores] = {}

    def judge(name: str) -> None:
        found[name] = engine.scores(asked[name], CONTRAST, adapter=name)

    threads = [threading.Thread(target=judge, args=(name,)) for name in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for name, prompts in asked.items():
        assert close(found[name].scores, expected_of(files, prompts, paths[name]))


def test_cancelled_scores_are_not_told_and_the_next_ones_are(engine: Engine, files: Files) -> None:
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
    long, short = prompts_of(200, 19, 100), prompts_of(2, 2, 20)
    begun = time.monotonic()
    tickets = [engine.begin_scores(long, CONTRAST, lambda _: heard.put("cancelled"), adapter="en") for _ in range(3)]
    time.sleep(0.3)  # the first is being computed
    for ticket in tickets:
        ticket.cancel()
    engine.begin_scores(short, CONTRAST, heard.put)
    assert close(heard.get(timeout=60).scores, expected_of(files, short)) and heard.empty()
    assert time.monotonic() - begun < engine.scores(long[:20], CONTRAST).prefill_s * 10, "380,000 tokens take longer"


@contextmanager
def being_scored(live: Engine) -> Iterator[queue.SimpleQueue[Any]]:
    """An engine that computes scores for a long time."""
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
    live.begin_scores(prompts_of(400, 19, 100), CONTRAST, heard.put)
    time.sleep(1.0)
    assert heard.empty()
    yield heard


def test_scores_of_a_child_that_dies_end_with_an_error_and_are_not_tried_for_ever(files: Files) -> None:
    with open_engine(files.model, {}, threads=1) as live:
        for _ in range(2):
            pid = live.pid
            with being_scored(live) as heard:
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                error = heard.get(timeout=30)
            assert isinstance(error, EngineDiedError) and "signal 9" in str(error)
            assert len(live.scores(prompts_of(1, 3, 9), CONTRAST).scores[0]) == 3
        with pytest.raises(EngineError, match="ended the inference process twice"), being_scored(live):
            pass


def test_a_closed_engine_says_so(files: Files) -> None:
    with open_engine(files.model, {}, threads=1) as live, being_scored(live) as heard:
        live.close()
        assert "closed" in str(heard.get(timeout=30))
        with pytest.raises(EngineError, match="closed"):
            live.scores([["a", "b"]], CONTRAST)


# --- the plan of a reading ----------------------------------------------------------------------------------------


@st.composite
def readings(draw: st.DrawFn) -> tuple[list[PieceTokens], int]:
    """Prompts with a beginning in common, and as many cells as the longest needs or some more."""
    head = draw(st.integers(0, 30))
    prompts = []
    for number in range(draw(st.integers(1, 40))):
        own = draw(st.integers(1, 200))
        ends = sorted(draw(st.sets(st.integers(head, head + own - 1), max_size=own)) | {head + own - 1})
        prompts.append(PieceTokens([0] * head + [1 + number] * own, head, ends))
    return prompts, max(len(prompt.tokens) for prompt in prompts) + draw(st.integers(0, 100))


@settings(deadline=None)
@given(readings(), st.lists(st.integers(1, 256), min_size=1, max_size=9))
def test_every_token_is_read_once_in_order_and_no_limit_is_passed(
    reading: tuple[list[PieceTokens], int], chunks: list[int]
) -> None:
    prompts, cells = reading
    shared = shared_beginning(prompts)
    assert shared == prompts[0].head
    allowed: list[int] = []

    def chunk() -> int:
        allowed.append(chunks[len(allowed) % len(chunks)])
        return allowed[-1]

    read = [shared] * len(prompts)
    for spans in steps(prompts, shared, cells=cells, chunk=chunk):
        assert spans and sum(span.stop - span.start for span in spans) <= allowed[-1]
        assert len({span.prompt % MOST_PROMPTS for span in spans}) == len(spans), "a sequence each"
        assert sum(span.start <= e < span.stop for span in spans for e in prompts[span.prompt].ends) <= MOST_LOGITS
        for span in spans:
            assert read[span.prompt] == span.start < span.stop
            read[span.prompt] = span.stop
        begun = {span.prompt for span in spans}
        assert shared + sum(read[number] - shared for number in begun) <= cells
        unfinished = [n for n, prompt in enumerate(prompts) if shared < read[n] < len(prompt.tokens)]
        assert len(unfinished) <= 1 and set(unfinished) <= begun, "the others' cells are free"
    assert read == [len(prompt.tokens) for prompt in prompts]


def test_the_shared_beginning_ends_where_tokens_differ_or_a_head_ends() -> None:
    one, two = PieceTokens([1, 2, 3, 4, 5], 3, [4]), PieceTokens([1, 2, 9, 4], 3, [3])
    assert shared_beginning([one]) == 3
    assert shared_beginning([one, two]) == 2
    assert shared_beginning([one, one, PieceTokens([1, 2, 3, 4], 1, [1, 3])]) == 1
    assert shared_beginning([one, PieceTokens([7, 2, 3], 2, [2])]) == 0
